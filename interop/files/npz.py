"""NumPy archives. Types NumPy has no name for are stored as plain bytes, and a table beside them says what they are."""

import ast
import json
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from interop.files import archive
from interop.files.dtypes import DTYPES, EXTENDED, nbytes, raw, shape_problem
from interop.files.errors import FileError
from interop.files.strict_json import parse, require_printable, text_map
from interop.files.weights import Entry, Weights, mapped
from interop.layout import Spec

TABLE = "__types__.npy"
WRITABLE = frozenset(DTYPES)
_MAX_HEADER = 10_000
_MAX_TABLE = 100_000_000
_MAGIC = b"\x93NUMPY"
_PLAIN = re.compile(r"[<>|=]?[biufc]\d+")


def open_file(path: Path) -> Weights:
    """Opens an archive of arrays; none of them may hold pickled objects.

    Raises:
        FileError: if a member is no plain array, or not of the size it claims.
    """
    with ExitStack() as opened:
        file = opened.enter_context(path.open("rb"))
        found = archive.members(file, path)
        types, metadata = _table(file, found.pop(TABLE, None), path)
        entries = {}
        for name, member in found.items():
            key = name.removesuffix(".npy")
            require_printable(key, path)
            entries[key] = _entry(file, path, key, member, types.get(key))
        if stray := types.keys() - entries.keys():
            raise FileError(path, f"is in {TABLE} and not in the archive", min(stray))
        return Weights(path, "flax", entries, files=[path], metadata=metadata, opened=opened.pop_all())


def _table(file: BinaryIO, member: archive.Member | None, path: Path) -> tuple[dict[str, str], dict[str, str]]:
    if member is None:
        return {}, {}
    content = archive.read(file, member, _MAX_TABLE, path, TABLE)
    length, _, _ = _header(content, path, TABLE)
    table = parse(content[length:], path, TABLE)
    types = text_map(table.get("types"), path, f"types of {TABLE}")
    for key, name in types.items():
        if name not in EXTENDED:
            raise FileError(path, f"{TABLE} gives it the unknown type {ascii(name)[:40]}", key)
    return types, text_map(table.get("metadata"), path, f"metadata of {TABLE}")


def _entry(file: BinaryIO, path: Path, key: str, member: archive.Member, extended: str | None) -> Entry:
    file.seek(member.offset)
    length, description, order = _header(file.read(min(member.size, _MAX_HEADER)), path, key)
    stored = description["descr"]
    if extended is not None:
        if stored != f"|V{DTYPES[extended].itemsize}":
            raise FileError(path, f"{TABLE} says {extended}, the array {ascii(stored)[:40]}", key)
        dtype = DTYPES[extended]
    else:
        dtype = _plain(stored, path, key)
    if problem := shape_problem(description["shape"], dtype):
        raise FileError(path, problem, key)
    spec = Spec(tuple(description["shape"]), dtype.newbyteorder("="))
    if length + nbytes(spec) != member.size:
        raise FileError(path, f"its shape takes {nbytes(spec):,} bytes, {member.size - length:,} are there", key)
    return Entry(spec, partial(_read, path, file, key, member, length, spec._replace(dtype=dtype), order))


def _plain(stored: Any, path: Path, key: str) -> np.dtype:
    if not isinstance(stored, str) or not _PLAIN.fullmatch(stored):
        reason = "pickled objects, which can run code" if "O" in str(stored) else f"of type {ascii(stored)[:40]}"
        raise FileError(
            path,
            f"it is {reason}; only plain numbers are read",
            key,
            "save plain arrays; bfloat16 goes to .safetensors",
        )
    try:
        dtype = np.dtype(stored)
    except TypeError:
        raise FileError(path, f"NumPy has no type {stored[:40]}", key) from None
    if dtype.newbyteorder("=") not in DTYPES.values():
        raise FileError(path, f"its type {dtype} is not read", key, f"convert it to one of {', '.join(DTYPES)}")
    return dtype


def _header(content: bytes, path: Path, key: str) -> tuple[int, dict[str, Any], str]:
    """Reads the head of an array: its length in bytes, its description, its order of axes."""
    size = {1: 2, 2: 4}.get(content[6] if content.startswith(_MAGIC) and len(content) > 12 else None)
    if size is None:
        raise FileError(path, "it is no NumPy array of a version that is read", key)
    (length,) = struct.unpack_from("<H" if size == 2 else "<I", content, 8)
    text = content[8 + size : 8 + size + length]
    try:
        description = ast.literal_eval(text.decode("latin1")) if len(text) == length <= _MAX_HEADER else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        description = None
    if not isinstance(description, dict) or description.keys() != {"descr", "fortran_order", "shape"}:
        raise FileError(path, "the head of the array is damaged", key)
    return 8 + size + length, description, "F" if description["fortran_order"] else "C"


def _read(path: Path, file: BinaryIO, key: str, member: archive.Member, start: int, spec: Spec, order: str):
    whole = mapped(path, file, member.offset, Spec((member.size,), np.dtype(np.uint8)), key)
    if zlib.crc32(whole) != member.crc:
        raise FileError(path, "its bytes are not those that were written (checksum)", key)
    array = whole[start:].view(spec.dtype).reshape(spec.shape, order=order)
    return array.astype(spec.dtype.newbyteorder("="), copy=False)


def write_file(
    path: Path, specs: Mapping[str, Spec], arrays: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str]
) -> None:
    """Writes an archive that ``numpy.load`` reads too; there, what NumPy has no name for are bytes (``V2``)."""
    types = {name: str(spec.dtype) for name, spec in specs.items() if str(spec.dtype) in EXTENDED}
    table = np.frombuffer(json.dumps({"types": types, "metadata": dict(metadata)}).encode(), np.uint8)
    with path.open("xb") as file, archive.Writer(file) as writer:
        _add(writer, TABLE.removesuffix(".npy"), table)
        for name, array in arrays:
            _add(writer, name, array)
            del array


def _add(writer: archive.Writer, name: str, array: np.ndarray) -> None:
    descr = f"|V{array.dtype.itemsize}" if str(array.dtype) in EXTENDED else array.dtype.str
    text = repr({"descr": descr, "fortran_order": False, "shape": array.shape})
    text += " " * (-(len(text) + 11) % 64) + "\n"
    head = _MAGIC + struct.pack("<2BH", 1, 0, len(text)) + text.encode("latin1")
    writer.add(f"{name}.npy", [head, raw(array)], len(head) + array.nbytes)
