"""Eight virtual devices, one compilation cache for the whole run, and the small configs the tests train."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Most of the suite's time goes into compiling small programs that run once.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# before jax is imported: it reads both once
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ["JAX_PLATFORMS"] = "cpu"

import pytest  # noqa: E402
import yaml  # noqa: E402


def thinned(values, kept) -> list:
    """Parameters of a test that runs on ``kept`` of the values always, and on the others with ``-m slow``."""
    marks = {True: (), False: pytest.mark.slow}
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=marks[v in kept]) for v in values]


def small_config(**changes) -> dict:
    """A classifier of digits that trains in seconds; ``section__key=value`` changes it."""
    raw = {
        "task": {"name": "classify", "model": {"name": "cifar_resnet_tiny"}},
        "data": {"name": "digits", "batch_size": 64, "eval_batch_size": 200, "augment": {"crop_padding": 1}},
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        "train": {"steps": 20, "eval_every": 10, "checkpoint_every": 10, "log_every": 5},
        "tracking": {"progress": False, "tensorboard": False},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = raw
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return raw


@pytest.fixture(autouse=True, scope="module")
def free_programs():
    """Frees what a file's tests have compiled: a process that runs many files would grow by gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture
def config_file(tmp_path):
    """Writes a small config to a file: ``config_file(train__steps=5)``."""

    def write(name="config.yaml", **changes):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(small_config(**changes)))
        return path

    return write


def script(name: str, *arguments, devices: int = 1, check: bool = True, **options) -> subprocess.CompletedProcess:
    """Runs one of the scripts to its end, on virtual devices, in a process of its own."""
    finished = subprocess.run(
        command(name, *arguments), env=environment(devices), capture_output=True, text=True, cwd=ROOT, **options
    )
    if check and finished.returncode:
        raise AssertionError(f"{name} ended with {finished.returncode}:\n{finished.stdout}\n{finished.stderr}")
    return finished


def command(name: str, *arguments) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]


def environment(devices: int) -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK}"}
