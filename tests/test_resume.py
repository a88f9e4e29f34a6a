"""A run that is killed, stopped, or finds its checkpoint damaged ends with the bytes of one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, command, environment, script, thinned
from runs import arrays, identical

from jaxkit import experiment
from jaxkit.checkpoint import saved_steps
from jaxkit.config import parse
from jaxkit.data import DataError
from jaxkit.tracking import read_metrics

pytestmark = pytest.mark.level(1)

STEPS = 120


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    import yaml
    from conftest import small_config

    raw = small_config(
        data__augment={"crop_padding": 1, "rotation": 10.0},
        optimizer__schedule={"name": "cosine", "warmup_steps": 5},
        optimizer__ema={"decay": 0.9},
        train__steps=STEPS,
        train__eval_every=7,
        train__checkpoint_every=3,
        train__keep_last=100,
        train__log_every=2,
    )
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    script("train.py", "--config", config, "--workdir", folder)
    return folder


def started(config, folder, *overrides) -> subprocess.Popen:
    arguments = command("train.py", "--config", config, "--workdir", folder, *overrides)
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(arguments, env=environment(1), cwd=ROOT, **pipe)


def cut_back(whole, folder, step: int) -> None:
    """Puts into ``folder`` what the whole run had written when it was at ``step``."""
    shutil.copytree(whole, folder)
    (folder / "results.json").unlink()
    for newer in saved_steps(folder / "checkpoints"):
        if newer > step:
            shutil.rmtree(folder / "checkpoints" / str(newer))


def last_step(folder) -> int:
    records = read_metrics(folder / "metrics.jsonl")
    return records[-1]["step"] if records else 0


def assert_same_end(folder, whole) -> None:
    assert identical(arrays(folder, STEPS), arrays(whole, STEPS))
    kept = [[r for r in read_metrics(f / "metrics.jsonl") if r["kind"] == "eval"] for f in (folder, whole)]
    assert kept[0] == kept[1]
    both = [json.loads((f / "results.json").read_text()) for f in (folder, whole)]
    assert both[0]["best"] == both[1]["best"]
    assert both[0]["last"] == both[1]["last"]


@pytest.mark.parametrize("kills", thinned((3, 20), (3,)))
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(config, whole, tmp_path, kills):
    draw = random.Random(7)
    folder = tmp_path / "run"
    killed_while = []
    for kill in range(kills):
        process = started(config, folder)
        before = last_step(folder)
        # five steps a life on average, so that twenty lives end within the run; some lives end before their first step
        goal = before + draw.choice([0, 2, 4, 6, 8, 10]) if kill % 5 else before
        pause = draw.uniform(0, 3) if goal == before else draw.uniform(0, 0.3)
        deadline = time.monotonic() + 120
        while last_step(folder) < goal and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(pause)
        assert process.poll() is None, f"the run ended before kill {kill}: {process.communicate()[0]}"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        unfinished = [p.name for p in (folder / "checkpoints").glob("*tmp*")] if folder.exists() else []
        killed_while.append((last_step(folder), bool(unfinished)))
    assert len({step for step, _ in killed_while}) > kills // 4, killed_while
    script("train.py", "--config", config, "--workdir", folder)
    assert_same_end(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), thinned(((signal.SIGTERM, 143), (signal.SIGINT, 130)), ((signal.SIGINT, 130),))
)
def test_a_signal_finishes_the_step_saves_it_and_says_how_to_go_on(config, whole, tmp_path, number, code):
    folder = tmp_path / "run"
    process = started(config, folder)
    while last_step(folder) < 10:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    assert "Traceback" not in output
    step = saved_steps(folder / "checkpoints")[-1]
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert output.splitlines()[-1] == (
        f"stopped by {name} after step {step} of {STEPS}, saved in {folder}; the same command goes on from there"
    )
    script("train.py", "--config", config, "--workdir", folder)
    assert_same_end(folder, whole)


@pytest.mark.parametrize("harm", thinned(("cut", "altered", "missing"), ("altered",)))
def test_a_damaged_checkpoint_is_named_and_the_newest_good_one_used(config, whole, tmp_path, harm):
    folder = tmp_path / "run"
    cut_back(whole, folder, 12)
    newest = folder / "checkpoints" / "12"
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = file.read_bytes()
    middle = len(content) // 2
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:middle] if harm == "cut" else content[:middle] + b"\0\0\0\0" + content[middle + 4 :])
    finished = script("train.py", "--config", config, "--workdir", folder)
    assert f"checkpoint {newest} is damaged" in finished.stderr
    assert file.name in finished.stderr
    assert (folder / "damaged" / "12").is_dir()
    assert_same_end(folder, whole)


def test_a_full_disk_ends_the_run_with_one_message_and_leaves_the_last_checkpoint_whole(config, whole, tmp_path):
    folder = tmp_path / "run"
    cut_back(whole, folder, 12)
    before = arrays(folder, 12)

    # a limit on the size of a file fails in the same call that a full disk does
    limited = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    arguments = [sys.executable, "-c", limited, *command("train.py", "--config", config, "--workdir", folder)]
    finished = subprocess.run(
        arguments, env=environment(1), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    output = finished.stdout + finished.stderr
    assert finished.returncode == 1, output
    message = next(line for line in output.splitlines() if "could not be written" in line)
    assert "File too large" in message
    assert "the one of step 12 is whole" in message
    assert saved_steps(folder / "checkpoints")[-1] == 12
    assert identical(arrays(folder, 12), before)


@pytest.mark.slow
def test_resuming_from_a_chosen_step_repeats_what_came_after_it(config, whole, tmp_path):
    folder = tmp_path / "run"
    cut_back(whole, folder, 12)
    arguments = ("--config", config, "--workdir", folder, "--resume", "6")
    refused = script("train.py", *arguments, check=False)
    assert refused.returncode == 2
    assert "newer steps" in refused.stderr
    script("train.py", *arguments, "--force")
    assert_same_end(folder, whole)


def test_a_finished_run_is_left_as_it_is(config, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("checkpoints/**/*")}
    finished = script("train.py", "--config", config, "--workdir", whole)
    assert "best, at step" in finished.stdout
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("checkpoints/**/*")} == before


def test_other_data_than_the_checkpoints_is_refused(tmp_path):
    import numpy as np
    from conftest import small_config

    def run(steps):
        raw = small_config(data__name="arrays", data__path=str(tmp_path / "data.npz"), train__steps=steps)
        experiment.run(parse(raw, "small"), tmp_path / "run")

    draw = np.random.default_rng(0)
    for other in (False, True):
        parts = {
            "train_images": draw.integers(0, 256, (80, 8, 8, 1), np.uint8), "train_labels": np.arange(80) % 10,
            "test_images": draw.integers(0, 256, (20, 8, 8, 1), np.uint8), "test_labels": np.arange(20) % 10,
        }  # fmt: skip
        np.savez(tmp_path / "data.npz", **parts)
        if not other:
            run(4)
    with pytest.raises(DataError, match="the checkpoint was written with other data"):
        run(8)
    assert os.path.isdir(tmp_path / "run" / "checkpoints" / "4")
