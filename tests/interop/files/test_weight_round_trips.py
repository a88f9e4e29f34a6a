import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from weight_samples import contents, every_type, identical, random_array, specs_of, write

from interop.files import open_weights, write_weights
from interop.files.dtypes import DTYPES
from interop.layout import Spec
from jaxkit.errors import ConfigError

# complex128 has no code in safetensors, e8m0 none in TensorStore's zarr
CASES = [
    ("w.safetensors", "flax", ("complex128",)),
    ("w.safetensors", "torch", ("complex128",)),
    ("w.pt", "torch", ()),
    ("w.pth", "torch", ()),
    ("w.bin", "torch", ()),
    ("w.msgpack", "flax", ()),
    ("w.npz", "flax", ()),
    ("folder", "flax", ("float8_e8m0fnu",)),
    ("folder", "torch", ("complex128",)),
]
SMALL = {
    "params/head/kernel": random_array(np.dtype(ml_dtypes.bfloat16), (4, 3)),
    "params/head/bias": random_array(np.dtype(np.float32), (3,)),
    "batch_stats/norm/mean": random_array(np.dtype(np.float16), ()),
}


@pytest.mark.parametrize(("name", "format", "without"), CASES)
def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path, name, format, without):
    arrays = every_type(format, without)
    write(tmp_path / name, arrays, format)
    with open_weights(tmp_path / name) as weights:
        assert weights.format == format
        assert list(weights.specs.items()) == list(specs_of(arrays).items())
        assert identical(contents(weights), arrays)


@pytest.mark.parametrize(("name", "format", "without"), CASES)
def test_the_same_weights_give_the_same_bytes(tmp_path, name, format, without):
    arrays = every_type(format, without)
    files = {}
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        write(tmp_path / run / name, arrays, format, metadata={"tool": "jaxkit"})
        root = tmp_path / run
        files[run] = {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    assert files["one"] == files["two"]


@pytest.mark.parametrize(
    ("name", "format"),
    [("w.safetensors", "flax"), ("w.safetensors", "torch"), ("w.pt", "torch"), ("w.npz", "flax"), ("orbax", "flax")],
)
def test_metadata_travels_with_the_weights(tmp_path, name, format):
    write(tmp_path / name, SMALL, format, metadata={"source": "größe.pth", "sha256": "00"})
    with open_weights(tmp_path / name) as weights:
        assert {key: weights.metadata[key] for key in ("source", "sha256")} == {"source": "größe.pth", "sha256": "00"}


@pytest.mark.parametrize("name", ["w.safetensors", "w.msgpack", "w.npz", "orbax"])
@pytest.mark.parametrize(
    "view",
    [lambda a: a.T, lambda a: a[::2, ::-1], lambda a: np.asfortranarray(a), lambda a: a.astype(">f4")],
    ids=["transposed", "sliced", "fortran", "big_endian"],
)
def test_arrays_of_any_memory_layout_are_stored_as_what_they_are(tmp_path, name, view):
    array = view(np.arange(24, dtype=np.float32).reshape(6, 4))
    specs = {"params/w": Spec(array.shape, np.dtype(np.float32))}
    options = {"metadata": {}, "max_shard_size": None, "force": False}
    write_weights(tmp_path / name, specs, [("params/w", array)], format="flax", **options)
    with open_weights(tmp_path / name) as weights:
        np.testing.assert_array_equal(weights.read("params/w"), array)


def test_the_safetensors_package_reads_what_is_written_and_the_other_way_round(tmp_path):
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    arrays = every_type("torch", without=("complex128",))
    write(tmp_path / "ours.safetensors", arrays, "torch", metadata={"a": "b"})
    theirs = load_file(tmp_path / "ours.safetensors")
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"a": "b", "format": "pt"}
    assert theirs.keys() == arrays.keys()
    for name, tensor in theirs.items():
        assert str(tensor.dtype).removeprefix("torch.") == str(arrays[name].dtype)
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == arrays[name].tobytes()

    save_file(theirs, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    with open_weights(tmp_path / "theirs.safetensors") as weights:
        assert weights.format == "torch"
        assert identical(contents(weights), arrays)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_torch_reads_what_is_written_and_the_other_way_round(tmp_path, options):
    import torch

    # the old format has no place for the types younger than it
    young = ("uint16", "uint32", "uint64", *(name for name in DTYPES if "float8" in name))
    arrays = every_type("torch", young if options else ())
    write(tmp_path / "ours.pt", arrays, "torch")
    for mmap in (False, True):
        theirs = torch.load(tmp_path / "ours.pt", weights_only=True, mmap=mmap)
        assert theirs.keys() == arrays.keys()
        for name, tensor in theirs.items():
            assert tensor.shape == arrays[name].shape
            assert str(tensor.dtype).removeprefix("torch.") == str(arrays[name].dtype)
            assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == arrays[name].tobytes()
    torch.save({name: tensor.clone() for name, tensor in theirs.items()}, tmp_path / "theirs.pt", **options)
    with open_weights(tmp_path / "theirs.pt") as weights:
        assert identical(contents(weights), arrays)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_torch_views_parameters_and_tied_tensors_are_read_as_they_look(tmp_path, options):
    import torch

    base = torch.arange(20, dtype=torch.float32)
    tensors = {
        "whole": base,
        "every_other": base[2:10:2],
        "transposed": torch.nn.Parameter(base.reshape(4, 5)).T,
        "repeated": base[:1].expand(3, 1),
        "tied": base,
    }
    torch.save(tensors, tmp_path / "views.pt", **options)
    with open_weights(tmp_path / "views.pt") as weights:
        expected = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
        assert identical(contents(weights), expected)


def test_flax_reads_what_is_written_and_the_other_way_round_to_the_byte(tmp_path):
    from flax import serialization, traverse_util

    arrays = dict(sorted(every_type("flax").items()))  # Flax sorts what it writes
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    write(tmp_path / "ours.msgpack", arrays)
    raw = serialization.msgpack_serialize(tree)
    assert (tmp_path / "ours.msgpack").read_bytes() == raw
    theirs = traverse_util.flatten_dict(serialization.msgpack_restore(raw), sep="/")
    assert identical(theirs, arrays)
    with open_weights(tmp_path / "ours.msgpack") as weights:
        assert identical(contents(weights), arrays)


def test_arrays_that_flax_cuts_into_chunks_are_put_together_and_cut_alike(tmp_path, monkeypatch):
    from flax import serialization

    from interop.files import msgpack

    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    monkeypatch.setattr(msgpack, "_CHUNK", 64)
    arrays = {"params/b": np.ones(3, np.float32), "params/w": random_array(np.dtype(ml_dtypes.bfloat16), (7, 11))}
    write(tmp_path / "w.msgpack", arrays)
    raw = serialization.msgpack_serialize({"params": {name[-1]: array for name, array in arrays.items()}})
    assert (tmp_path / "w.msgpack").read_bytes() == raw
    with open_weights(tmp_path / "w.msgpack") as weights:
        assert identical(contents(weights), arrays)


@pytest.mark.parametrize("target", ["none", "arrays"])
def test_orbax_restores_what_is_written(tmp_path, target):
    import jax
    import orbax.checkpoint as ocp
    from flax import traverse_util

    # without x64 jax has no 64-bit numbers; zero-size and byte types go through
    wide = ("float8_e8m0fnu", "float64", "int64", "uint64", "complex128")
    arrays = every_type("flax", wide if target == "arrays" else wide[:1])
    write(tmp_path / "ours", arrays)
    with ocp.StandardCheckpointer() as reader:
        tree = reader.metadata(tmp_path / "ours").item_metadata.tree
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)
        restored = reader.restore(tmp_path / "ours", *([like] if target == "arrays" else []))
    found = {name: np.asarray(array) for name, array in traverse_util.flatten_dict(restored, sep="/").items()}
    assert identical(found, arrays)


@pytest.mark.parametrize("options", [{}, {"use_ocdbt": False}, {"use_zarr3": True}], ids=["ocdbt", "folders", "zarr3"])
def test_orbax_checkpoints_of_every_layout_are_read(tmp_path, options):
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    tree = {
        "params": {"kernel": jnp.zeros((3, 4), jnp.bfloat16), "bias": np.arange(3.0), "empty": {}},
        "layers": [np.ones(2, np.int8), None],
        "step": 7,
        "name": "text",
    }
    with ocp.PyTreeCheckpointer(**options) as writer:
        writer.save(tmp_path / "theirs", tree)
    with open_weights(tmp_path / "theirs") as weights:
        expected = {
            "layers/0": np.ones(2, np.int8),
            "params/bias": np.arange(3.0),
            "params/kernel": np.zeros((3, 4), ml_dtypes.bfloat16),
            "step": np.array(7),
        }
        assert identical(contents(weights), expected)
        assert weights.notes == ["left out, being no tensors: name (string)"]


def test_numpy_reads_what_is_written_and_the_other_way_round(tmp_path):
    arrays = every_type("flax")
    write(tmp_path / "ours.npz", arrays)
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as theirs:
        for name, array in arrays.items():
            assert theirs[name].tobytes() == array.tobytes()
            assert theirs[name].shape == array.shape
    plain = {name: a for name, a in arrays.items() if a.dtype.kind in "biufc" and "float8" not in name}
    plain["params/fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez(tmp_path / "theirs.npz", **plain, swapped=np.arange(3, dtype=">i4"))
    with open_weights(tmp_path / "theirs.npz") as weights:
        assert identical(contents(weights), {**plain, "swapped": np.arange(3, dtype=np.int32)})


@pytest.mark.parametrize("format", ["torch", "flax"])
def test_shards_hold_each_tensor_once_and_other_programs_find_them(tmp_path, format):
    from safetensors import safe_open

    separator = "." if format == "torch" else "/"
    arrays = {f"block{i}{separator}w": random_array(np.dtype(np.float32), (10,), i) for i in range(5)}
    written = write(tmp_path / "model.safetensors", arrays, format, max_shard_size=80)
    assert [path.name for path in written] == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads(written[-1].read_text())
    assert index["metadata"] == {"total_size": 200, "total_parameters": 50}
    for name, shard in index["weight_map"].items():
        with safe_open(tmp_path / shard, "np") as file:
            assert file.get_tensor(name).tobytes() == arrays[name.replace(".", separator)].tobytes()
    for place in (tmp_path, written[-1]):
        with open_weights(place) as weights:
            assert weights.format == format
            assert identical(contents(weights), arrays)
            assert sorted(weights.files) == sorted(written)


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path):
    arrays = {name: np.zeros(size, np.uint8) for name, size in {"a": 10, "b": 500, "c": 10, "d": 10}.items()}
    written = write(tmp_path / "m.safetensors", arrays, "torch", max_shard_size=100)
    places = json.loads(written[-1].read_text())["weight_map"]
    assert [place.split("-")[1] for place in places.values()] == ["00001", "00002", "00003", "00003"]


def test_shards_of_torch_pickles_are_read(tmp_path):
    import torch

    torch.save({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"c": torch.ones(1)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    places = {"a": 1, "c": 2, "b": 1}
    names = {key: f"pytorch_model-0000{number}-of-00002.bin" for key, number in places.items()}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with open_weights(tmp_path) as weights:
        assert weights.format == "torch"
        assert identical(contents(weights), {"a": np.ones(2, "f4"), "c": np.ones(1, "f4"), "b": np.zeros(3, "f4")})


@pytest.mark.parametrize(
    ("file", "content"),
    [("w.safetensors", "w.bin"), ("w.msgpack", "checkpoint_3"), ("w.pt", "resnet.pth.tar"), ("w.npz", "arrays.dat")],
)
def test_files_are_known_by_what_is_in_them(tmp_path, file, content):
    format = "torch" if file == "w.pt" else "flax"
    write(tmp_path / file, SMALL, format)
    (tmp_path / file).rename(tmp_path / content)
    with open_weights(tmp_path / content) as weights:
        assert identical(contents(weights), SMALL)


def test_an_array_outlives_the_file_it_came_from(tmp_path):
    write(tmp_path / "w.safetensors", SMALL)
    with open_weights(tmp_path / "w.safetensors") as weights:
        array = weights.read("params/head/kernel")
    Path(tmp_path / "w.safetensors").unlink()
    assert identical({"w": array}, {"w": SMALL["params/head/kernel"]})
    assert not array.flags.writeable


def test_a_file_read_while_it_is_replaced_gives_what_it_held(tmp_path):
    path = tmp_path / "w.safetensors"
    write(path, SMALL)
    with open_weights(path) as weights:
        halved = {name: array[:0] if array.ndim else array for name, array in SMALL.items()}
        write(path, halved, force=True)
        assert identical(contents(weights), SMALL)


@pytest.mark.parametrize(
    ("name", "arrays", "format", "message"),
    [
        ("w.pt", SMALL, "flax", "has no flax layouts; choose one of safetensors, msgpack, npz, orbax"),
        ("w.msgpack", SMALL, "torch", "has no torch layouts; choose one of safetensors, save_pretrained, torch"),
        ("w.h5", SMALL, "flax", "choose .safetensors, .pt, .pth, .bin, .msgpack, .npz, or a folder"),
        ("w.safetensors", {"w": np.ones(1, np.complex128)}, "torch", "w is complex128"),
        ("w.safetensors", {"layer.0/w": np.ones(1)}, "flax", "layer.0/w has a dot"),
        ("w.msgpack", {"a": np.ones(1), "a/b": np.ones(1)}, "flax", "a is an array and holds others"),
        ("w.npz", {"a//b": np.ones(1)}, "flax", "'a//b' is no path"),
        ("no/w.npz", SMALL, "flax", "make it first"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_before_anything_is_written(tmp_path, name, arrays, format, message):
    with pytest.raises(ConfigError, match=message):
        write(tmp_path / name, arrays, format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given",
    [[("a", np.ones(3))], [("a", np.ones(2, np.float32))], [("b", np.ones(2))], [], [("a", np.ones(2))] * 2],
    ids=["shape", "type", "name", "too_few", "too_many"],
)
def test_arrays_other_than_announced_are_refused_and_leave_nothing(tmp_path, given):
    specs = {"a": Spec((2,), np.dtype(np.float64))}
    options = {"format": "torch", "metadata": {}, "max_shard_size": None, "force": False}
    for name in ("w.safetensors", "w.pt", "folder"):
        with pytest.raises(ValueError, match=r"announced|argument"):
            write_weights(tmp_path / name, specs, given, **options)
    assert not list(tmp_path.iterdir())
