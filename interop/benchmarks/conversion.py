"""What conversion costs: peak memory and time of scripts/convert.py on a sharded bfloat16 checkpoint."""

import hashlib
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from flax import linen as nn

from interop import layers
from interop.files import write_weights
from interop.layout import Spec
from jaxkit.errors import ConfigError

WIDTH, PAIRS = 4096, 8
LARGEST = 2 * WIDTH * 4 * WIDTH
_SHARD = 6 * 10**8
_CONVERT = Path(__file__).parent.parent.parent / "scripts" / "convert.py"
# Without arguments it measures the interpreter alone.
_PROGRAM = """
import re, runpy, sys
sys.argv = sys.argv[1:]
try:
    if sys.argv:
        runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    with open("/proc/self/status") as status:
        print(int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1]) * 1024)
"""


class Network(nn.Module):
    """Eight pairs of dense layers, of 0.27 GB in bfloat16 each pair."""

    @nn.compact
    def __call__(self, x):
        for i in range(PAIRS):
            x = nn.Dense(WIDTH, name=f"down{i}")(nn.relu(nn.Dense(4 * WIDTH, name=f"up{i}")(x)))
        return x


MODEL = (
    Network(),
    (("layers.{i}.up", "up{i}", layers.dense), ("layers.{i}.down", "down{i}", layers.dense)),
    jax.ShapeDtypeStruct((1, WIDTH), "float32"),
)


def measure(folder: Path | None, only: str | None = None) -> Iterator[str]:
    """Makes a checkpoint of 2.1 GB in four files, converts it both ways, and says a line of each.

    Time is measured against ``cp`` of the same bytes and one pass of SHA-256 over the copy. All write new files and
    none is deleted before the end: a virtual machine may be slow to give memory out, and quick where some was just
    freed. Memory is that of the whole process above a Python interpreter's that has imported nothing.

    ``folder`` has room for four copies; None: a temporary one.

    Raises:
        ConfigError: for ``only``: the suite is one benchmark.
    """
    if only is not None:
        raise ConfigError(f"--only {only}: this suite is one benchmark")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        here = Path(temporary)
        _make(here / "torch")
        (here / "flax").mkdir()
        _, interpreter = _measured()
        base = _copied_and_hashed(here / "torch", here / "copy")
        yield f"cp and one hash pass: {base:.1f} s; largest tensor {LARGEST / 1e6:.0f} MB"
        # shards in, shards out
        ways = {"to-flax": ("torch", "flax/m.safetensors"), "to-torch": ("flax/m.safetensors.index.json", "back")}
        for way, (source, destination) in ways.items():
            # what is read lies in memory, as for cp
            _hash(here / source.partition("/")[0])
            arguments = (way, here / source, here / destination, "--model", f"{__file__}:MODEL")
            took, peak = _measured(_CONVERT, *arguments, "--max-shard-size", _SHARD)
            above = (peak - interpreter) / 1e6
            yield f"{way}: {took:.1f} s, {took / base:.2f} of that; {above:.0f} MB above the interpreter"


def _make(folder: Path) -> None:
    """Writes the checkpoint as torch would name it."""
    shapes = {"up.weight": (4 * WIDTH, WIDTH), "up.bias": (4 * WIDTH,)}
    shapes |= {"down.weight": (WIDTH, 4 * WIDTH), "down.bias": (WIDTH,)}
    specs = {
        f"layers.{i}.{name}": Spec(shape, np.dtype(ml_dtypes.bfloat16))
        for i in range(PAIRS)
        for name, shape in shapes.items()
    }
    rng = np.random.default_rng(0)
    arrays = (
        (name, rng.standard_normal(math.prod(spec.shape), np.float32).reshape(spec.shape).astype(spec.dtype))
        for name, spec in specs.items()
    )
    options = {"metadata": {}, "max_shard_size": _SHARD, "force": False}
    write_weights(folder, specs, arrays, format="torch", **options)


def _measured(*arguments: str | Path) -> tuple[float, int]:
    """Seconds that a program takes, and the peak of its resident memory in bytes."""
    began = time.perf_counter()
    command = [sys.executable, "-c", _PROGRAM, *map(str, arguments)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began, int(finished.stdout.split()[-1])


def _copied_and_hashed(source: Path, copy: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["cp", "-r", source, copy], check=True)
    _hash(copy)
    return time.perf_counter() - began


def _hash(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
