"""GPUs for workers, by file locks that the kernel drops when runner and workers are gone."""

import fcntl
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxkit.errors import ConfigError

_MEMORY = 0.9
_PATIENCE = 5.0
"""Seconds that nvidia-smi is given; of a driver that hangs it never ends, and the watchdog waits meanwhile."""


class Slot(NamedTuple):
    """The right to use a GPU, or to use none."""

    gpu: str | None
    lock: int | None
    """A descriptor that the worker inherits, so that the GPU stays taken while any process on it lives."""
    variables: dict[str, str]
    """For the environment of the worker."""


class Slots:
    """The slots of some GPUs, one for each worker that may share one.

    While a runner has workers on a GPU it holds the lock of it, and other runners wait.

    Args:
        gpus: their names, as CUDA_VISIBLE_DEVICES has them; none: workers use no GPU.
        parallel: the number of workers.
        folder: of the lock files; runners that share it share the GPUs.
    """

    def __init__(self, gpus: list[str], parallel: int, folder: Path | None = None):
        self._gpus, self._share = gpus, math.ceil(parallel / len(gpus)) if gpus else 0
        self._folder = folder or Path(tempfile.gettempdir()) / "jaxkit-gpus"
        self._locks: dict[str, int] = {}
        self._workers = dict.fromkeys(gpus, 0)
        self._files = _lock_names(gpus)

    def claim(self) -> Slot | None:
        """Takes a slot, of the GPU with the fewest workers; None if all are taken."""
        if not self._gpus:
            return Slot(None, None, {})
        for gpu in sorted(self._gpus, key=self._workers.__getitem__):
            if self._workers[gpu] < self._share and self._lock(gpu):
                self._workers[gpu] += 1
                return Slot(gpu, self._locks[gpu], self._variables(gpu))
        return None

    def release(self, slot: Slot) -> None:
        """Gives a slot back, when its worker has ended; with the last one of a GPU its lock."""
        if slot.gpu is not None:
            self._workers[slot.gpu] -= 1
            if not self._workers[slot.gpu]:
                os.close(self._locks.pop(slot.gpu))

    def _lock(self, gpu: str) -> bool:
        """Takes the lock of a GPU, unless it is held already, here or by another runner; says whether it is here."""
        if gpu not in self._locks:
            descriptor = _locked(self._folder, self._files[gpu])
            if descriptor is None:
                return False
            self._locks[gpu] = descriptor
        return True

    def _variables(self, gpu: str) -> dict[str, str]:
        memory = {
            # a worker takes what it needs, up to its share
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{_MEMORY / self._share:.3f}",
        }
        own = {name: os.environ[name] for name in memory if name in os.environ}
        return {**memory, **own, "CUDA_VISIBLE_DEVICES": gpu}


def _lock_names(gpus: Sequence[str]) -> dict[str, str]:
    """The lock file of each GPU: named after its UUID where nvidia-smi tells it, as 0 and GPU-8a1b may be one."""
    if not gpus:
        return {}
    rows = [line.split(", ") for line in _query(["--query-gpu=index,uuid", "--format=csv,noheader"]).splitlines()]
    known = [(row[0], row[1]) for row in rows if len(row) == 2]
    return {
        gpu: next((uuid for index, uuid in known if gpu == index or uuid.startswith(gpu)), gpu).replace("/", "_")
        for gpu in gpus
    }


def _locked(folder: Path, name: str) -> int | None:
    """Locks a file of a folder that all users share; None if another has it."""
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        # as /tmp itself: everybody's, and nobody removes another's file
        folder.chmod(0o1777)
    path = folder / name
    try:
        # to lock it needs no right to write: it may be another user's
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def visible(chosen: str | None) -> list[str]:
    """The GPUs to use: all that the caller sees, or the ``chosen`` of them.

    Args:
        chosen: positions separated by commas, as ``--gpus``: among the caller's CUDA_VISIBLE_DEVICES, where that is
            set, else of the machine.

    Raises:
        ConfigError: if there is no such position.
    """
    own = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = None if own is None else [name.strip() for name in own.split(",") if name.strip() not in ("", "-1")]
    if chosen is None:
        return _installed() if seen is None else seen
    places = chosen.split(",")
    if not all(place.isdigit() for place in places) or len(set(places)) < len(places):
        raise ConfigError(f"--gpus {chosen}: write different numbers separated by commas, such as 0,1")
    if seen is None:
        return places
    if max(map(int, places)) >= len(seen):
        raise ConfigError(f"--gpus {chosen}: CUDA_VISIBLE_DEVICES={own} leaves {len(seen)}, numbered from 0")
    return [seen[int(place)] for place in places]


def use(gpu: str) -> str:
    """What is in use of a GPU, in words; empty without nvidia-smi."""
    return _query(["--query-gpu=memory.used,memory.total,utilization.gpu", "--format=csv,noheader", f"--id={gpu}"])


def _installed() -> list[str]:
    return _query(["--query-gpu=index", "--format=csv,noheader"]).split()


def _query(arguments: list[str]) -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        found = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
