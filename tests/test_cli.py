import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from conftest import ROOT, command, environment, script, small_config, thinned
from PIL import Image
from sklearn.datasets import load_digits

from jaxkit import experiment
from jaxkit.config import parse

pytestmark = pytest.mark.level(1)


def test_help_lists_tasks_and_common_keys_and_imports_nothing_heavy():
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['train.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'scripts' / 'train.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'jax', 'flax', 'optax', 'numpy', 'torch', 'grain', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for word in ("classify", "distill", "data.batch_size", "train.parallel", "--resume"):
        assert word in finished.stdout


def test_a_wrong_key_ends_with_code_2_one_message_and_no_traceback():
    finished = script("train.py", "--config", "configs/distill_digits.yaml", "task.los=kd", check=False)
    assert finished.returncode == 2
    assert "task.los" in finished.stderr
    assert "'loss'" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_wrong_flag_ends_with_code_2():
    for arguments in (["--confg", "x"], ["--config", "configs/distill_digits.yaml", "--resume", "soon"], []):
        assert script("train.py", *arguments, check=False).returncode == 2


def test_print_config_shows_every_default_and_trains_nothing(tmp_path, config_file):
    shown = script("train.py", "--config", config_file(), "--print-config", "--workdir", tmp_path / "run").stdout
    assert "keep_best: 1" in shown
    assert not (tmp_path / "run").exists()


def test_training_then_evaluating_gives_the_metrics_the_run_reported(tmp_path, config_file):
    folder = tmp_path / "run"
    path = config_file(train__steps=30, optimizer__ema={"decay": 0.9}, tracking__tensorboard=True)
    finished = script("train.py", "--config", path, "--workdir", folder)
    results = json.loads((folder / "results.json").read_text())
    assert set(results) >= {"best", "last", "train", "devices", "versions"}
    assert results["train"].keys() >= {"seconds", "compile_seconds", "examples_per_second"}
    assert results["train"]["recompilations"] == 0
    assert f"{results['best']['top1']:.4g}" in finished.stdout
    written = {path.name for path in folder.iterdir()}
    expected = {"config.yaml", "environment.json", "metrics.jsonl", "curves.png", "checkpoints", "tensorboard"}
    assert expected <= written
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["jax"]
    assert environment["config"] == results["config"]

    for arguments, expected in ((), results["best"]), (("--step", "30"), results["last"]):
        printed = json.loads(script("evaluate.py", "--workdir", folder, *arguments).stdout)
        assert printed == expected
        assert json.loads((folder / f"evaluation_{expected['step']}.json").read_text()) == expected


def test_evaluating_what_is_not_there_is_one_message(tmp_path, config_file):
    finished = script("evaluate.py", "--workdir", tmp_path / "none", check=False)
    assert finished.returncode == 2
    assert "no run is there" in finished.stderr
    folder = tmp_path / "run"
    experiment.run(parse(small_config(train__steps=2), "small"), folder)
    finished = script("evaluate.py", "--workdir", folder, "--step", "7", check=False)
    assert finished.returncode == 1
    assert "the steps saved are: 2" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_only_some_of_the_flags_for_several_processes_is_an_error(config_file):
    finished = script("train.py", "--config", config_file(), "--num-processes", "2", check=False)
    assert finished.returncode == 2
    assert "go together" in finished.stderr


def test_every_script_is_short():
    for path in (ROOT / "scripts").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path


def test_the_import_contracts_hold():
    finished = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.slow
def test_corrupt_images_that_are_skipped_are_named_and_counted(tmp_path):
    images, labels = load_digits(return_X_y=True)
    for split, some in (("train", slice(0, 100)), ("val", slice(100, 140))):
        for i, (pixels, label) in enumerate(zip(images[some], labels[some], strict=True)):
            folder = tmp_path / "data" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels.reshape(8, 8) * 15).astype(np.uint8)).save(folder / f"{i}.png")
    bad = next((tmp_path / "data" / "train" / "3").glob("*.png"))
    bad.write_bytes(b"not an image")
    path = tmp_path / "c.yaml"
    data = {"name": "image_folder", "root": str(tmp_path / "data"), "channels": 1, "batch_size": 64}
    path.write_text(yaml.safe_dump(small_config(data=data, train__steps=3)))
    stopped = script("train.py", "--config", path, "--workdir", tmp_path / "run", check=False)
    assert stopped.returncode != 0
    assert str(bad) in stopped.stderr
    assert "Traceback" not in stopped.stderr
    arguments = ("data.on_corrupt=skip", "--workdir", tmp_path / "skipped")
    finished = script("train.py", "--config", path, *arguments)
    assert f"skipped {bad}" in finished.stderr
    assert json.loads((tmp_path / "skipped" / "results.json").read_text())["train"]["corrupt_images"] == 1


@pytest.mark.parametrize(
    ("number", "code", "pause"),
    thinned(
        [(*ends, pause) for pause in (0.3, 1.0, 2.0, 3.5) for ends in ((signal.SIGINT, 130), (signal.SIGTERM, 143))],
        [(signal.SIGINT, 130, 1.0), (signal.SIGTERM, 143, 3.5)],
    ),
)
def test_a_signal_before_the_loop_ends_at_once_with_one_line(tmp_path, config_file, number, code, pause):
    arguments = command("train.py", "--config", config_file(train__steps=10**6), "--workdir", tmp_path / "run")
    process = subprocess.Popen(
        arguments, env=environment(1), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(pause)
    process.send_signal(number)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == code, output + errors
    assert "Traceback" not in errors
    assert errors.count("stopped by") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--coordinator-address", "foo", "--num-processes", "2", "--process-id", "0"), "write HOST:PORT"),
        (("--coordinator-address", "foo:1", "--num-processes", "2", "--process-id", "5"), "none of 0 to 1"),
        (("--distributed",), "finds no cluster"),
        (("--resume", "²"), "neither a step"),
    ],
)
def test_flags_that_make_no_sense_are_one_message(config_file, flags, message):
    finished = script("train.py", "--config", config_file(), *flags, check=False)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


def test_no_placeholder_is_left_in_what_people_read():
    found = [
        (path, word)
        for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*.yaml"))
        for word in re.findall(r"@[A-Za-z_]+@", path.read_text())
    ]
    assert not found
