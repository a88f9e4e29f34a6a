"""The open weight file: what every format gives, and tensors mapped from disk."""

import mmap
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from interop.files.dtypes import nbytes
from interop.files.errors import FileError, shown
from interop.layout import Spec

Format = Literal["torch", "flax"]
_MAX_DEPTH = 100


class Entry(NamedTuple):
    """A tensor in a file."""

    spec: Spec
    read: Callable[[], np.ndarray]


class Weights:
    """A weight file, open: names, shapes and types are known, a tensor is read when asked for.

    A context manager: closing it releases the files. An array it gave stays valid, and its memory is the file's: it is
    read-only, and its pages leave memory with it.

    Args:
        path: what was opened, a file or a folder.
        format: whose names and layouts the tensors have: ``torch`` keys, or ``flax`` paths joined by ``/``.
        entries: of each tensor, by name.
        files: all that belongs to it.
        metadata: what the file says about itself.
        notes: what was recognised or left out, one sentence each.
        opened: what closes the files.

    Raises:
        FileError: if a Flax path leads through a tensor, or more than 100 names deep: no tree has it.
    """

    def __init__(
        self,
        path: Path,
        format: Format,
        entries: Mapping[str, Entry],
        *,
        files: Iterable[Path],
        metadata: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
        opened: ExitStack | None = None,
    ):
        self.path, self.format = path, format
        self.files, self.metadata, self.notes = list(files), dict(metadata or {}), list(notes)
        self.specs: dict[str, Spec] = {name: entry.spec for name, entry in entries.items()}
        self._entries, self._opened = dict(entries), opened or ExitStack()
        if format == "flax" and (problem := _tree_problem(entries)):
            self.close()
            raise FileError(path, *problem, "rename one where they come from")

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor, every bit of it.

        Raises:
            FileError: if the file was changed or is found to be damaged.
        """
        return self._entries[name].read()

    def entries(self) -> dict[str, Entry]:
        """Each tensor's spec with what reads it."""
        return dict(self._entries)

    def close(self) -> None:
        """Closes the files."""
        self._opened.close()

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _tree_problem(paths: Iterable[str]) -> tuple[str, str] | None:
    """What keeps paths from making a tree, and the path it is about."""
    # no name has a character before the space, so each path is followed at once by those that lead through it
    ordered = [path.replace("\0", "/") for path in sorted(path.replace("/", "\0") for path in paths)]
    for path, after in pairwise(ordered):
        if after.startswith(f"{path}/"):
            return f"a tensor is there, and {shown(after)} leads through it", path
    deep = next((path for path in ordered if path.count("/") >= _MAX_DEPTH), None)
    return None if deep is None else (f"the path has more than {_MAX_DEPTH} names", deep)


def mapped(path: Path, file: BinaryIO, offset: int, spec: Spec, key: str) -> np.ndarray:
    """A read-only array over the bytes of ``file`` from ``offset``; each has its own mapping, which ends with it.

    Raises:
        FileError: if the file has become shorter since it was opened.
    """
    size = nbytes(spec)
    if size == 0:
        return np.empty(spec.shape, spec.dtype)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    # Populated at once, a mapping is read as fast as the page cache; page by page it takes twice as long.
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_POPULATE", 0)
    try:
        window = mmap.mmap(file.fileno(), offset - start + size, flags=flags, prot=mmap.PROT_READ, offset=start)
    except ValueError:
        raise FileError(path, "the file was cut while it was read", key) from None
    count = size // spec.dtype.itemsize
    array = np.frombuffer(window, spec.dtype, count, offset - start).reshape(spec.shape)
    return array if array.flags.aligned else array.copy()
