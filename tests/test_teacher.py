"""Where a teacher comes from: a workdir, a checkpoint, or a config that is trained first."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import yaml
from conftest import small_config

from jaxkit import checkpoint, experiment, inference, models, tracking
from jaxkit.config import Config, load, parse
from jaxkit.errors import ConfigError
from jaxkit.schema.model import Pretrained

pytestmark = pytest.mark.level(1)

KEY = jax.random.PRNGKey(0)
CNN = {"name": "cnn_tiny", "dropout_rate": 0.0}


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """Drawing them takes as long as all the rest of these runs, and has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "draw_curves", lambda records, path: None)
        yield


def teacher_config(**changes) -> dict:
    quick = {"task__model": CNN, "data__augment": "none", "train__steps": 4, "train__eval_every": 2}
    return small_config(**{**quick, "train__checkpoint_every": 2, **changes})


def student_config(teacher: dict, **changes) -> Config:
    task = {"name": "distill", "student": CNN, "teacher": teacher, "loss": {"name": "kd"}}
    return parse({**teacher_config(**{"train__steps": 2, **changes}), "task": task}, "student")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """The workdir of a trained teacher that kept an average of its parameters."""
    folder = tmp_path_factory.mktemp("teacher")
    ranked = {"train__best_metric": "loss", "optimizer__learning_rate": 2.0, "optimizer__ema": {"decay": 0.9}}
    experiment.run(parse(teacher_config(**ranked), "teacher"), folder)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory, teacher) -> tuple[Path, dict]:
    """The workdir of a student of that teacher, and its results."""
    folder = tmp_path_factory.mktemp("student")
    return folder, experiment.run(student_config({"workdir": str(teacher)}), folder)


@pytest.fixture(scope="module")
def like() -> dict:
    """Arrays of a teacher's shapes."""
    network = models.build("cnn_tiny", num_classes=10)
    shapes = jax.eval_shape(network.init, KEY, jnp.zeros((1, 8, 8, 1)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), dict(shapes))
    return {"params": zeros.pop("params"), "state": zeros}


def saved(folder: Path, step: int, like: dict, params: str = "params") -> str:
    """The hash of what a checkpoint holds of a network."""
    found, _ = checkpoint.restore(folder / "checkpoints", step, {params: like["params"], "state": like["state"]})
    return experiment.digest({"params": found[params], "state": found["state"]})


def test_a_workdir_teaches_with_its_best_checkpoint_and_a_checkpoint_with_itself(teacher, like):
    average = {step: saved(teacher, step, like, "averaged") for step in (2, 4)}
    assert len({*average.values(), saved(teacher, 2, like), saved(teacher, 4, like)}) == 4
    best = checkpoint.best_step(teacher / "checkpoints", "loss", "min")
    assert experiment.digest(experiment.load_weights(Pretrained(workdir=str(teacher)), like)) == average[best]
    for step in (2, 4):
        found = experiment.load_weights(Pretrained(checkpoint=str(teacher / "checkpoints" / str(step))), like)
        assert experiment.digest(found) == average[step]


def test_where_no_teacher_is_the_message_says_what_is_missing(tmp_path, teacher, like):
    with pytest.raises(ConfigError, match="no run is there"):
        student_config({"workdir": str(tmp_path)})
    with pytest.raises(ConfigError, match="write <workdir>/checkpoints/<step>"):
        experiment.load_weights(Pretrained(checkpoint=str(teacher / "checkpoints")), like)
    with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint of step 3 in .*; the steps saved are: 2, 4"):
        experiment.load_weights(Pretrained(checkpoint=str(teacher / "checkpoints" / "3")), like)
    (tmp_path / "config.yaml").write_text((teacher / "config.yaml").read_text())
    with pytest.raises(ConfigError, match="no checkpoint is there"):
        experiment.load_weights(Pretrained(workdir=str(tmp_path)), like)


def test_a_damaged_teacher_is_an_error_that_names_it_and_no_other_checkpoint_takes_its_place(tmp_path, teacher, like):
    shutil.copytree(teacher, tmp_path / "teacher")
    best = checkpoint.best_step(teacher / "checkpoints", "loss", "min")
    (tmp_path / "teacher" / "checkpoints" / str(best) / "meta" / "metadata").unlink()
    with pytest.raises(checkpoint.CheckpointError, match=f"{best} is damaged: meta/metadata is missing"):
        experiment.load_weights(Pretrained(workdir=str(tmp_path / "teacher")), like)


def test_a_teacher_given_as_a_config_is_trained_once_and_found_again_by_the_hash_of_its_config(
    tmp_path, like, monkeypatch
):
    path = tmp_path / "big.yaml"
    path.write_text(yaml.safe_dump(teacher_config()))
    trained = []
    train = experiment.run

    def counted(config, folder, **options):
        trained.append(folder.name)
        if config.train.seed == 1:
            raise InterruptedError
        return train(config, folder, **options)

    monkeypatch.setattr(experiment, "run", counted)

    def loaded(*overrides: str) -> str:
        source = Pretrained(config=str(path), cache=str(tmp_path / "cache"), overrides=overrides)
        return experiment.digest(experiment.load_weights(source, like))

    first = loaded()
    folder = tmp_path / "cache" / f"big-{load(path).digest()}"
    assert trained == [folder.name]
    assert first == saved(folder, checkpoint.best_step(folder / "checkpoints", "top1", "max"), like)

    written = {entry: entry.stat().st_mtime_ns for entry in folder.rglob("*")}
    # what can change no result makes no other teacher
    assert loaded() == loaded("tracking.tensorboard=true") == first
    assert trained == [folder.name]
    assert {entry: entry.stat().st_mtime_ns for entry in folder.rglob("*")} == written

    with pytest.raises(InterruptedError):
        loaded("train.seed=1")
    assert trained[1:] == [f"big-{load(path, ('train.seed=1',)).digest()}"] != [folder.name]

    # a training that was cut off is gone on with
    (folder / "results.json").unlink()
    (folder / "checkpoints" / "4").rename(tmp_path / "4")
    assert loaded() == first
    assert trained[2:] == [folder.name]
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4


def test_a_checkpoint_holds_the_student_and_only_a_hash_of_the_teacher(student, teacher, like):
    folder = student[0] / "checkpoints"
    items = {entry.name for entry in (folder / "2").iterdir() if entry.is_dir()}
    assert items == {"params", "state", "optimizer", "meta", "metrics"}
    frozen = [experiment.load_weights(Pretrained(workdir=str(teacher)), like)]
    assert checkpoint.restore(folder, 2, {})[1]["frozen"] == experiment.digest(frozen)


def test_the_teacher_is_found_again_for_an_evaluation(student):
    folder, results = student
    assert results["best"].keys() == {"step", "top1", "top5", "loss", "agreement"}
    assert inference.evaluate_run(folder) == results["best"]


def test_a_teacher_that_changed_since_the_run_began_is_refused(student, teacher, monkeypatch):
    load_weights = experiment.load_weights

    def altered(source, like):
        found = load_weights(source, like)
        return {**found, "params": jax.tree.map(lambda leaf: leaf.at[..., 0].add(1e-6), found["params"])}

    monkeypatch.setattr(experiment, "load_weights", altered)
    with pytest.raises(ConfigError, match="what is frozen .* is not what this run began with"):
        experiment.run(student_config({"workdir": str(teacher)}, train__steps=3), student[0])


def test_a_student_is_trained_in_its_own_precision_when_its_teacher_is_trained_first_in_another(tmp_path, monkeypatch):
    (tmp_path / "big.yaml").write_text(yaml.safe_dump(teacher_config(train__steps=1)))
    source = {"config": str(tmp_path / "big.yaml"), "cache": str(tmp_path / "cache")}
    before = jax.config.jax_default_matmul_precision
    precisions = []

    class Watched(experiment.Trainer):
        def __init__(self, *arguments):
            precisions.append(jax.config.jax_default_matmul_precision)
            if len(precisions) == 2:
                raise InterruptedError
            super().__init__(*arguments)

    monkeypatch.setattr(experiment, "Trainer", Watched)
    with pytest.raises(InterruptedError):
        experiment.run(student_config(source, train__matmul_precision="highest"), tmp_path / "run")
    assert precisions == ["default", "highest"]
    assert jax.config.jax_default_matmul_precision == before


def test_a_teacher_that_cannot_be_had_leaves_the_workdir_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    experiment.run(parse(small_config(train__steps=2), "small"), folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (tmp_path / "teacher").mkdir()
    shutil.copy(folder / "config.yaml", tmp_path / "teacher" / "config.yaml")
    task = {"name": "distill", "student": {"name": "cifar_resnet_tiny"}, "loss": {"name": "kd"}}
    config = parse(small_config(task={**task, "teacher": {"workdir": "teacher"}}), "small")
    for overwritten in (folder, tmp_path / "new"):
        with pytest.raises(ConfigError, match="no checkpoint is there"):
            experiment.run(config, overwritten, force=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "new" / "config.yaml").exists()


def test_the_digest_of_a_config_covers_the_teachers_behind_its_teacher(tmp_path):
    task = {"name": "distill", "student": {"name": "resnet8"}, "loss": {"name": "kd"}}
    digests = []
    for seed in (0, 1):
        (tmp_path / "first.yaml").write_text(yaml.safe_dump(small_config(train__seed=seed)))
        second = small_config(task={**task, "teacher": {"config": str(tmp_path / "first.yaml")}})
        (tmp_path / "second.yaml").write_text(yaml.safe_dump(second))
        third = small_config(task={**task, "teacher": {"config": str(tmp_path / "second.yaml")}})
        digests.append(parse(third, "third").digest())
    assert digests[0] != digests[1]


def test_a_finished_run_is_evaluated_without_the_config_of_its_teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(teacher_config()))
    experiment.run(student_config({"config": "teacher.yaml"}), tmp_path / "run")
    written = [json.loads((tmp_path / "run" / f"{name}.json").read_text()) for name in ("environment", "results")]
    assert written[0]["config"] == written[1]["config"]
    (tmp_path / "teacher.yaml").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = inference.evaluate_run(tmp_path / "run")
    best = json.loads((tmp_path / "run" / "results.json").read_text())["best"]
    assert found == pytest.approx(best)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_model_given_for_a_teacher_must_be_its_own(tmp_path):
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(teacher_config()))
    with pytest.raises(ConfigError, match="model"):
        student_config({"config": str(tmp_path / "teacher.yaml"), "model": {"name": "resnet8"}})
