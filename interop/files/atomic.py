"""Files and folders that are there in full or not at all, and replace others only once they are whole."""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from jaxkit.errors import ConfigError, UserError

_REPLACED = "replaced"
_FLUSH = 64 << 20


def require_free(paths: Iterable[Path], force: bool) -> None:
    """Refuses to overwrite.

    Raises:
        ConfigError: if one of ``paths`` exists and ``force`` is off, or its folder does not.
    """
    for path in paths:
        if not path.parent.is_dir():
            raise ConfigError(f"{path}: the folder {path.parent} does not exist; make it first")
        if os.path.lexists(path) and not force:
            raise ConfigError(f"{path} exists already; --force overwrites it")


@contextlib.contextmanager
def staged(parent: Path, destination: Path, size: int) -> Iterator[Path]:
    """A hidden folder in ``parent`` to write ``destination`` in; it is gone when the context ends, however it ends.

    Args:
        parent: where the finished files will be.
        destination: what the user asked for, in messages.
        size: bytes that will be written.

    Raises:
        UserError: if the disk has no room for ``size`` bytes, or refuses them.
    """
    try:
        free = shutil.disk_usage(parent).free
        if free < size:
            raise UserError(f"{destination}: {size:,} bytes do not fit on the disk, which has {free:,} free")
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".{destination.name}."))
        try:
            with _interruptible(destination):
                yield folder
        finally:
            # what an interrupted replacement could not put back is the only copy there is
            if not any((folder / _REPLACED).glob("*")):
                shutil.rmtree(folder)
    except OSError as error:
        raise UserError(f"{destination}: cannot be written: {error.strerror or error}") from error


class Stopped(UserError):
    """A signal ended the writing of a file."""

    def __init__(self, destination: Path, number: int):
        self.exit_code = 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name}; {destination} is as it was before")


@contextlib.contextmanager
def _interruptible(destination: Path) -> Iterator[None]:
    """Lets signals raise :class:`Stopped` where they would end the process at once, and leave half a file behind."""
    own = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # None is a handler that is not Python's, and could not be put back
    soft = (signal.default_int_handler, signal.SIG_IGN, None)
    hard = [number for number, handler in own.items() if handler not in soft]

    def stop(number: int, _frame: object) -> None:
        raise Stopped(destination, number)

    if threading.current_thread() is not threading.main_thread():
        hard = []
    for number in hard:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in hard:
            signal.signal(number, own[number])


def publish(folder: Path, moves: dict[Path, Path], retired: Iterable[Path] = ()) -> None:
    """Moves finished files or folders out of a :func:`staged` folder, once they are on disk.

    If that fails, all is as it was before.

    Args:
        folder: of :func:`staged`.
        moves: from where each is to where it goes, in order; whatever is there is replaced.
        retired: files that the new ones make untrue; they go.
    """
    for path in moves:
        # one after the other at the end: the first takes the others along, and the rest are quick
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            _sync(file)
    retired = list(retired)
    [(only, final), *more] = moves.items()
    if not (more or retired or final.is_dir()):
        os.replace(only, final)
        _sync(final.parent)
        return
    backup = folder / _REPLACED
    backup.mkdir()
    old = [*retired, *(final for final in moves.values() if os.path.lexists(final))]
    steps = [(path, backup / str(number)) for number, path in enumerate(old)] + list(moves.items())
    begun = []
    try:
        for source, target in steps:
            begun.append((source, target))
            os.rename(source, target)
    except BaseException:
        for source, target in reversed(begun):
            if os.path.lexists(target):
                os.rename(target, source)
        raise
    shutil.rmtree(backup)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def to_disk(file: BinaryIO) -> Iterator[Callable[[int], None]]:
    """Brings what is written to disk behind the writer, and out of memory; gives a function to tell how many bytes.

    Otherwise a large file fills the memory with pages that nobody reads, and the end waits for all of them.

    Raises:
        OSError: if the disk refuses, at the next call or at the end.
    """
    waiting, flushing = 0, None

    def flush() -> None:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    with ThreadPoolExecutor(1) as behind:

        def written(size: int) -> None:
            nonlocal waiting, flushing
            waiting += size
            if waiting >= _FLUSH:
                if flushing is not None:
                    flushing.result()
                flushing, waiting = behind.submit(flush), 0

        yield written
        if flushing is not None:
            flushing.result()
