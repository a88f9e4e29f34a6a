"""``train.py --start-from``: a new run begins where another is, with or without its optimizer and its schedule."""

from functools import partial

import numpy as np
import pytest
import yaml
from conftest import script, small_config
from runs import arrays, identical

from jaxkit import experiment
from jaxkit.checkpoint import CheckpointError
from jaxkit.config import parse
from jaxkit.errors import ConfigError
from jaxkit.starts import another_run

pytestmark = pytest.mark.level(1)

STEPS = 6


def raw(**changes) -> dict:
    optimizer = {"name": "adam", "learning_rate": 0.01, "schedule": {"name": "cosine"}, "ema": {"decay": 0.5}}
    length = {"train__steps": STEPS, "train__eval_every": 3, "train__checkpoint_every": 3}
    return small_config(**{"optimizer": optimizer, **length, **changes})


def run(folder, start=None, fresh=(), **changes):
    begin = start and partial(another_run, start, fresh)
    return experiment.run(parse(raw(**changes), "small"), folder, begin=begin)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, train__keep_last=9)
    return folder


def counts(folder, step) -> dict[str, int]:
    """What counts updates in a checkpoint, by the end of its path."""
    found = {path: int(leaf) for path, leaf in arrays(folder, step).items() if path.endswith(("count", "step"))}
    return {"step": found.pop("optimizer/step"), "others": sorted(found.values())}


def test_with_all_of_it_the_run_ends_with_the_bytes_of_the_other(whole, tmp_path):
    run(tmp_path / "on", whole / "checkpoints" / "3")
    assert identical(arrays(tmp_path / "on", STEPS), arrays(whole, STEPS))


@pytest.mark.parametrize(
    ("fresh", "step", "counted"),
    # what Adam, the schedule and the average have counted
    [
        (("schedule",), 0, [0, 3, 3]),
        (("optimizer",), 3, [0, 3, 3]),
        (("optimizer", "schedule"), 0, [0, 0, 3]),
    ],
)
def test_what_is_fresh_counts_from_0_and_parameters_and_average_are_carried_on(whole, tmp_path, fresh, step, counted):
    run(tmp_path, whole / "checkpoints" / "3", fresh, train__steps=step + 1, train__keep_last=9)
    before, after = arrays(whole, 3), arrays(tmp_path, step)
    for path, leaf in before.items():
        if path.startswith(("params/", "averaged/", "state/")):
            np.testing.assert_array_equal(after[path], leaf)
    assert counts(tmp_path, step) == {"step": step, "others": counted}
    moments = [leaf for path, leaf in after.items() if "/mu/" in path or "/nu/" in path]
    assert any(leaf.any() for leaf in moments) == ("optimizer" not in fresh)


def test_another_optimizer_is_refused_unless_it_is_fresh(whole, tmp_path):
    sgd = {"name": "sgd", "learning_rate": 0.01}
    with pytest.raises(CheckpointError, match="is of another model or optimizer"):
        run(tmp_path, whole / "checkpoints" / "3", optimizer=sgd)
    assert not (tmp_path / "config.yaml").exists()
    run(tmp_path, whole, ("optimizer", "schedule"), optimizer=sgd, train__steps=1)


def test_the_command_saves_where_it_begins_and_refuses_what_is_no_run(whole, tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(raw(train__keep_last=9)))
    arguments = ("--config", config, "--workdir", tmp_path / "run", "--start-from", whole, "--fresh", "schedule")
    assert (
        f"goes on from {whole}/checkpoints/6, with a fresh schedule: begins at step 0"
        in script("train.py", *arguments).stdout
    )
    # killed before its first checkpoint, it would else begin again from chance
    assert (tmp_path / "run" / "checkpoints" / "0").is_dir()
    again = script("train.py", *arguments, check=False)
    assert again.returncode == 2
    assert "leave --from-torch or --start-from out to go on with it" in again.stderr
    with pytest.raises(ConfigError, match="is no run that has a checkpoint, and no checkpoint"):
        run(tmp_path / "other", tmp_path)
    alone = script("train.py", "--config", config, "--fresh", "optimizer", check=False)
    assert (alone.returncode, alone.stderr) == (2, "--fresh says what --start-from is not to carry on; give that too\n")


def test_of_a_run_with_other_frozen_weights_a_line_says_so(whole, tmp_path, capsys):
    def student(folder, step, start=None):
        teacher = {"checkpoint": str(whole / "checkpoints" / str(step))}
        task = {"name": "distill", "student": {"name": "cifar_resnet_tiny"}, "teacher": teacher, "loss": {"name": "kd"}}
        run(folder, start, task=task, train__steps=1 if start is None else 2)
        return "was trained with other frozen weights than those of this run" in capsys.readouterr().out

    assert not student(tmp_path / "first", 3)
    assert not student(tmp_path / "same", 3, tmp_path / "first")
    assert student(tmp_path / "other", 6, tmp_path / "first")
