import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT

from interop.files import open_weights, write_weights
from interop.layout import Spec

MIB = 2**20
TENSORS = 16
SPEC = Spec((2048, 4096), np.dtype(ml_dtypes.bfloat16))  # 16 MiB
PROGRAM = """
import json, sys
from interop.files import open_weights, torch_files, write_weights
source, destination, format, step = sys.argv[1:]
if source.endswith(".pt") or destination.endswith(".pt"):
    torch_files.require_torch()
elif step == "orbax":
    import tensorstore
def peak():
    # what getrusage says is never less than the memory of the process that started this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
before = peak()
with open_weights(source) as weights:
    opened = peak()
    pairs = ((name, weights.read(name)) for name in weights.specs)
    write_weights(destination, weights.specs, pairs, format=format, metadata={}, max_shard_size=50 * 2**20, force=True)
print(json.dumps([opened - before, peak() - opened]))
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """256 MiB in shards of 48."""
    folder = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(0)
    specs = {f"layer{number}": SPEC for number in range(TENSORS)}
    arrays = ((name, np.frombuffer(random.bytes(16 * MIB), SPEC.dtype).reshape(SPEC.shape)) for name in specs)
    options = {"metadata": {}, "max_shard_size": 50 * MIB, "force": False}
    return write_weights(folder / "m.safetensors", specs, arrays, format="torch", **options)[-1]


def copied(source, destination, format, step="") -> tuple[int, int]:
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), str(destination), format, step],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    opened, read_and_written = json.loads(finished.stdout)
    return opened, read_and_written


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize(
    ("name", "format"),
    [("m.safetensors", "torch"), ("m.pt", "torch"), ("m.msgpack", "flax"), ("m.npz", "flax"), ("m", "flax")],
)
def test_a_large_checkpoint_goes_through_a_tensor_at_a_time(tmp_path, sharded, name, format):
    back = tmp_path / "back.safetensors"
    destination = tmp_path / name
    opened, written = copied(sharded, destination, format)
    source = destination if destination.exists() else destination.with_name("m.safetensors.index.json")
    reopened, returned = copied(source, back, format, step="orbax" if name == "m" else "")
    # Headers are read at opening; then one tensor of 16 MiB is in memory at a time, two where a checkpoint of Orbax is
    # read, and up to 70 MiB of torch's program, if it was not in the page cache. A whole copy would be 256 MiB.
    assert max(opened, reopened) < 24 * MIB
    assert max(written, returned) < 128 * MIB
    with open_weights(sharded) as weights, open_weights(back.with_name("back.safetensors.index.json")) as copies:
        for tensor in weights.specs:
            assert weights.read(tensor).view(np.uint8).data == copies.read(tensor).view(np.uint8).data
