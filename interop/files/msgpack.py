"""Flax's msgpack: nested maps whose leaves are arrays, each an extension that holds shape, type and bytes."""

import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgpack
import numpy as np

from interop.files.dtypes import DTYPES, nbytes, raw
from interop.files.errors import FileError, listed
from interop.files.msgpack_walk import NDARRAY, Array, Walk
from interop.files.weights import Entry, Weights, mapped
from interop.layout import Spec

WRITABLE = frozenset(DTYPES)
_CHUNKED = "__msgpack_chunked_array__"
_CHUNK = 1 << 30


def looks_like(head: bytes) -> bool:
    """Whether a file that begins with ``head`` can be a msgpack map."""
    return 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)


def open_file(path: Path) -> Weights:
    """Opens the arrays of a file; their names are the keys of the maps they are in, joined by ``/``.

    Raises:
        FileError: if a length does not fit the file, or there is something in it that Flax does not write.
    """
    with ExitStack() as opened:
        file = opened.enter_context(path.open("rb"))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            walk = Walk(data, path)
            tree = walk.value(0)
            left = len(data) - walk.position
        if left:
            raise FileError(path, f"{left:,} bytes follow its end")
        entries: dict[str, Entry] = {}
        others = []
        for name, leaf in _leaves(tree, "", path):
            if not isinstance(leaf, Array | _Chunked):
                others.append(f"{name} ({type(leaf).__name__})")
            elif name in entries:
                raise FileError(path, "two arrays have this path", name, "rename one where they come from")
            else:
                entries[name] = Entry(leaf.spec, partial(_read, path, file, name, leaf))
        if not entries:
            raise FileError(path, f"no arrays are in it, but {listed(others) or 'nothing'}")
        notes = [f"left out, being no tensors: {listed(others)}"] if others else []
        return Weights(path, "flax", entries, files=[path], notes=notes, opened=opened.pop_all())


class _Chunked(NamedTuple):
    """An array too large for one extension: several, of one axis each."""

    spec: Spec
    chunks: tuple[Array, ...]


def _leaves(node: Any, path: str, file: Path) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and _CHUNKED in node:
        yield path, _chunked(node, path, file)
    elif isinstance(node, dict):
        for name, child in node.items():
            yield from _leaves(child, f"{path}/{name}" if path else name, file)
    else:
        yield path, node


def _chunked(node: Mapping[str, Any], path: str, file: Path) -> _Chunked:
    """Puts together what Flax cut: ``shape`` and ``chunks`` are maps from "0", "1"... in place of tuples."""
    shape, chunks = (_sequence(node.get(name)) for name in ("shape", "chunks"))
    whole = bool(chunks) and all(isinstance(chunk, Array) for chunk in chunks)
    if not whole or len({chunk.spec.dtype for chunk in chunks}) != 1:
        raise FileError(file, "its chunks are not arrays of one type", path)
    counts = all(type(size) is int and size >= 0 for size in shape)
    if not counts or math.prod(shape) != sum(math.prod(chunk.spec.shape) for chunk in chunks):
        raise FileError(file, f"its chunks do not add up to the shape {str(shape)[:100]}", path)
    return _Chunked(Spec(tuple(shape), chunks[0].spec.dtype), tuple(chunks))


def _sequence(node: Any) -> list[Any]:
    numbered = isinstance(node, dict) and list(node) == [str(number) for number in range(len(node))]
    return list(node.values()) if numbered else []


def _read(path: Path, file: BinaryIO, name: str, leaf: Array | _Chunked) -> np.ndarray:
    if isinstance(leaf, Array):
        return mapped(path, file, leaf.offset, leaf.spec, name)
    whole = np.empty(leaf.spec.shape, leaf.spec.dtype)
    flat, position = whole.reshape(-1), 0
    for spec, offset in leaf.chunks:
        count = math.prod(spec.shape)
        flat[position : position + count] = mapped(path, file, offset, spec, name).reshape(-1)
        position += count
    return whole


def write_file(path: Path, specs: Mapping[str, Spec], arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes the bytes that ``flax.serialization.msgpack_serialize`` gives; the format has no place for metadata."""
    places: dict[str, list[tuple[int, int]]] = {name: [] for name in specs}
    with path.open("xb") as file:
        position = 0
        for piece in _pieces(_tree(specs)):
            if isinstance(piece, bytes):
                file.seek(position)
                file.write(piece)
                position += len(piece)
            else:
                name, size = piece
                places[name].append((position, size))
                position += size
        for name, array in arrays:
            content, start = raw(array), 0
            for offset, size in places[name]:
                file.seek(offset)
                file.write(content[start : start + size])
                start += size
            del array, content


class _Leaf(NamedTuple):
    name: str
    spec: Spec


def _tree(specs: Mapping[str, Spec]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, spec in specs.items():
        node = tree
        *parents, last = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = _Leaf(path, spec)
    return tree


def _pieces(node: Any) -> Iterator[bytes | tuple[str, int]]:
    """The file in order: bytes, and for those of an array its name and their number."""
    packer = msgpack.Packer()
    if isinstance(node, _Leaf) and nbytes(node.spec) > _CHUNK:
        yield from _chunk_pieces(node)
    elif isinstance(node, _Leaf):
        yield from _array_pieces(node.name, node.spec)
    else:
        yield packer.pack_map_header(len(node))
        for name, child in node.items():
            yield packer.pack(name)
            yield from _pieces(child)


def _chunk_pieces(leaf: _Leaf) -> Iterator[bytes | tuple[str, int]]:
    (shape, dtype), packer = leaf.spec, msgpack.Packer()
    total, step = math.prod(shape), _CHUNK // dtype.itemsize
    starts = range(0, total, step)
    yield packer.pack_map_header(3) + packer.pack(_CHUNKED) + packer.pack(True)
    yield packer.pack("shape") + packer.pack({str(axis): size for axis, size in enumerate(shape)})
    yield packer.pack("chunks") + packer.pack_map_header(len(starts))
    for number, start in enumerate(starts):
        yield packer.pack(str(number))
        yield from _array_pieces(leaf.name, Spec((min(step, total - start),), dtype))


def _array_pieces(name: str, spec: Spec) -> Iterator[bytes | tuple[str, int]]:
    packer, size = msgpack.Packer(), nbytes(spec)
    inside = packer.pack_array_header(3) + packer.pack(spec.shape) + packer.pack(str(spec.dtype))
    inside += _head(size, (0xC4, 0xC5, 0xC6))
    length = len(inside) + size
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(length)
    head = bytes([fixed]) if fixed else _head(length, (0xC7, 0xC8, 0xC9))
    yield head + bytes([NDARRAY]) + inside
    yield name, size


def _head(size: int, codes: tuple[int, int, int]) -> bytes:
    """A length in one, two or four bytes, after the code that says which."""
    code, width = next(pair for pair in zip(codes, (1, 2, 4), strict=True) if size < 1 << (8 * pair[1]))
    return bytes([code]) + size.to_bytes(width, "big")
