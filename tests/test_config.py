import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, small_config

from jaxkit.config import load, parse
from jaxkit.errors import ConfigError


def problems(raw) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(raw, "a.yaml")
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_config_is_valid_and_survives_a_round_trip(path, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    config = load(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.yaml())
    assert load(copy) == config
    assert load(copy).digest() == config.digest()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_config_says_its_command_source_and_what_was_measured(path):
    head = path.read_text().split("\ntask:")[0]
    assert f"--config configs/{path.name}" in head
    for word in ("Source:", "Published:", "Measured:"):
        assert word in head, word


def test_a_mistyped_key_is_named_with_the_nearest_valid_one():
    assert problems(small_config(task__los="kd")) == ["task.los: unknown key, did you mean 'loss'?"]


def test_a_key_of_another_section_is_told_where_it_belongs():
    assert problems(small_config(train__learning_rate=1.0)) == [
        "train.learning_rate: unknown key, did you mean 'optimizer.learning_rate'?"
    ]


def test_all_problems_are_reported_at_once_each_with_its_path():
    raw = small_config(
        task__model__name="resnet21", data__nam="x", optimizer__learning_rate=-1.0, optimizer__momentun=0.9,
        train__steps="many", train__seed=-1,
    )  # fmt: skip
    found = {line.split(":")[0] for line in problems(raw)}
    assert found == {
        "task.model.name", "data.nam", "optimizer.learning_rate", "optimizer.momentun", "train.steps", "train.seed"
    }  # fmt: skip


def test_the_nearest_task_source_optimizer_schedule_loss_and_model_are_suggested():
    raw = small_config(data__name="digit", optimizer__name="sdg", task__loss={"name": "cross_entropi"})
    text = "\n".join(problems(raw))
    for name in ("'digits'", "'sgd'", "'cross_entropy'"):
        assert f"did you mean {name}" in text
    assert "did you mean 'distill'" in problems(small_config(task__name="distil"))[0]
    assert "did you mean 'cosine'" in problems(small_config(optimizer__schedule={"name": "cosin"}))[0]
    assert "resnet20" in problems(small_config(task__model__name="resnet200"))[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__epochs": 3.0}, "give steps or epochs"),
        ({"optimizer__accumulate": 3}, "cannot be cut"),
        ({"optimizer__schedule": {"name": "cosine", "warmup_steps": 20}}, "leaves none"),
        ({"optimizer__momentum": 0.0, "optimizer__nesterov": True}, "nesterov needs a momentum"),
        ({"train__best_metric": "accuracy"}, "no metric of this task"),
        ({"task__model__dropout_rate": 0.5}, "has no dropout"),
        ({"data__normalize": {"mean": [0.5], "std": [0.5, 0.5]}}, "mean has 1 channels but std has 2"),
        ({"optimizer__schedule": {"name": "multistep", "milestones": [5, 5]}}, "milestones must rise"),
        ({"optimizer__no_decay": ["bias"]}, "no_decay needs a weight_decay above 0"),
        ({"optimizer__no_decay": ["("], "optimizer__weight_decay": 0.1}, "'(' is no regular expression: missing )"),
        ({"optimizer__schedule": {"name": "polynomial", "end": 0.05}}, "end: 0.05 must lie below the learning rate"),
        (
            {"optimizer__schedule": {"name": "multistep", "milestones": [3], "warmup_steps": 5}},
            "the milestone at update 3 lies within the warm-up of 5",
        ),
        ({"task": {"name": "distill", "teacher": []}}, "task.teacher: name at least one teacher"),
    ],
)
def test_what_cannot_go_together_is_refused(changes, message):
    assert message in "\n".join(problems(small_config(**changes)))


def test_an_option_of_another_optimizer_is_refused():
    (problem,) = problems(small_config(optimizer__name="adam"))
    assert problem.startswith("optimizer.momentum: unknown key; the keys are learning_rate, ")
    assert problem.endswith(", name, b1, b2, eps")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"optimizer__schedule": "cosine"},
            "optimizer.schedule: must be a mapping such as {name: cosine}, got 'cosine'",
        ),
        ({"optimizer__schedule": "cosin"}, "optimizer.schedule: must be a mapping such as {name: cosine}, got 'cosin'"),
        ({"data": "digits"}, "data: must be a mapping such as {name: digits}, got 'digits'"),
        ({"data": "tfds:mnist"}, "data: must be a mapping such as {name: tfds:<name>}, got 'tfds:mnist'"),
        ({"optimizer": None}, "optimizer: must be a mapping such as {name: sgd}, got None"),
        (
            {"data": {"batch_size": 2}},
            "data.name: is missing; one of digits, image_folder, captioned_folder, webdataset, encoded, "
            "tfds:<name>, arrays, lags, nmnist, dvs_gesture, spoken_words, concepts, digit_concepts",
        ),
        ({"task": "clasify"}, "task: must be a mapping such as {name: classify}, got 'clasify'"),
        ({"task__model": "lenet"}, "task.model: must be a mapping such as {name: lenet}, got 'lenet'"),
        (
            {"tracking": None},
            "tracking: must be a mapping with the keys progress, tensorboard, wandb, got None",
        ),
        (
            {"data__augment": {"flip": float("nan")}},
            "data.augment.flip: input should be less than or equal to 1, got nan",
        ),
        ({"data__augment": {"blur": 1}}, "data.augment.blur: unknown key; the keys are crop_padding, flip, rotation"),
        (
            {"data__augment": "cifa"},
            "data.augment: input should be 'none', 'cifar', 'cifar_plain' or 'tiny_imagenet', got 'cifa'",
        ),
        ({"data__normalize": {"mean": [0]}}, "data.normalize.std: is missing"),
        ({"train__parallel": {"a": 1}}, "train.parallel: input should be 'jit' or 'pmap', got {'a': 1}"),
        (
            {"optimizer": {"learning_rate": 0.1}},
            "optimizer.name: is missing; one of sgd, adam, adamw, adamw_8bit, lion",
        ),
    ],
)
def test_one_mistake_is_one_problem_that_says_what_to_write(changes, problem):
    assert problems(small_config(**changes)) == [problem]


def test_the_keys_of_a_tfds_source_are_its_own():
    (problem,) = problems(small_config(data={"name": "tfds:mnist", "batch_size": 2, "folder": "x"}))
    own = "name, data_dir, train_split, eval_split, image_key, label_key"
    assert problem.endswith(f"threads, eval_examples, one_batch, {own}")


def test_a_teacher_that_is_no_mapping_is_one_problem_whether_listed_or_not():
    task = {"name": "distill", "student": {"name": "resnet8"}, "loss": {"name": "kd"}}
    for teacher, path in (("base.yaml", "task.teacher"), (["base.yaml"], "task.teacher.0")):
        (problem,) = problems(small_config(task={**task, "teacher": teacher}))
        assert problem.startswith(f"{path}: must be a mapping with the keys workdir, checkpoint, config, ")


def test_what_does_not_go_together_is_reported_at_once_each_at_the_key_to_change():
    raw = small_config(
        train__best_metric="accuracy",
        optimizer__accumulate=3,
        optimizer__schedule={"name": "linear", "warmup_steps": 20},
    )
    assert problems(raw) == [
        "optimizer.schedule: a warm-up of 20 updates leaves none of the run's 20",
        "data.batch_size: 64 cannot be cut into optimizer.accumulate = 3 equal pieces",
        "train.best_metric: 'accuracy' is no metric of this task; it has top1, top5, loss",
    ]


def test_a_schedule_that_cannot_be_is_reported_with_the_problems_of_other_sections():
    raw = small_config(optimizer__schedule={"name": "polynomial", "end": 3.0}, train__seed=-1, data__threads=0)
    assert {line.split(":")[0] for line in problems(raw)} == {"optimizer.schedule.end", "train.seed", "data.threads"}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"train__steps": 2**31}, "train.steps"),
        ({"train__steps": 99999999999999999999999}, "train.steps"),
        ({"train__steps": None, "train__epochs": 1.1e6}, "train.epochs"),
        ({"data__batch_size": 2**31}, "data.batch_size"),
        ({"data__augment": {"crop_padding": 2**31}}, "data.augment.crop_padding"),
        ({"optimizer__schedule": {"name": "linear", "warmup_steps": 2**31}}, "optimizer.schedule.warmup_steps"),
        ({"optimizer__schedule": {"name": "linear", "warmup_epochs": 1e300}}, "optimizer.schedule.warmup_epochs"),
        ({"optimizer__schedule": {"name": "multistep", "milestones": [2**31]}}, "optimizer.schedule.milestones.0"),
        (
            {"optimizer__schedule": {"name": "multistep", "milestone_epochs": [1e300]}},
            "optimizer.schedule.milestone_epochs.0",
        ),
        ({"data__normalize": {"mean": [float("nan")], "std": [1]}}, "data.normalize.mean.0"),
        ({"data__normalize": {"mean": [0.5], "std": [float("inf")]}}, "data.normalize.std.0"),
    ],
)
def test_a_number_that_nothing_could_count_or_compute_with_is_refused(changes, path):
    (problem,) = problems(small_config(**changes))
    assert problem.startswith(f"{path}: input should be ")


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path):
    path = tmp_path / "a.yaml"
    text = "task: {name: classify, model: {name: lenet}}\ndata: {name: digits, batch_size: 64}\n"
    path.write_text(text + "optimizer: {name: sgd, learning_rate: 1e-3}\ntrain: {steps: 5, precision: no}\n")
    config = load(path)
    assert config.optimizer.learning_rate == 1e-3
    assert config.train.precision == "no"
    for written, seed in {"010": 10, "08": 8, "0o17": 15, "0x1F": 31}.items():
        assert load(path, (f"train.seed={written}",)).train.seed == seed


@pytest.mark.parametrize("word", ["1e3", "no", "010", "0o17", "1:30", "~", "null", ".5", "2020-01-01"])
def test_a_word_that_looks_like_something_else_survives_a_round_trip(word, tmp_path):
    config = parse(small_config(data={"name": "arrays", "path": word, "batch_size": 64}), "a.yaml")
    (tmp_path / "copy.yaml").write_text(config.yaml())
    assert load(tmp_path / "copy.yaml") == config


@pytest.mark.parametrize(
    "value",
    [
        "!!int abc",
        "!!float abc",
        "!!bool yes",
        "!!timestamp x",
        "!!int {}",
        "!!map abc",
        "!python x",
        '"\\UFFFFFFFF"',
        "[" * 3000 + "]" * 3000,
        "[" * 3000,
        "9" * 5000,
    ],
    ids=lambda value: value[:16],
)
def test_a_value_that_is_no_yaml_is_a_config_error_in_an_override_and_in_a_file(value, config_file, tmp_path):
    with pytest.raises(ConfigError, match="the value is not valid YAML: "):
        load(config_file(), (f"train.seed={value}",))
    (tmp_path / "a.yaml").write_text(f"train: {value}")
    with pytest.raises(ConfigError, match=r"a\.yaml: is not valid YAML: "):
        load(tmp_path / "a.yaml")


def test_overrides_reach_nested_keys_lists_and_absent_sections(config_file):
    path = config_file()
    config = load(path, ("optimizer.schedule.name=multistep", "optimizer.schedule.milestones=[5, 9]", "train.steps=12"))
    assert config.optimizer.schedule.milestones == (5, 9)
    assert config.train.steps == 12
    again = load(path, ("data.normalize={mean: [0.5], std: [0.2]}", "data.normalize.mean.0=0.4"))
    assert again.data.normalize.mean == (0.4,)


@pytest.mark.parametrize(
    "override",
    [
        "train.steps",
        "=3",
        "train.steps.more=3",
        "data.augment.crop_padding.0=1",
        "train.steps=[1",
        "data.normalize.mean.²=1",
    ],
)
def test_an_override_that_cannot_be_applied_is_a_config_error(config_file, override):
    with pytest.raises(ConfigError):
        load(config_file(data__normalize={"mean": [0.5] * 9, "std": [0.5] * 9}), (override,))


def test_a_missing_broken_or_empty_file_is_a_config_error(tmp_path):
    (tmp_path / "near.yaml").write_text("a: [")
    (tmp_path / "twice.yaml").write_text("task: 1\ntask: 2\n")
    (tmp_path / "empty.yaml").write_text("")
    for name, message in {
        "nearr.yaml": "did you mean .*near.yaml",
        "near.yaml": "not valid YAML",
        "twice.yaml": "given twice",
        "empty.yaml": "must be a mapping",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load(tmp_path / name)


def test_a_config_cannot_be_changed_after_it_is_made():
    config = parse(small_config(), "a.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3


def test_tracking_does_not_change_the_digest_and_everything_else_does():
    digest = parse(small_config(), "a.yaml").digest()
    assert re.fullmatch("[0-9a-f]{12}", digest)
    assert parse(small_config(tracking__tensorboard=True), "a.yaml").digest() == digest
    assert parse(small_config(train__seed=1), "a.yaml").digest() != digest


def test_a_teacher_brings_its_model_from_its_own_config(config_file):
    teacher = config_file("teacher.yaml", task__model__name="resnet14")
    raw = small_config(
        task={
            "name": "distill",
            "student": {"name": "resnet8"},
            "teacher": {"config": str(teacher), "overrides": ["task.model.num_classes=12"]},
            "loss": {"name": "kd"},
        }
    )
    (filled,) = parse(raw, "a.yaml").task.teacher
    assert (filled.model.name, filled.model.num_classes) == ("resnet14", 12)


def test_a_teacher_that_is_not_there_is_a_config_error(tmp_path):
    task = {"name": "distill", "student": {"name": "resnet8"}, "loss": {"name": "kd"}}
    for teacher in ({"config": str(tmp_path / "no.yaml")}, {"workdir": str(tmp_path)}, {}):
        with pytest.raises(ConfigError):
            parse(small_config(task={**task, "teacher": teacher}), "a.yaml")


def test_a_config_is_validated_before_anything_heavy_is_imported(config_file):
    program = (
        "import sys\nfrom jaxkit.config import load\n"
        f"load({str(config_file())!r})\n"
        "heavy = {'jax', 'flax', 'optax', 'numpy', 'torch', 'grain', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_teacher_that_needs_itself_is_a_config_error(tmp_path):
    task = {"name": "distill", "student": {"name": "resnet8"}, "loss": {"name": "kd"}}
    for name, other in (("a", "b"), ("b", "a")):
        raw = small_config(task={**task, "teacher": {"config": str(tmp_path / f"{other}.yaml")}})
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match="a teacher in its own training"):
        load(tmp_path / "a.yaml")
