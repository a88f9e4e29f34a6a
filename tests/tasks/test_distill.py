import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml
from conftest import small_config

from jaxkit import checkpoint, experiment, models, parallel, tracking
from jaxkit.config import Config, load, parse
from jaxkit.errors import ConfigError
from jaxkit.schema.distill import Distill
from jaxkit.schema.model import Pretrained
from jaxkit.tasks import distill
from jaxkit.tasks.task import Context, Task, Variables
from jaxkit.train import TrainState, train_step

KEY = jax.random.PRNGKey(0)
CNN = {"name": "cnn_tiny", "dropout_rate": 0.0}
# no layer of it mixes examples
LENET = {"name": "lenet_tiny"}


def section(teachers=1, student=LENET, teacher=CNN, loss=None) -> Distill:
    sources = [{"workdir": f"teacher{i}", "model": teacher} for i in range(teachers)]
    loss = loss or {"name": "kd", "alpha": 1.0, "temperature": 2.0}
    raw = {"name": "distill", "student": student, "teacher": sources, "loss": loss}
    return Distill.model_validate(raw)


def weights(source: Pretrained, like) -> dict:
    """What stands for the weights of a source: drawn from its name, statistics positive."""
    rng = np.random.default_rng(int(source.workdir[-1]))
    draw = lambda low, high: lambda leaf: jnp.asarray(rng.uniform(low, high, leaf.shape), leaf.dtype)  # noqa: E731
    return {
        "params": jax.tree.map(draw(-0.4, 0.6), like["params"]),
        "state": jax.tree.map(draw(0.5, 1.5), like["state"]),
    }


CONTEXT = Context(num_classes=7, load_weights=weights)


def images(count=8, seed=0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.normal(size=(count, 16, 16, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 7, count)),
    }


def logits(model: dict, params, state, batch) -> np.ndarray:
    network = models.build(model["name"], num_classes=7)
    return np.asarray(jax.jit(network.apply)({"params": params, **state}, batch["image"])[0], np.float64)


def softmax(logits) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def made(teachers: int) -> tuple[Task, Variables]:
    task = distill.make(section(teachers), CONTEXT)
    variables = task.init(KEY, images())
    return task, variables._replace(
        params=lively(LENET, variables.params, {}),
        frozen=[{**tree, "params": lively(CNN, tree["params"], tree["state"])} for tree in variables.frozen],
    )


def lively(model: dict, params, state) -> dict:
    """A head of which every class wins some examples: of tiny random networks one class wins them all."""
    found = logits(model, params, state, images(16))
    kernel, bias = params["head"]["kernel"], params["head"]["bias"]
    # logits of mean 0 and standard deviation 2 in each class
    kernel, bias = kernel * 2 / found.std(axis=0), (bias - found.mean(axis=0)) * 2 / found.std(axis=0)
    return {**params, "head": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}


@pytest.fixture(scope="module")
def one() -> tuple[Task, Variables]:
    return made(1)


@pytest.fixture(scope="module")
def two() -> tuple[Task, Variables]:
    return made(2)


def taught(variables: Variables, batch) -> np.ndarray:
    """Mean logits of the teachers, each in evaluation mode."""
    return np.mean([logits(CNN, frozen["params"], frozen["state"], batch) for frozen in variables.frozen], axis=0)


def test_the_frozen_variables_are_what_was_loaded_for_each_teacher_in_order():
    loaded = []

    def load_weights(source, like):
        assert like.keys() == {"params", "state"}
        loaded.append((source.workdir, weights(source, like)))
        return loaded[-1][1]

    variables = distill.make(section(2), CONTEXT._replace(load_weights=load_weights)).init(KEY, images())
    assert [name for name, _ in loaded] == ["teacher0", "teacher1"]
    assert all(frozen is tree for frozen, (_, tree) in zip(variables.frozen, loaded, strict=True))
    assert "batch_stats" in variables.frozen[0]["state"]


@pytest.mark.parametrize("teachers", ["one", "two"])
def test_the_loss_is_that_of_the_mean_of_the_teachers_logits(request, teachers):
    task, variables = request.getfixturevalue(teachers)
    batch = images()
    value, (_, metrics) = jax.jit(task.loss)(variables, batch, KEY)
    teacher, student = taught(variables, batch), logits(LENET, variables.params, {}, batch)
    p, q = softmax(teacher / 2), softmax(student / 2)
    # float32 against float64
    assert float(value) == pytest.approx((4 * (p * np.log(p / q)).sum(axis=1)).mean(), rel=1e-4)
    assert float(metrics["agreement"]) == np.mean(student.argmax(axis=1) == teacher.argmax(axis=1))
    assert float(metrics["top1"]) == np.mean(student.argmax(axis=1) == batch["label"])


@pytest.mark.parametrize("teachers", ["one", "two"])
def test_evaluation_gives_each_examples_scores_and_its_agreement_with_the_teacher(request, teachers):
    task, variables = request.getfixturevalue(teachers)
    batch = images(16)
    found = jax.jit(task.evaluate)(variables, batch, KEY)
    teacher, student = taught(variables, batch), logits(LENET, variables.params, {}, batch)
    label = np.asarray(batch["label"])
    assert found.keys() == {"top1", "top5", "loss", "agreement"}
    agreement = student.argmax(axis=1) == teacher.argmax(axis=1)
    assert np.array_equal(found["agreement"], agreement)
    assert 0 < agreement.sum() < 16
    assert np.array_equal(found["top1"], student.argmax(axis=1) == label)
    assert np.array_equal(found["top5"], (np.argsort(-student, axis=1)[:, :5] == label[:, None]).any(axis=1))
    # float32 against float64: an error of 1e-6 in logits of about 5
    np.testing.assert_allclose(found["loss"], -np.log(softmax(student))[np.arange(16), label], rtol=1e-5, atol=1e-5)


def test_no_gradient_reaches_a_teacher(two):
    task, variables = two
    loss = jax.jit(jax.grad(lambda params, frozen: task.loss(Variables(params, {}, frozen), images(), KEY)[0], (0, 1)))
    student, teachers = loss(variables.params, variables.frozen)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(student))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(teachers))


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_training_leaves_every_byte_of_a_teacher_as_it_was(two, kind):
    task, variables = two
    executor = parallel.executor(kind)
    optimizer = optax.sgd(0.1)
    started = TrainState(jnp.int32(0), variables.params, {}, optimizer.init(variables.params), KEY, jnp.bool(True))
    state, frozen = executor.replicate(started), executor.replicate(variables.frozen)
    pointers = [leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(frozen)]
    options = {"optimizer": optimizer, "augment": lambda keys, batch: batch, "executor": executor, "pieces": 1}
    batch = executor.put_batch(jax.tree.map(np.asarray, images(16)))
    step = executor.compile(partial(train_step, task=task, **options), state, frozen, batch)
    for _ in range(3):
        state, _ = step(state, frozen, batch)
    assert bool(state.ok)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), state.params, variables.params)
    assert all(jax.tree.leaves(moved))
    # the same buffers, and in them the same bytes
    assert pointers == [leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(frozen)]
    assert experiment.digest(frozen) == experiment.digest(variables.frozen)


def test_a_teacher_uses_its_running_statistics_and_so_ignores_the_rest_of_the_batch(one):
    task, variables = one
    loss = jax.jit(task.loss)
    whole = float(loss(variables, images(), KEY)[0])
    alone = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], images()) for i in range(8)]
    # batch normalisation in training mode would refuse or zero a single example; float32 in another order
    assert np.mean([float(loss(variables, batch, KEY)[0]) for batch in alone]) == pytest.approx(whole, rel=1e-5)
    shifted = jax.tree.map(lambda leaf: leaf + 1, variables.frozen[0]["state"])
    other = variables._replace(frozen=[{**variables.frozen[0], "state": shifted}])
    assert float(loss(other, images(), KEY)[0]) != pytest.approx(whole, rel=1e-2)


def test_a_teachers_dropout_is_off():
    task = distill.make(section(teacher={"name": "cnn_tiny", "dropout_rate": 0.9}), CONTEXT)
    variables = task.init(KEY, images())
    loss = jax.jit(task.loss)
    assert float(loss(variables, images(), KEY)[0]) == float(loss(variables, images(), jax.random.PRNGKey(1))[0])


def test_the_students_statistics_move_and_the_teachers_do_not():
    task = distill.make(section(student=CNN), CONTEXT)
    variables = task.init(KEY, images())
    _, (state, _) = jax.jit(task.loss)(variables, images(), KEY)
    for path, old in jax.tree_util.tree_leaves_with_path(variables.state):
        new = dict(jax.tree_util.tree_leaves_with_path(state))[path]
        assert not np.array_equal(old, new), path
    assert jax.tree.structure(state) == jax.tree.structure(variables.state)


def test_a_student_or_teacher_with_fewer_classes_than_the_data_is_an_error():
    for fields in ({"student": {**LENET, "num_classes": 6}}, {"teacher": {**CNN, "num_classes": 6}}):
        with pytest.raises(ConfigError, match="has num_classes = 6, but the data has 7"):
            distill.make(section(**fields), CONTEXT)


def test_a_teacher_with_other_classes_than_the_student_is_an_error():
    with pytest.raises(ConfigError, match="the teacher cnn_tiny has 9 classes, the student lenet_tiny has 7"):
        distill.make(section(teacher={**CNN, "num_classes": 9}), CONTEXT)
    both = {"student": {**LENET, "num_classes": 9}, "teacher": {**CNN, "num_classes": 9}}
    distill.make(section(**both), CONTEXT)


def test_the_notes_tell_the_weights_of_labels_and_teacher():
    loss = {"name": "kd", "alpha": 0.9, "temperature": 4.0}
    assert distill.make(section(loss=loss), CONTEXT).notes == ("loss = 0.1 x CE + 0.9 x T²·KL(T=4)",)
    notes = distill.make(section(loss={**loss, "reduction": "mean"}), CONTEXT).notes
    # 0.9 / 7 classes
    assert notes == ("loss = 0.1 x CE + 0.1286 x T²·KL(T=4)",)
    first, warning = distill.make(section(loss={**loss, "alpha": 1.0}), CONTEXT).notes
    assert first == "loss = 0 x CE + 1 x T²·KL(T=4)"
    assert warning.startswith("warning: CE has weight 0 of 1")


# --- where a teacher comes from ---


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
    assert experiment.evaluate_run(folder) == results["best"]


def test_a_teacher_that_changed_since_the_run_began_is_refused(student, teacher, monkeypatch):
    load_weights = experiment.load_weights

    def altered(source, like):
        found = load_weights(source, like)
        return {**found, "params": jax.tree.map(lambda leaf: leaf.at[..., 0].add(1e-6), found["params"])}

    monkeypatch.setattr(experiment, "load_weights", altered)
    with pytest.raises(ConfigError, match="the frozen weights are not those that this run began with"):
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
