import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT

from interop.files import open_weights, write_weights
from interop.layout import Spec

MIB = 2**20
TENSORS = 10
SPEC = Spec((2048, 4096), np.dtype(ml_dtypes.bfloat16))  # 16 MiB
PROGRAM = """
import json, resource, sys
from interop.files import open_weights, torch_files, write_weights
source, destination, format, step = sys.argv[1:]
if source.endswith(".pt") or destination.endswith(".pt"):
    torch_files.require_torch()
elif step == "orbax":
    import tensorstore
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
with open_weights(source) as weights:
    opened = peak()
    pairs = ((name, weights.read(name)) for name in weights.specs)
    write_weights(destination, weights.specs, pairs, format=format, metadata={}, max_shard_size=50 * 2**20, force=True)
print(json.dumps([opened - before, peak() - opened]))
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """160 MiB in shards of 48."""
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
    # Headers are read at opening. A tensor and its successor, of 16 MiB, are in memory together, with what allocators
    # and libraries take the first time; a whole copy would be 160 MiB.
    print(opened, reopened, written, returned)
    assert max(opened, reopened) < 24 * MIB
    assert max(written, returned) < 64 * MIB
    with open_weights(sharded) as weights, open_weights(back.with_name("back.safetensors.index.json")) as copies:
        for tensor in weights.specs:
            assert weights.read(tensor).view(np.uint8).data == copies.read(tensor).view(np.uint8).data
