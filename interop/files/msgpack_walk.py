"""The structure of a Flax msgpack file, walked without reading its arrays.

Every length is held against the bytes that are left before it is believed.
"""

import mmap
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from interop.files.dtypes import DTYPES, MAX_AXES, nbytes, shape_problem
from interop.files.errors import FileError
from interop.files.strict_json import require_printable
from interop.layout import Spec

MAX_DEPTH = 100
NDARRAY, COMPLEX, SCALAR = 1, 2, 3
_MAX_VALUES = 1_000_000
_MAX_TEXT = 1 << 16
_HEADS = {
    0xC4: ("bin", ">B"), 0xC5: ("bin", ">H"), 0xC6: ("bin", ">I"), 0xD9: ("str", ">B"), 0xDA: ("str", ">H"),
    0xDB: ("str", ">I"), 0xDC: ("array", ">H"), 0xDD: ("array", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
    0xC7: ("ext", ">B"), 0xC8: ("ext", ">H"), 0xC9: ("ext", ">I"),
}  # fmt: skip
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class Array(NamedTuple):
    """An array in the file, and where its bytes begin."""

    spec: Spec
    offset: int


class Walk:
    """Goes through a file once, over its structure and around its arrays."""

    def __init__(self, data: mmap.mmap, path: Path):
        self.data, self.path, self.position = data, path, 0
        self.names: list[str] = []
        self.values = 0

    def value(self, depth: int) -> Any:
        """Reads one value: dicts by name, arrays as where they lie, the rest as Python has it."""
        if depth > MAX_DEPTH:
            raise self.damage(f"maps lie in each other more than {MAX_DEPTH} deep")
        self.values += 1
        if self.values > _MAX_VALUES:
            raise self.damage(f"more than {_MAX_VALUES:,} values are in it")
        kind, size = self.head()
        if kind == "map":
            self.require(2 * size)
            return self.children((self.name() for _ in range(size)), depth)
        if kind == "array":
            self.require(size)
            return self.children(map(str, range(size)), depth)
        if kind == "ext":
            return self.extension(size)
        if kind == "str":
            return self.text(size)
        if kind == "bin":
            self.skip(size)
            return b""
        return size

    def head(self) -> tuple[str, Any]:
        """Reads what a value is and how long; the value itself, where it is a number."""
        (code,) = self.skip(1)
        if code in _HEADS:
            kind, layout = _HEADS[code]
            return kind, self.number(layout)
        if code in _NUMBERS:
            return "number", self.number(_NUMBERS[code])
        if code in _CONSTANTS:
            return "constant", _CONSTANTS[code]
        if code <= 0x7F or code >= 0xE0:
            return "number", code if code <= 0x7F else code - 256
        if code <= 0x8F:
            return "map", code & 0x0F
        if code <= 0x9F:
            return "array", code & 0x0F
        if code <= 0xBF:
            return "str", code & 0x1F
        if 0xD4 <= code <= 0xD8:
            return "ext", 1 << (code - 0xD4)
        raise self.damage(f"byte {self.position - 1} begins nothing that msgpack knows")

    def children(self, names: Iterable[str], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in names:
            self.names.append(name)
            if name in found:
                raise self.damage("the key is twice in its map")
            found[name] = self.value(depth + 1)
            self.names.pop()
        return found

    def name(self) -> str:
        kind, size = self.head()
        if kind != "str":
            raise self.damage("a key of a map is no text")
        name = self.text(size)
        require_printable(name, self.path)
        return name

    def extension(self, size: int) -> Any:
        code = self.number(">b")
        end = self.position + size
        self.require(size)
        if code == COMPLEX:
            self.skip(size)
            return 0j
        if code not in (NDARRAY, SCALAR):
            raise self.damage(f"extension {code} is none of Flax's")
        array = self.array()
        if self.position != end:
            raise self.damage(f"its array ends at byte {self.position}, not {end} as its length says")
        return array

    def array(self) -> Array:
        """Reads ``[shape, name of type, bytes]`` up to the bytes, and goes around them."""
        shape = self.sizes() if self.head() == ("array", 3) else None
        kind, size = self.head()
        name = self.text(size) if kind == "str" else None
        kind, size = self.head()
        if shape is None or name is None or kind != "bin":
            raise self.damage("its array is not shape, type and bytes")
        if name not in DTYPES:
            raise self.damage(f"its type {ascii(name)[:40]} is not read; those read are {', '.join(DTYPES)}")
        if problem := shape_problem(shape, DTYPES[name]):
            raise self.damage(problem)
        spec = Spec(tuple(shape), DTYPES[name])
        if nbytes(spec) != size:
            raise self.damage(f"its shape takes {nbytes(spec):,} bytes, {size:,} are there")
        offset = self.position
        self.skip(size)
        return Array(spec, offset)

    def sizes(self) -> list[Any] | None:
        """Reads a shape, if it is numbers alone: of an array in it, the shape could have an array in turn."""
        kind, count = self.head()
        if kind != "array" or count > MAX_AXES:
            return None
        heads = [self.head() for _ in range(count)]
        return [size for _, size in heads] if all(kind == "number" for kind, _ in heads) else None

    def text(self, size: int) -> str:
        if size > _MAX_TEXT:
            raise self.damage(f"a text in it has {size:,} bytes")
        try:
            return self.skip(size).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damage("a text in it is not UTF-8") from None

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.skip(struct.calcsize(layout)))[0]

    def skip(self, size: int) -> bytes:
        """Goes on by ``size`` bytes, and gives them where they are few."""
        self.require(size)
        self.position += size
        return self.data[self.position - size : self.position] if size <= _MAX_TEXT else b""

    def require(self, size: int) -> None:
        left = len(self.data) - self.position
        if size > left:
            raise self.damage(f"{size:,} bytes should follow byte {self.position}, {left:,} do: it is cut")

    def damage(self, problem: str) -> FileError:
        return FileError(self.path, f"{problem}", "/".join(self.names) or None)
