"""The same numbers on one device, on eight under jit, on eight under pmap, and in two processes."""

import json
import os
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from conftest import ROOT, command, environment, script, thinned
from runs import largest_difference, learned

from jaxkit import experiment
from jaxkit.config import load

pytestmark = pytest.mark.level(1)

# Sums over the batch come in another order, 1e-7 apart. Where that carries an activation over the kink of a ReLU, its
# gradient jumps; the parameters, which move by 1e-2 in the test, jump by 1e-6 at this learning rate. (The blank pixels
# of digits share one activation and would jump together, so the images are noise.)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    import yaml
    from conftest import small_config

    folder = tmp_path_factory.mktemp("config")
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (400, 8, 8, 3), np.uint8), draw.integers(0, 10, 400)
    splits = {"train_images": images[:300], "train_labels": labels[:300]}
    np.savez(folder / "noise.npz", **splits, test_images=images[300:], test_labels=labels[300:])
    # augmentation, batch statistics, momentum, decay and an average: everything that could depend on the layout
    raw = small_config(
        data__name="arrays",
        data__path=str(folder / "noise.npz"),
        data__augment={"crop_padding": 1, "flip": 0.5, "rotation": 10.0},
        optimizer__learning_rate=0.002,
        optimizer__weight_decay=5e-4,
        optimizer__ema={"decay": 0.9},
        train__matmul_precision="highest",
    )
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """Trains on so many devices, once for each setting; returns the workdir."""
    folders = {}

    def train(devices: int, *overrides: str):
        if (devices, overrides) not in folders:
            folder = tmp_path_factory.mktemp("run")
            train_on(devices, config, folder, *overrides)
            folders[devices, overrides] = folder
        return folders[devices, overrides]

    return train


def train_on(devices: int, config, folder, *overrides) -> None:
    """Trains on the eight devices of this process, or on fewer in one of its own."""
    if devices == 8:
        experiment.run(load(config, overrides), folder)
    else:
        script("train.py", "--config", config, "--workdir", folder, *overrides, devices=devices)


@pytest.mark.parametrize("executor", ["jit", "pmap"])
def test_eight_devices_compute_what_one_does(trained, executor):
    one, eight = trained(1), trained(8, f"train.parallel={executor}")
    assert largest_difference(learned(one, 20), learned(eight, 20)) <= TOLERANCE
    metrics = [json.loads((folder / "results.json").read_text()) for folder in (one, eight)]
    assert metrics[1]["devices"]["count"] == 8
    assert metrics[0]["last"]["loss"] == pytest.approx(metrics[1]["last"]["loss"], abs=TOLERANCE)


def test_unsynchronised_batch_norm_is_the_same_under_jit_and_pmap_and_differs_from_the_synchronised(trained):
    alone = [trained(8, f"train.parallel={kind}", "train.sync_batch_norm=false") for kind in ("jit", "pmap")]
    assert largest_difference(learned(alone[0], 20), learned(alone[1], 20)) <= TOLERANCE
    assert largest_difference(learned(alone[0], 20), learned(trained(1), 20)) > 1e-3


def test_accumulation_is_the_same_under_jit_and_pmap(trained):
    both = [trained(8, f"train.parallel={kind}", "optimizer.accumulate=2") for kind in ("jit", "pmap")]
    assert largest_difference(learned(both[0], 20), learned(both[1], 20)) <= TOLERANCE


def test_a_checkpoint_of_eight_devices_under_pmap_goes_on_under_jit_on_one(trained, config, tmp_path):
    half = tmp_path / "run"
    train_on(8, config, half, "train.parallel=pmap", "train.steps=10")
    train_on(1, config, half)
    assert largest_difference(learned(half, 20), learned(trained(1), 20)) <= TOLERANCE


def two_processes(config, folder, *overrides):
    """Starts two processes of four devices each that train together over the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = ("--config", config, "--workdir", folder, *overrides)
    flags = ("--coordinator-address", address, "--num-processes", 2, "--process-id")
    return [
        subprocess.Popen(
            command("train.py", *arguments, *flags, process),
            env=environment(4),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]


def ended(processes) -> list[str]:
    outputs = []
    for process in processes:
        try:
            outputs.append(process.communicate(timeout=240)[0])
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise
    return outputs


@pytest.mark.parametrize("executor", thinned(["jit", "pmap"], ["jit"]))
def test_two_processes_of_four_devices_compute_what_one_of_eight_does(trained, config, tmp_path, executor):
    folder = tmp_path / "run"
    processes = two_processes(config, folder, f"train.parallel={executor}")
    outputs = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert largest_difference(learned(folder, 20), learned(trained(8), 20)) <= TOLERANCE
    results = json.loads((folder / "results.json").read_text())
    assert results["devices"]["processes"] == 2
    assert results["last"]["top1"] == json.loads((trained(8) / "results.json").read_text())["last"]["top1"]


@pytest.mark.parametrize("goes_on", thinned([False, True], [False]))
def test_a_signal_to_one_process_stops_both_at_the_same_step_from_which_the_run_goes_on(config, tmp_path, goes_on):
    folder = tmp_path / "run"
    # no step is slow enough to hit one of twenty: the run is long, and cut down to twenty when it goes on
    processes = two_processes(config, folder, "train.steps=100000", "train.log_every=1", "train.eval_every=100000")
    deadline = time.monotonic() + 200
    while not (folder / "checkpoints" / "10").is_dir() and time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGTERM)
    outputs = ended(processes)
    assert [process.returncode for process in processes] == [143, 143], outputs
    assert "the same command goes on from there" in outputs[1]
    step = max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
    assert f"after step {step} " in outputs[0]
    if not goes_on:
        return

    whole = tmp_path / "whole"
    steps = (f"train.steps={step + 5}", "train.eval_every=100000", f"train.checkpoint_every={step}")
    for target in (folder, whole):
        train_on(8, config, target, *steps)
    assert largest_difference(learned(folder, step + 5), learned(whole, step + 5)) <= 10 * TOLERANCE
