"""Eight virtual devices, one compilation cache for the whole run, and the small configs the tests train."""

import gc
import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent

# a suite of its own, for the runner's tests
collect_ignore = ["testing/nasty"]

# Most of the suite's time goes into compiling small programs that run once. Eight devices on two busy cores may wait
# for each other longer than the 40 s after which XLA ends the process.
XLA = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)
# Half of that time is the newer emitters' and the splitting of what is small. XLA ends a process for a flag that it
# does not know, and these are of the releases that were looked at.
if version("jaxlib").startswith("0.10."):
    XLA += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# before jax is imported: it reads both once
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {XLA}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ["JAX_PLATFORMS"] = "cpu"
# Threads that wait for each other over such small arrays cost torch's half of a comparison half its time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tracing makes many objects and little garbage; to look for it as often as usual is a tenth of all time.
gc.set_threshold(100_000, 50, 100)

import pytest  # noqa: E402
import yaml  # noqa: E402

from jaxkit.testing.fixtures import numeric_baseline  # noqa: E402, F401


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
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {XLA}"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Makes a version of a package of one module, to install without a network: ``wheel(2)``."""

    def make(version: int) -> Path:
        name, info = f"nasty_package-{version}-py3-none-any.whl", f"nasty_package-{version}.dist-info"
        path = tmp_path_factory.mktemp("wheel") / name
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("nasty_package.py", f"VERSION = {version}\n")
            file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: nasty-package\nVersion: {version}\n")
            file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{info}/RECORD", "")
        return path

    return make
