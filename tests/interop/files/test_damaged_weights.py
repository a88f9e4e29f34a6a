"""A corpus of damaged and hostile files: every one is refused by name, and none runs what it carries."""

import argparse
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgpack
import numpy as np
import pytest
import torch
from weight_samples import contents, npy, safetensors_bytes, tensor, torch_zip, write, zipped

from interop.files import FileError, open_weights

DATA = bytes(8)


class Payload:
    """Runs a command when it is unpickled without restraint."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Damaged(NamedTuple):
    make: Callable[[Path], bytes | Path]
    name: str
    said: str
    key: str | None = "w"


def header(content, data=DATA, **options):
    return lambda folder: safetensors_bytes(content, data, **options)


def entry(data=DATA, name="w", **fields):
    return header({name: {**tensor(), **fields}}, data)


def index(places, text=None):
    """An index beside shards ``a`` with tensor w and ``b`` with tensor v."""

    def make(folder: Path) -> bytes:
        for shard, key in (("a.safetensors", "w"), ("b.safetensors", "v")):
            (folder / shard).write_bytes(safetensors_bytes({key: tensor()}, DATA))
        return (text or json.dumps({"metadata": {}, "weight_map": places})).encode()

    return make


def linked(folder: Path) -> bytes:
    outside = folder / "outside"
    outside.mkdir()
    (outside / "x.safetensors").write_bytes(safetensors_bytes({"w": tensor()}, DATA))
    (folder / "x.safetensors").symlink_to(outside / "x.safetensors")
    return json.dumps({"weight_map": {"w": "x.safetensors"}}).encode()


def unlisted(folder: Path) -> bytes:
    (folder / "a.safetensors").write_bytes(safetensors_bytes({"w": tensor(), "v": tensor((8, 16))}, 2 * DATA))
    return b'{"weight_map": {"w": "a.safetensors"}}'


def mixed(folder: Path) -> bytes:
    (folder / "a.safetensors").write_bytes(safetensors_bytes({"w": tensor()}, DATA))
    flax = {"__metadata__": {"format": "flax"}, "v": tensor()}
    (folder / "b.safetensors").write_bytes(safetensors_bytes(flax, DATA))
    return json.dumps({"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}).encode()


def saved(content, **options):
    """What torch saves of ``content``, or of what ``content`` makes of the marker's path."""

    def make(folder: Path) -> bytes:
        buffer = io.BytesIO()
        torch.save(content(folder / "marker") if callable(content) else content, buffer, **options)
        return buffer.getvalue()

    return make


OLD = {"_use_new_zipfile_serialization": False}


def rezipped(change: Callable[[list], list], compression=zipfile.ZIP_STORED):
    def make(folder: Path) -> bytes:
        with zipfile.ZipFile(io.BytesIO(saved({"w": torch.ones(4)})(folder))) as archive:
            return zipped(change([(name, archive.read(name)) for name in archive.namelist()]), compression)

    return make


def encrypted(folder: Path) -> bytes:
    raw = bytearray(zipped([("w.npy", npy("<f4", (2,), DATA))]))
    raw[raw.index(b"PK\1\2") + 8] |= 1
    return bytes(raw)


def twice(folder: Path) -> bytes:
    with pytest.warns(UserWarning, match="Duplicate"):
        return zipped([("w.npy", npy("<f4", (2,), DATA))] * 2)


def overlapping(folder: Path) -> bytes:
    """The list has a member that lies in the bytes of another."""
    inner = zipped([("w.npy", npy("<f4", (2,), DATA))])
    raw = zipped([("v.npy", inner), ("w.npy", b"")])
    with zipfile.ZipFile(io.BytesIO(raw)) as archive, zipfile.ZipFile(io.BytesIO(inner)) as inside:
        last, hidden = archive.getinfo("w.npy"), inside.getinfo("w.npy")
    entry = raw.rindex(b"PK\1\2")
    sizes = hidden.CRC.to_bytes(4, "little") + 2 * hidden.file_size.to_bytes(4, "little")
    assert raw[entry + 42 : entry + 46] == last.header_offset.to_bytes(4, "little")
    place = raw.index(inner).to_bytes(4, "little")
    return raw[: entry + 16] + sizes + raw[entry + 28 : entry + 42] + place + raw[entry + 46 :]


def renamed(folder: Path) -> bytes:
    return zipped([("v.npy", npy("<f4", (2,), DATA))]).replace(b"v.npyPK\5\6", b"w.npyPK\5\6")


def torchscript(folder: Path) -> bytes:
    # torch.jit.save compresses the code
    with zipfile.ZipFile(folder / "script", "w") as archive:
        archive.writestr("a/code/net.py", "x = 1\n" * 100, zipfile.ZIP_DEFLATED)
        for name, data in (("a/data.pkl", b"\x80\x02}."), ("a/constants.pkl", b"\x80\x02)."), ("a/version", b"3\n")):
            archive.writestr(name, data)
    return (folder / "script").read_bytes()


def in_itself(marker: Path) -> dict:
    """A dict of weights that is also its own container."""
    content = {"w": torch.ones(1)}
    content["model"] = content
    return content


def shared(marker: Path) -> dict:
    """Dicts 60 deep, each twice in the one around it: 2^60 ways lead to the number in the last."""
    content = {"epoch": 1}
    for _ in range(60):
        content = {"model": content, "net": content}
    return content


def legacy_grown(folder: Path) -> bytes:
    """An old torch file whose tensor is a view of 2^20 numbers on a storage of four."""
    return saved({"w": torch.ones(4)}, **OLD)(folder).replace(b"K\x04\x85", b"J\x00\x00\x10\x00\x85", 1)


def tarred(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return buffer.getvalue()


def flipped(folder: Path) -> bytes:
    return zipped([("w.npy", npy("<f4", (2,), b"ABCDEFGH"))]).replace(b"ABCDEFGH", b"ABCDEFGh")


def npz(*members):
    return lambda folder: zipped([(name, content) for name, content in members])


def objects(folder: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.array([Payload(folder / "marker")], dtype=object))
    return buffer.getvalue()


def compressed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, w=np.zeros(1000))
    return buffer.getvalue()


def table(types) -> tuple[str, bytes]:
    text = json.dumps({"types": types, "metadata": {}}).encode()
    return "__types__.npy", npy("|u1", (len(text),), text)


def array(shape=(2,), name="float32", data=DATA, code=1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, name, data)))


def packed(tree):
    return lambda folder: msgpack.packb(tree)


def nested(folder: Path) -> bytes:
    return b"\x81\xa1w" * 5000 + b"\xc0"


def shapes_in_shapes(folder: Path) -> bytes:
    """An array whose shape is an array, whose shape is one."""
    array = b""
    for _ in range(3000):
        array = b"\xc9" + (1 + len(array)).to_bytes(4, "big") + b"\x01\x93" + array
    return b"\x81\xa1w" + array


def chunks(shape, *parts):
    numbered = {str(number): part for number, part in enumerate(parts)}
    return packed({"w": {"__msgpack_chunked_array__": True, "shape": {"0": shape}, "chunks": numbered}})


def orbax(change: Callable[[Path], None]):
    def make(folder: Path) -> Path:
        write(folder / "checkpoint", {"v": np.ones(2, np.float32), "w": np.ones(2, np.float32)})
        change(folder / "checkpoint")
        return folder / "checkpoint"

    return make


def tree_of(content):
    return orbax(lambda folder: (folder / "_METADATA").write_text(json.dumps(content)))


def leaf(*keys):
    kind = {"value_type": "np.ndarray", "skip_deserialize": False}
    steps = [{"key": key, "key_type": 2} for key in keys]
    return {"tree_metadata": {"leaf": {"key_metadata": steps, "value_metadata": kind}}, "use_ocdbt": False}


def zarr(**changed):
    def change(folder: Path) -> None:
        layout = json.loads((folder / "w" / ".zarray").read_text())
        (folder / "w" / ".zarray").write_text(json.dumps({**layout, **changed}))

    return orbax(change)


def custom_metadata(content):
    return orbax(lambda folder: (folder / "_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": content})))


def through_a_tensor(folder: Path) -> Path:
    """A checkpoint whose tree has a tensor ``v`` and a tensor ``v/w``."""
    write(folder / "checkpoint", {"v": np.ones(2, np.float32), "w": np.ones(2, np.float32)})
    tree = json.loads((folder / "checkpoint" / "_METADATA").read_text())
    tree["tree_metadata"]["('w',)"]["key_metadata"] = [{"key": key, "key_type": 2} for key in ("v", "w")]
    (folder / "checkpoint" / "_METADATA").write_text(json.dumps(tree))
    (folder / "checkpoint" / "w").rename(folder / "checkpoint" / "v.w")
    return folder / "checkpoint"


def sparse_header(folder: Path) -> Path:
    """A header of 200 MB, nearly all of it a hole in the file."""
    with (folder / "x.safetensors").open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little") + b"{")
        file.truncate(200_000_100)
    return folder / "x.safetensors"


ST, IX, PT, NP, MP = "x.safetensors", "x.safetensors.index.json", "x.pt", "x.npz", "x.msgpack"
F4 = npy("<f4", (2,), DATA)
CORPUS = {
    "safetensors_empty": Damaged(lambda folder: b"", ST, "it is cut", None),
    "safetensors_five_bytes": Damaged(lambda folder: b"abcde", ST, "it is cut", None),
    "safetensors_header_beyond_the_file": Damaged(header({"w": tensor()}, length=10**6), ST, "it is cut", None),
    "safetensors_header_of_2_to_63": Damaged(header({"w": tensor()}, length=2**63), ST, "it is cut", None),
    "safetensors_header_over_100_mb": Damaged(sparse_header, ST, "more than the 100,000,000", None),
    "safetensors_header_no_object": Damaged(header("[1, 2]"), ST, "does not begin with '{'", None),
    "safetensors_header_no_json": Damaged(header('{"w": }'), ST, "no valid JSON", None),
    "safetensors_header_no_utf8": Damaged(header(b'{"w\xff": 1}'), ST, "no valid JSON", None),
    "safetensors_header_nan": Damaged(header('{"w": NaN}'), ST, "it has NaN", None),
    "safetensors_header_deep": Damaged(header('{"w":' + "[" * 10**5), ST, "no valid JSON", None),
    "safetensors_key_twice": Damaged(header('{"w": {}, "w": {}}'), ST, "twice in the header"),
    "safetensors_shape_twice": Damaged(header('{"w": {"shape": [1], "shape": [2]}}'), ST, "twice", "shape"),
    "safetensors_metadata_number": Damaged(header({"__metadata__": {"epoch": 3}}, b""), ST, "text to text", "epoch"),
    "safetensors_metadata_list": Damaged(header({"__metadata__": []}, b""), ST, "no JSON object", "__metadata__"),
    "safetensors_surrogate": Damaged(header('{"\\ud800w": {}}'), ST, "do not print"),
    "safetensors_escape_sequence": Damaged(entry(name="\x1b[2Jw"), ST, "do not print"),
    "safetensors_unknown_type": Damaged(entry(dtype="F31"), ST, "'F31' is not read"),
    "safetensors_type_a_list": Damaged(entry(dtype=["F32"]), ST, "is not read"),
    "safetensors_negative_size": Damaged(entry(shape=[-2]), ST, "no list of sizes"),
    "safetensors_fractional_size": Damaged(entry(shape=[2.0]), ST, "no list of sizes"),
    "safetensors_boolean_size": Damaged(entry(shape=[True, 2]), ST, "no list of sizes"),
    "safetensors_overflowing_size": Damaged(entry(shape=[2**62, 4]), ST, "larger than any memory"),
    "safetensors_overflowing_empty": Damaged(entry(b"", shape=[0, 2**62, 4], data_offsets=[0, 0]), ST, "any memory"),
    "safetensors_65_axes": Damaged(entry(shape=[2] + [1] * 64), ST, "65 axes"),
    "safetensors_wrong_shape": Damaged(entry(shape=[3]), ST, "takes 12 bytes, not those from 0 to 8"),
    "safetensors_reversed_offsets": Damaged(entry(data_offsets=[8, 0]), ST, "takes 8 bytes"),
    "safetensors_negative_offsets": Damaged(entry(data_offsets=[-8, 0]), ST, "takes 8 bytes"),
    "safetensors_one_offset": Damaged(entry(data_offsets=[0]), ST, "no two positions"),
    "safetensors_overlap": Damaged(
        header({"v": tensor(), "w": tensor((4, 12))}, bytes(12)), ST, "overlaps the tensor before it"
    ),
    "safetensors_hole": Damaged(header({"v": tensor(), "w": tensor((12, 20))}, bytes(20)), ST, "leaves a gap"),
    "safetensors_cut": Damaged(entry(data=DATA[:7]), ST, "of a file of 76: cut"),
    "safetensors_trailing_bytes": Damaged(entry(data=DATA + b"!"), ST, "1 bytes after the last tensor", None),
    "safetensors_field_missing": Damaged(header({"w": {"dtype": "F32", "shape": [2]}}), ST, "must have"),
    "safetensors_field_too_many": Damaged(entry(strides=[1]), ST, "nothing else"),
    "safetensors_flax_path_twice": Damaged(
        header({"__metadata__": {"format": "flax"}, "a.w": tensor(), "a/w": tensor((8, 16))}, bytes(16)),
        ST,
        "two tensors have the path",
        "a/w",
    ),
    "safetensors_path_through_a_tensor": Damaged(
        header({"__metadata__": {"format": "flax"}, "w.b": tensor(), "w": tensor((8, 16))}, bytes(16)),
        ST,
        "w: a tensor is there, and w/b leads through it",
    ),
    "safetensors_path_of_101_names": Damaged(
        header({"__metadata__": {"format": "flax"}, ".".join("w" * 101): tensor()}), ST, "more than 100 names"
    ),
    "index_parent_folder": Damaged(index({"w": "../a.safetensors"}), IX, "only names of files beside it"),
    "index_absolute_path": Damaged(index({"w": "/etc/passwd"}), IX, "only names of files beside it"),
    "index_backslash": Damaged(index({"w": "..\\a.safetensors"}), IX, "only names of files beside it"),
    "index_dots": Damaged(index({"w": ".."}), IX, "only names of files beside it"),
    "index_link_out_of_the_folder": Damaged(linked, IX, "is a link out of the folder"),
    "index_missing_shard": Damaged(index({"w": "c.safetensors"}), IX, "which is not there"),
    "index_missing_key": Damaged(index({"w": "a.safetensors", "u": "b.safetensors"}), IX, "and is not", "u"),
    "index_key_elsewhere": Damaged(index({"w": "b.safetensors", "v": "b.safetensors"}), IX, "and is not"),
    "index_unlisted_key": Damaged(unlisted, IX, "the index does not place there: v", "v"),
    "index_extra_tensor": Damaged(mixed, IX, "torch layouts or all Flax layouts", None),
    "index_key_twice": Damaged(
        index(None, '{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}'), IX, "twice in the index"
    ),
    "index_without_map": Damaged(index(None, "{}"), IX, "no JSON object", "weight_map"),
    "index_number": Damaged(index({"w": 1}), IX, "text to text"),
    "index_metadata_surrogate": Damaged(
        index(None, '{"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}, "metadata": {"jaxkit": "\\ud800"}}'),
        IX,
        "text to text",
        "jaxkit",
    ),
    "index_empty": Damaged(index({}), IX, "at least one tensor", None),
    "index_no_json": Damaged(index(None, "{"), IX, "no valid JSON", None),
    "index_to_a_damaged_shard": Damaged(
        lambda folder: (folder / "a").write_bytes(b"{}") and b'{"weight_map": {"w": "a"}}', IX, "no weight file", None
    ),
    "pickle_command": Damaged(saved(lambda marker: {"w": Payload(marker)}), PT, "names posix.system", None),
    "pickle_command_old_format": Damaged(
        saved(lambda marker: {"w": Payload(marker)}, **OLD), PT, "names posix.system", None
    ),
    "pickle_command_plain": Damaged(
        lambda folder: pickle.dumps({"w": Payload(folder / "marker")}, protocol=2), PT, "names posix.system", None
    ),
    "pickle_eval": Damaged(
        rezipped(lambda m: [(n, b"c__builtin__\neval\n(S'1'\ntR." if n.endswith("pkl") else c) for n, c in m]),
        PT,
        "eval, which could run code",
        None,
    ),
    "pickle_namespace": Damaged(
        saved({"state_dict": {"w": torch.ones(1)}, "args": argparse.Namespace(lr=1)}), PT, "argparse.Namespace", None
    ),
    "pickle_numpy_scalar": Damaged(saved({"w": torch.ones(1), "acc": np.float64(0.5)}), PT, "scalar", None),
    "pickle_module": Damaged(saved(lambda marker: torch.nn.Linear(2, 2)), PT, "torch.nn.modules.linear.Linear", None),
    "pickle_garbage": Damaged(
        rezipped(lambda m: [(n, b"\x80\x02garbage" if n.endswith("pkl") else c) for n, c in m]), PT, "not read it", None
    ),
    "torch_compressed": Damaged(rezipped(list, zipfile.ZIP_DEFLATED), PT, "is compressed", "data.pkl"),
    "torch_cut": Damaged(lambda folder: saved({"w": torch.ones(4)})(folder)[:-50], PT, "archive is damaged", None),
    "torch_storage_missing": Damaged(
        rezipped(lambda m: [x for x in m if "data/0" not in x[0]]), PT, "not read it", None
    ),
    "torch_storage_cut": Damaged(
        rezipped(lambda m: [(n, c[:-4] if "data/0" in n else c) for n, c in m]), PT, "not in the archive as its pickle"
    ),
    "torch_storage_claimed_larger": Damaged(lambda folder: torch_zip(2**40, 4), PT, "not in the archive as"),
    "torch_view_beyond_storage": Damaged(lambda folder: torch_zip(4, 4, offset=2), PT, "archive as its pickle"),
    "torch_view_huge": Damaged(lambda folder: torch_zip(4, 4, shape=(2**40,)), PT, "archive as its pickle"),
    "torch_strides_beyond_storage": Damaged(lambda folder: torch_zip(4, 4, strides=(2,)), PT, "archive as its pickle"),
    "torch_old_view_huge": Damaged(legacy_grown, PT, "not read it", None),
    "torch_sparse": Damaged(saved({"w": torch.eye(3).to_sparse()}), PT, "no plain dense tensor"),
    "torch_four_bits": Damaged(
        saved(lambda marker: {"w": torch.ones(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}), PT, "is not read"
    ),
    "torch_conjugate": Damaged(saved({"w": torch.ones(2, dtype=torch.complex64).conj()}), PT, "no plain dense tensor"),
    "torch_list": Damaged(saved([torch.ones(2)]), PT, "a list, not a dict", None),
    "torch_number_key": Damaged(saved({0: torch.ones(2)}), PT, "must be text", "0"),
    "torch_no_tensors": Damaged(saved({"epoch": 1}), PT, "no tensors are in it, but epoch", None),
    "torch_expanded": Damaged(saved({"w": torch.zeros(1).expand(2**27)}), PT, "repeats its numbers: its shape takes"),
    "torch_old_expanded": Damaged(saved({"w": torch.zeros(1).expand(2**27)}, **OLD), PT, "save tensor.clone()"),
    "torch_empty_overflowing": Damaged(
        lambda folder: torch_zip(4, 4, shape=(0, 2**61, 2), strides=(1, 1, 1)), PT, "larger than any memory"
    ),
    "torch_dict_in_itself": Damaged(saved(in_itself), PT, "the dict holds itself", "model"),
    "torch_dicts_shared": Damaged(saved(shared), PT, "no tensors are in it, but model, net", None),
    "torch_tuple_key": Damaged(saved({("w",): torch.ones(1)}), PT, "must be text", "a tuple"),
    "torch_script": Damaged(torchscript, PT, "TorchScript program", None),
    "torch_tar": Damaged(tarred, "x.tar", "tar archive", None),
    "npz_objects": Damaged(objects, NP, "pickled objects"),
    "npz_compressed": Damaged(compressed, NP, "is compressed"),
    "npz_encrypted": Damaged(encrypted, NP, "is encrypted"),
    "npz_twice": Damaged(twice, NP, "twice"),
    "npz_overlap": Damaged(overlapping, NP, "also another member's"),
    "npz_renamed": Damaged(renamed, NP, "another name where its bytes are"),
    "npz_changed": Damaged(flipped, NP, "checksum"),
    "npz_wrong_shape": Damaged(npz(("w.npy", npy("<f4", (3,), DATA))), NP, "takes 12 bytes, 8 are there"),
    "npz_huge_shape": Damaged(npz(("w.npy", npy("<f4", (2**62, 4), DATA))), NP, "larger than any memory"),
    "npz_negative_shape": Damaged(npz(("w.npy", npy("<f4", (-2,), DATA))), NP, "no list of sizes"),
    "npz_structure": Damaged(npz(("w.npy", npy([("a", "<f4")], (2,), DATA))), NP, "only plain numbers"),
    "npz_odd_type": Damaged(npz(("w.npy", npy("<f3", (2,), DATA))), NP, "no type <f3"),
    "npz_long_double": Damaged(npz(("w.npy", npy("<f16", (1,), bytes(16)))), NP, "is not read"),
    "npz_nameless_type": Damaged(npz(("w.npy", npy("|V2", (4,), DATA))), NP, "only plain numbers"),
    "npz_code_in_head": Damaged(npz(("w.npy", npy("", (), b"", b"__import__('os').getpid()"))), NP, "is damaged"),
    "npz_deep_head": Damaged(npz(("w.npy", npy("", (), b"", b"(" * 9000))), NP, "is damaged"),
    "npz_path_through_a_tensor": Damaged(npz(("w/b.npy", F4), ("w.npy", F4)), NP, "w/b leads through it"),
    "npz_no_array": Damaged(npz(("w.npy", b"text")), NP, "no NumPy array"),
    "npz_table_unknown_type": Damaged(npz(("w.npy", F4), table({"w": "float4"})), NP, "unknown type"),
    "npz_table_contradicts": Damaged(npz(("w.npy", F4), table({"w": "bfloat16"})), NP, "says bfloat16"),
    "npz_table_stray": Damaged(npz(("w.npy", F4), table({"u": "bfloat16"})), NP, "not in the archive", "u"),
    "zip_of_something_else": Damaged(npz(("readme.txt", b"hello")), NP, "it holds readme.txt", None),
    "msgpack_cut": Damaged(lambda f: packed({"w": array()})(f)[:-1], MP, "it is cut"),
    "msgpack_trailing": Damaged(lambda f: packed({"w": array()})(f) + b"!", MP, "1 bytes follow", None),
    "msgpack_deep": Damaged(nested, MP, "deep"),
    "msgpack_map_of_4_billion": Damaged(lambda f: b"\xdf\xff\xff\xff\xff\xa1w", MP, "it is cut", None),
    "msgpack_list_of_4_billion": Damaged(lambda f: b"\x81\xa1w\xdd\xff\xff\xff\xff", MP, "it is cut"),
    "msgpack_values_by_the_million": Damaged(
        lambda f: b"\x81\xa1w\xdd" + (2 * 10**6).to_bytes(4, "big") + b"\xc0" * 2 * 10**6, MP, "more than 1,000,000"
    ),
    "msgpack_array_of_4_gb": Damaged(lambda f: b"\x81\xa1w\xc9\xff\xff\xff\xff\x01", MP, "it is cut"),
    "msgpack_key_twice": Damaged(lambda f: b"\x82" + b"\xa1w\x01" * 2, MP, "twice in its map"),
    "msgpack_number_key": Damaged(packed({"w": {3: 1}}), MP, "no text"),
    "msgpack_key_no_utf8": Damaged(lambda f: b"\x81\xa1w\x81\xa2\xff\xfe\x01", MP, "not UTF-8"),
    "msgpack_path_twice": Damaged(packed({"a": {"w": array()}, "a/w": array()}), MP, "two arrays", "a/w"),
    "msgpack_path_through_a_tensor": Damaged(packed({"w/b": array(), "w": array()}), MP, "w/b leads through it"),
    "msgpack_shapes_in_shapes": Damaged(shapes_in_shapes, MP, "not shape, type and bytes"),
    "msgpack_shape_of_65_axes": Damaged(packed({"w": array((2, *64 * [1]))}), MP, "not shape, type and bytes"),
    "msgpack_fractional_shape": Damaged(packed({"w": array((2.0,))}), MP, "no list of sizes"),
    "msgpack_wrong_shape": Damaged(packed({"w": array((3,))}), MP, "takes 12 bytes, 8 are there"),
    "msgpack_negative_shape": Damaged(packed({"w": array((-2,))}), MP, "no list of sizes"),
    "msgpack_huge_shape": Damaged(packed({"w": array((2**62, 4))}), MP, "larger than any memory"),
    "msgpack_unknown_type": Damaged(packed({"w": array(name="object")}), MP, "'object' is not read"),
    "msgpack_unknown_extension": Damaged(packed({"w": array(code=9)}), MP, "extension 9"),
    "msgpack_no_array_in_extension": Damaged(packed({"w": msgpack.ExtType(1, b"\xa3abc")}), MP, "not shape, type"),
    "msgpack_bytes_after_array": Damaged(
        packed({"w": msgpack.ExtType(1, msgpack.packb(((2,), "float32", DATA)) + b"!")}), MP, "its array ends"
    ),
    "msgpack_unknown_byte": Damaged(lambda f: b"\x81\xa1w\xc1", MP, "nothing that msgpack knows"),
    "msgpack_chunks_too_few": Damaged(chunks(5, array(), array()), MP, "do not add up"),
    "msgpack_chunks_of_two_types": Damaged(chunks(4, array(), array((2,), "int32")), MP, "not arrays of one type"),
    "msgpack_no_arrays": Damaged(packed({"step": 3}), MP, "no arrays are in it, but step (int)", None),
    "orbax_chunk_missing": Damaged(orbax(lambda folder: (folder / "w" / "0").unlink()), "", "cannot be read"),
    "orbax_chunk_cut": Damaged(orbax(lambda folder: (folder / "w" / "0").write_bytes(b"123")), "", "cannot be read"),
    "orbax_array_missing": Damaged(orbax(lambda folder: (folder / "w" / ".zarray").unlink()), "", "cannot be read"),
    "orbax_type": Damaged(zarr(dtype="int4"), "", "int4 is not read"),
    "orbax_shape_of_2_to_45": Damaged(zarr(shape=[2**45]), "", "more than its files can hold"),
    "orbax_shape_and_chunk_of_2_to_45": Damaged(zarr(shape=[2**45], chunks=[2**45]), "", "its files can hold"),
    "orbax_metadata_list": Damaged(custom_metadata(["w"]), "", "custom_metadata is no JSON object", None),
    "orbax_metadata_surrogate": Damaged(custom_metadata({"jaxkit": "\ud800"}), "", "text to text", "jaxkit"),
    "orbax_path_through_a_tensor": Damaged(through_a_tensor, "", "a tensor is there, and v/w leads through it", "v"),
    "orbax_tree_no_json": Damaged(
        orbax(lambda folder: (folder / "_METADATA").write_text("{")), "", "no valid JSON", None
    ),
    "orbax_tree_empty": Damaged(tree_of({"tree_metadata": {}}), "", "no arrays", None),
    "orbax_tree_missing": Damaged(tree_of({}), "", "no tree_metadata", None),
    "orbax_tree_leaf_damaged": Damaged(tree_of({"tree_metadata": {"w": 1}}), "", "entry in the tree is damaged"),
    "orbax_path_out_of_the_folder": Damaged(tree_of(leaf("..", "..", "w")), "", "leads out of its folder", "leaf"),
    "web_page": Damaged(lambda folder: b"<!DOCTYPE html><html>", "x.pth", "a web page", None),
    "gzip": Damaged(lambda folder: b"\x1f\x8b" + bytes(30), "x.pth", "gzip; unpack", None),
    "hdf5": Damaged(lambda folder: b"\x89HDF\r\n\x1a\n" + bytes(30), "x.h5", "HDF5", None),
    "lfs_pointer": Damaged(
        lambda folder: b"version https://git-lfs.github.com/spec/v1\n", "x.bin", "git lfs pull", None
    ),
    "unknown": Damaged(lambda folder: b"hello, these are no weights", "x.bin", "no weight file of a known kind", None),
    "empty": Damaged(lambda folder: b"", "x.pt", "empty", None),
}  # fmt: skip


def read_all(path: Path) -> None:
    with open_weights(path) as weights:
        contents(weights)


@pytest.mark.parametrize("case", CORPUS)
def test_is_refused_by_file_and_key(tmp_path, case):
    make, name, said, key = CORPUS[case]
    made = make(tmp_path)
    path = made if isinstance(made, Path) else tmp_path / name
    if isinstance(made, bytes):
        path.write_bytes(made)
    with pytest.raises(FileError) as refused:
        read_all(path)
    message = str(refused.value)
    assert refused.value.exit_code == 4
    assert path.stem.split(".")[0] in message or "/a:" in message
    assert said in message
    assert key is None or key in message.replace(str(tmp_path), "")
    assert message.isprintable()
    assert not (tmp_path / "marker").exists()


def test_the_corpus_is_no_smaller_than_promised():
    assert len(CORPUS) >= 40


def test_the_payloads_of_the_corpus_would_run_if_they_were_let(tmp_path):
    payload = saved(lambda marker: {"w": Payload(marker)})(tmp_path)
    torch.load(io.BytesIO(payload), weights_only=False)
    assert (tmp_path / "marker").exists()


def test_a_tensor_expanded_along_axes_of_one_is_read(tmp_path):
    # as the position_ids of many language models are stored
    for number, options in enumerate(({}, OLD)):
        (tmp_path / f"{number}.pt").write_bytes(saved({"ids": torch.arange(5).expand(1, -1)}, **options)(tmp_path))
        with open_weights(tmp_path / f"{number}.pt") as weights:
            assert weights.read("ids").tolist() == [[0, 1, 2, 3, 4]]


def test_orbaxs_checkpoint_of_zeros_is_read_however_small_it_has_become(tmp_path):
    import orbax.checkpoint

    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "zeros", {"w": np.zeros(2**26, np.int8)})
    stored = sum(path.stat().st_size for path in (tmp_path / "zeros").rglob("*") if path.is_file())
    assert stored < 2**26 / 1000
    with open_weights(tmp_path / "zeros") as weights:
        assert not weights.read("w").any()


def test_metadata_of_a_checkpoint_that_is_no_text_is_left_out(tmp_path):
    with open_weights(custom_metadata({"model": "x", "epoch": 3})(tmp_path)) as weights:
        assert weights.metadata == {"model": "x"}


def test_no_environment_variable_lets_a_payload_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (tmp_path / "x.pt").write_bytes(saved(lambda marker: {"w": Payload(marker)})(tmp_path))
    with pytest.raises(FileError, match="could run code"):
        open_weights(tmp_path / "x.pt")
    assert not (tmp_path / "marker").exists()


def test_a_torch_with_known_holes_reads_no_pickle(tmp_path, monkeypatch):
    from torch.torch_version import TorchVersion

    from jaxkit.errors import ConfigError

    (tmp_path / "x.pt").write_bytes(saved({"w": torch.ones(1)})(tmp_path))
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1+cpu"))
    with pytest.raises(ConfigError, match=r"torch 2\.9\.1\+cpu cannot read pickles safely: pip install 'torch>=2\.10'"):
        open_weights(tmp_path / "x.pt")


def test_a_file_cut_while_it_is_open_is_refused_and_not_a_crash(tmp_path):
    write(tmp_path / "x.safetensors", {"w": np.zeros(10**6)})
    with open_weights(tmp_path / "x.safetensors") as weights:
        os.truncate(tmp_path / "x.safetensors", 1000)
        with pytest.raises(FileError, match="w: the file was cut while it was read"):
            weights.read("w")


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    blobs = tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "123").write_bytes(safetensors_bytes({"w": tensor()}, DATA))
    (snapshot / "a.safetensors").symlink_to(blobs / "123")
    (snapshot / "x.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors"}}')
    with open_weights(snapshot) as weights:
        assert weights.read("w").tolist() == [0, 0]
