"""Files changed at random: each is refused as damaged, or read; nothing else happens, at no cost."""

import io
import json
import random
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgpack as packer
import numpy as np
import pytest
import torch
from flax import serialization
from weight_samples import contents, safetensors_bytes, tensor, zipped

from interop.files import FileError, msgpack, npz, torch_files
from interop.files.dtypes import nbytes
from interop.files.safetensors import read_header
from jaxkit.errors import ConfigError

# numbers and tokens that parsers stumble over
TOKENS = [
    b"0", b"-1", b"1e999", b"18446744073709551616", b"9" * 400, b"null", b"true", b"NaN", b"{", b"}", b"[", b"]",
    b'"', b"\\u0000", b"\\ud800", b"\xff", b"\x00", b'"w":', b'"F64"', b'"F4"', b'"shape":[]', b'"__metadata__"', b" ",
]  # fmt: skip


def mutated(raw: bytes, random: random.Random) -> bytes:
    """Replaces, inserts, deletes or doubles a few pieces."""
    data = bytearray(raw)
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(data)) if data else 0
        match random.randrange(5):
            case 0:
                data[place : place + 1] = bytes([random.randrange(256)])
            case 1:
                data[place:place] = random.choice(TOKENS)
            case 2:
                del data[place : place + random.randint(1, 20)]
            case 3:
                data[place : place + random.randint(1, 6)] = random.choice(TOKENS)
            case _:
                end = place + random.randint(1, 30)
                data[place:place] = data[place:end]
    return bytes(data)


def safetensors_sample() -> bytes:
    header = {
        "__metadata__": {"format": "pt", "epoch": "3"},
        "w": tensor((0, 24), (2, 3)),
        "b": tensor((24, 26), (), "BF16"),
        "e": tensor((26, 26), (0, 5), "I64"),
        "m": tensor((26, 30), (4,), "BOOL"),
    }
    return safetensors_bytes(header, bytes(30))


def test_ten_thousand_changed_safetensors_headers_neither_crash_nor_cost_memory():
    sample, choice = safetensors_sample(), random.Random(0)
    header = sample[8:-30]
    refused = []
    tracemalloc.start()
    for number in range(10_000):
        if number % 4:
            changed = mutated(header, choice)
            raw = len(changed).to_bytes(8, "little") + changed + bytes(30)
        else:
            raw = mutated(sample, choice)
        try:
            places, _ = read_header(io.BytesIO(raw), Path("w.safetensors"))
        except FileError as error:
            refused.append(str(error))
        else:
            assert sum(nbytes(place.spec) for place in places.values()) <= len(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # nearly all changes matter; parsing a header of 300 bytes takes some objects, and never what it claims to describe
    assert len(refused) > 5_000
    assert all("w.safetensors" in message for message in refused)
    assert peak - sum(map(sys.getsizeof, refused)) < 2**20


def msgpack_sample() -> bytes:
    tree = {"params": {"w": np.ones((2, 3), np.float32), "b": np.zeros(4, np.int8)}, "step": 3, "name": "x"}
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"0": np.ones(2)}}
    return serialization.msgpack_serialize({**tree, "big": chunked})


def npz_sample() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.ones((2, 3), np.float32), b=np.zeros(4, np.int8))
    return buffer.getvalue()


@pytest.mark.parametrize(("module", "sample"), [(msgpack, msgpack_sample), (npz, npz_sample)], ids=["msgpack", "npz"])
def test_changed_files_neither_crash_nor_cost_memory(tmp_path, module, sample):
    path, choice, original = tmp_path / "file", random.Random(0), sample()
    refused = []
    for _ in range(2_000):
        raw = mutated(original, choice)
        path.write_bytes(raw)
        try:
            with module.open_file(path) as weights:
                assert sum(map(nbytes, weights.specs.values())) <= len(raw)
                contents(weights)
        except FileError as error:
            refused.append(str(error))
    assert 200 < len(refused) < 2_000
    assert all(str(path) in message for message in refused)


def torch_sample(**options) -> bytes:
    weights = {"w": torch.ones(2, 3), "t": torch.ones(3, 2).t(), "b": torch.zeros(4, dtype=torch.bfloat16)}
    buffer = io.BytesIO()
    torch.save({"state_dict": {**weights, "e": torch.zeros(0, 5)}, "epoch": 3}, buffer, **options)
    return buffer.getvalue()


def pickled_members() -> list[tuple[str, bytes]]:
    """The members of a torch archive, but the one by which torch works out where they lie without the list of them."""
    with zipfile.ZipFile(io.BytesIO(torch_sample())) as archive:
        return [(name, archive.read(name)) for name in archive.namelist() if ".format_version" not in name]


def changed_pickle(choice: random.Random) -> bytes:
    """A whole archive around a changed pickle."""
    return zipped(
        [(name, mutated(raw, choice) if name.endswith("data.pkl") else raw) for name, raw in pickled_members()]
    )


def changed_archive(choice: random.Random) -> bytes:
    return mutated(torch_sample(), choice)


def changed_old_file(choice: random.Random) -> bytes:
    return mutated(torch_sample(_use_new_zipfile_serialization=False), choice)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("change", [changed_pickle, changed_archive, changed_old_file])
def test_changed_torch_files_neither_crash_nor_claim_more_than_they_hold(
    tmp_path, change: Callable[[random.Random], bytes]
):
    path, choice = tmp_path / "file", random.Random(0)
    refused = []
    for _ in range(1_000):
        raw = change(choice)
        path.write_bytes(raw)
        try:
            with torch_files.open_file(path, None) as weights:
                assert all(nbytes(spec) <= len(raw) for spec in weights.specs.values())
                contents(weights)
        except (FileError, ConfigError) as error:
            refused.append(str(error))
    assert 500 < len(refused) < 1_000
    assert all(str(path) in message for message in refused)


def test_the_samples_are_whole_before_they_are_changed(tmp_path):
    for module, sample in ((msgpack, msgpack_sample()), (npz, npz_sample())):
        (tmp_path / "file").write_bytes(sample)
        with module.open_file(tmp_path / "file") as weights:
            assert weights.read("w" if module is npz else "params/w").tolist() == [[1, 1, 1], [1, 1, 1]]
    for raw in (torch_sample(), zipped(pickled_members()), torch_sample(_use_new_zipfile_serialization=False)):
        (tmp_path / "file").write_bytes(raw)
        with torch_files.open_file(tmp_path / "file", None) as weights:
            assert weights.read("w").tolist() == [[1, 1, 1], [1, 1, 1]]
    places, metadata = read_header(io.BytesIO(safetensors_sample()), tmp_path)
    assert list(places) == ["w", "b", "e", "m"]
    assert metadata["epoch"] == "3"
    assert json.loads(safetensors_sample()[8:-30])
    assert packer.unpackb(msgpack_sample(), strict_map_key=False)
