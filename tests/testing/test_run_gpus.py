"""GPU slots are file locks: of the caller's GPUs, one holder each, free when the holder is dead."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest
from conftest import ROOT

from jaxkit.errors import ConfigError
from jaxkit.testing import gpus, pool
from jaxkit.testing.options import Options
from jaxkit.testing.run import Run

WORKER = """
import json, os, pathlib, time, pytest

@pytest.mark.parametrize("number", range(2))
def test_notes_its_gpu(number):
    began = time.time()
    time.sleep(0.3)
    found = [os.environ["CUDA_VISIBLE_DEVICES"], began, time.time(), os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"]]
    pathlib.Path(f"{__name__}.{number}.gpu").write_text(json.dumps(found))

def test_dies_and_is_replaced():
    os.kill(os.getpid(), 9)

def test_has_a_gpu_after_that():
    found = [os.environ["CUDA_VISIBLE_DEVICES"], time.time(), time.time(), ""]
    pathlib.Path(f"{__name__}.after.gpu").write_text(json.dumps(found))
"""


@pytest.fixture
def no_program(monkeypatch):
    monkeypatch.setattr(gpus.shutil, "which", lambda _: None)


@pytest.mark.parametrize(
    ("own", "chosen", "visible"),
    [
        (None, None, []),
        (None, "0,1", ["0", "1"]),
        ("4,5", None, ["4", "5"]),
        ("4,5", "1", ["5"]),
        ("GPU-8a1b, GPU-77cc", "1,0", ["GPU-77cc", "GPU-8a1b"]),
        ("", None, []),
        ("-1", None, []),
    ],
)
def test_the_callers_choice_is_what_workers_choose_from(monkeypatch, no_program, own, chosen, visible):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if own is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", own)
    assert gpus.visible(chosen) == visible


@pytest.mark.parametrize("chosen", ["2", "x", "0,0", "-1", ""])
def test_a_gpu_that_the_caller_does_not_have_is_refused(monkeypatch, chosen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(ConfigError, match="--gpus"):
        gpus.visible(chosen)


def test_slots_are_spread_over_gpus_and_shared_with_other_runners(tmp_path):
    slots, other = gpus.Slots(["4", "5"], 4, tmp_path), gpus.Slots(["5"], 1, tmp_path)
    claimed = [slots.claim() for _ in range(4)]
    assert [slot.gpu for slot in claimed] == ["4", "5", "4", "5"]
    assert slots.claim() is None
    assert other.claim() is None
    slots.release(claimed[1])
    assert other.claim() is None
    slots.release(claimed[3])
    assert other.claim().gpu == "5"


def test_workers_of_one_gpu_share_its_memory_and_the_callers_settings_stay(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    variables = gpus.Slots(["7"], 3, tmp_path).claim().variables
    assert variables == {
        "CUDA_VISIBLE_DEVICES": "7",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.300",
    }


def test_without_gpus_nothing_is_locked_or_set(tmp_path):
    assert gpus.Slots([], 4, tmp_path / "none").claim() == gpus.Slot(None, None, {})
    assert not (tmp_path / "none").exists()


def test_a_number_and_a_uuid_of_one_gpu_are_one_lock(tmp_path, monkeypatch):
    rows = "0, GPU-8a1b-22\n1, GPU-77cc-33\n"
    monkeypatch.setattr(gpus, "_query", lambda _: rows)
    by_number, by_name = gpus.Slots(["0"], 1, tmp_path), gpus.Slots(["GPU-8a1b"], 1, tmp_path)
    slot = by_number.claim()
    assert by_name.claim() is None
    by_number.release(slot)
    assert by_name.claim().gpu == "GPU-8a1b"


def test_a_lock_file_of_another_user_needs_no_right_to_write(tmp_path):
    (tmp_path / "0").touch(mode=0o444)
    assert gpus.Slots(["0"], 1, tmp_path).claim().gpu == "0"


def test_nvidia_smi_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(gpus.shutil, "which", lambda _: str(program))
    monkeypatch.setattr(gpus, "_PATIENCE", 0.2)
    assert gpus.use("0") == ""


def test_a_lock_goes_with_the_process_that_inherited_it(tmp_path):
    slots = gpus.Slots(["0"], 1, tmp_path)
    slot = slots.claim()
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[slot.lock])
    slots.release(slot)
    assert slots.claim() is None
    holder.kill()
    holder.communicate()
    assert slots.claim().gpu == "0"


def test_no_two_workers_are_on_one_gpu_at_a_time_and_a_replaced_worker_has_one(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / f"test_{name}.py").write_text(WORKER)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    command = [sys.executable, str(ROOT / "scripts" / "run_tests.py"), f"--test_dir={tmp_path}", "--subprocess"]
    finished = subprocess.run([*command, "--parallel=auto"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "3 crashed, 9 passed" in finished.stdout
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*.gpu")]
    assert len(found) == 9
    assert {gpu for gpu, *_ in found} == {"4", "5"}
    assert {memory for *_, memory in found} == {"0.900", ""}
    for gpu in ("4", "5"):
        spans = sorted(span[1:3] for span in found if span[0] == gpu)
        assert all(first[1] <= second[0] for first, second in pairwise(spans))


def test_the_use_of_the_gpu_is_noted_after_a_slow_test(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" >> "$0.log"\necho "1024 MiB, 143771 MiB, 87 %"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(pool, "_SLOW_SECONDS", 0.5)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text("import time\ndef test_slow(): time.sleep(0.6)\ndef test_quick(): pass\n")
    results = Run(Options(test_dir=tmp_path)).done().results
    assert {result.name.partition("::")[2]: result.gpu for result in results} == {
        "test_slow": "1024 MiB, 143771 MiB, 87 %",
        "test_quick": "",
    }
    assert "--id=3" in program.with_name("nvidia-smi.log").read_text()
