"""safetensors: a JSON header with the type, shape and place of each tensor, then their bytes, without a gap.

Every number of the header is checked before a byte is mapped, so no file reaches outside itself. The format's own
package neither reads 8-bit floats into NumPy nor writes arrays that are not contiguous as what they are.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from interop.files.atomic import to_disk
from interop.files.dtypes import DTYPES, nbytes, raw, shape_problem
from interop.files.errors import FileError
from interop.files.strict_json import parse, require_printable, text_map
from interop.files.weights import Entry, Format, Weights, mapped
from interop.layout import Spec

CODES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
}  # fmt: skip
_CODE_OF = {DTYPES[name]: code for code, name in CODES.items()}
WRITABLE = frozenset(CODES.values())
MAX_HEADER = 100_000_000
_FIELDS = {"dtype", "shape", "data_offsets"}


class Place(NamedTuple):
    """What a tensor is, and where in the file its bytes begin."""

    spec: Spec
    offset: int


def looks_like(head: bytes) -> bool:
    """Whether a file that begins with ``head``, 9 bytes or more, can be safetensors."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER


def open_file(path: Path) -> Weights:
    """Opens one file.

    Raises:
        FileError: if anything in its header is not as the format has it.
    """
    with ExitStack() as opened:
        file = opened.enter_context(path.open("rb"))
        places, metadata = read_header(file, path)
        flax = metadata.get("format") == "flax"
        entries: dict[str, Entry] = {}
        for key, (spec, offset) in places.items():
            name = key.replace(".", "/") if flax else key
            if name in entries:
                raise FileError(path, f"two tensors have the path {name}", key, "rename one where they come from")
            entries[name] = Entry(spec, partial(mapped, path, file, offset, spec, key))
        return Weights(
            path,
            "flax" if flax else "torch",
            entries,
            files=[path],
            metadata=metadata,
            opened=opened.pop_all(),
        )


def read_header(file: BinaryIO, path: Path) -> tuple[dict[str, Place], dict[str, str]]:
    """Reads and checks a header: the place of each tensor, in the header's order, and the metadata.

    Raises:
        FileError: naming the tensor, if the header does not describe exactly the bytes that follow it.
    """
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise FileError(path, f"it is cut: a header of {length:,} bytes does not fit in {size:,}")
    if length > MAX_HEADER:
        raise FileError(path, f"its header has {length:,} bytes, more than the {MAX_HEADER:,} that the format allows")
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise FileError(path, "its header does not begin with '{': it is no safetensors file")
    header = parse(raw, path, "header")
    metadata = text_map(header.pop("__metadata__", {}), path, "__metadata__")
    start = 8 + length
    places = {name: _place(name, fields, start, path) for name, fields in header.items()}
    _require_exact_cover(places, start, size, path)
    return places, metadata


def _place(name: str, fields: Any, start: int, path: Path) -> Place:
    require_printable(name, path)
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        raise FileError(path, "its header entry must have dtype, shape and data_offsets, nothing else", name)
    code, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(code, str) or code not in CODES:
        raise FileError(
            path, f"its type {ascii(code)[:40]} is not read", name, f"convert it to one of {', '.join(CODES)}"
        )
    dtype = DTYPES[CODES[code]]
    if problem := shape_problem(shape, dtype):
        raise FileError(path, problem, name)
    if not isinstance(offsets, list) or [type(number) for number in offsets] != [int, int]:
        raise FileError(path, f"its data_offsets {ascii(offsets)[:40]} are no two positions", name)
    spec, (begin, end) = Spec(tuple(shape), dtype), offsets
    if begin < 0 or end - begin != nbytes(spec):
        raise FileError(path, f"{code} {shape} takes {nbytes(spec):,} bytes, not those from {begin} to {end}", name)
    return Place(spec, start + begin)


def _require_exact_cover(places: Mapping[str, Place], start: int, size: int, path: Path) -> None:
    """Tensors must lie one after the other, from the header to the end of the file."""
    position = start
    for name, (spec, offset) in sorted(places.items(), key=lambda item: (item[1].offset, nbytes(item[1].spec))):
        if offset != position:
            relation = "overlaps the tensor" if offset < position else "leaves a gap after what lies"
            raise FileError(path, f"it {relation} before it, at byte {offset - start}", name)
        position += nbytes(spec)
        if position > size:
            raise FileError(path, f"it ends at byte {position:,} of a file of {size:,}: cut", name)
    if position != size:
        raise FileError(path, f"{size - position:,} bytes after the last tensor belong to none")


def write_file(
    path: Path,
    specs: Mapping[str, Spec],
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
    format: Format,
) -> None:
    """Writes one file, from arrays in the order of ``specs``; the same input gives the same bytes."""
    keys = {name: name.replace("/", ".") if format == "flax" else name for name in specs}
    named = {"format": "flax" if format == "flax" else "pt"}
    header: dict[str, Any] = {"__metadata__": {**metadata, **named}}
    offsets, position = {}, 0
    # readers that view the bytes in place need each tensor at a multiple of its type's size
    for name in sorted(specs, key=lambda name: -specs[name].dtype.itemsize):
        offsets[name] = position
        position += nbytes(specs[name])
    for name, spec in specs.items():
        places = [offsets[name], offsets[name] + nbytes(spec)]
        header[keys[name]] = {"dtype": _CODE_OF[spec.dtype], "shape": list(spec.shape), "data_offsets": places}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise FileError(path, f"a header of {len(text):,} bytes is more than the format allows", remedy="write shards")
    with path.open("xb") as file, to_disk(file) as written:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, array in arrays:
            file.seek(8 + len(text) + offsets[name])
            file.write(raw(array))
            written(array.nbytes)
            del array
