"""One GPU a worker, by file locks that the kernel drops when the worker dies."""

import fcntl
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from jaxkit.errors import ConfigError

_MEMORY = 0.9


class Slot(NamedTuple):
    """The right to use a GPU, or to use none."""

    gpu: str | None
    lock: int | None
    """A descriptor that the worker inherits: the slot is free when the last process that holds it is gone."""
    variables: dict[str, str]
    """For the environment of the worker."""


class Slots:
    """The slots of some GPUs, one for each worker that may share one.

    Args:
        gpus: their names, as CUDA_VISIBLE_DEVICES has them; none: workers use no GPU.
        parallel: the number of workers.
        folder: of the lock files; runners that share it share the GPUs.
    """

    def __init__(self, gpus: list[str], parallel: int, folder: Path | None = None):
        self._gpus, self._share = gpus, math.ceil(parallel / len(gpus)) if gpus else 0
        self._folder = folder or Path(tempfile.gettempdir()) / "jaxkit-gpus"

    def claim(self) -> Slot | None:
        """Takes a slot; None if all are taken."""
        if not self._gpus:
            return Slot(None, None, {})
        self._folder.mkdir(exist_ok=True)
        for place in range(self._share):
            for gpu in self._gpus:
                lock = _locked(self._folder / f"{gpu.replace('/', '_')}.{place}")
                if lock is not None:
                    return Slot(gpu, lock, self._variables(gpu))
        return None

    def _variables(self, gpu: str) -> dict[str, str]:
        memory = {
            # a worker takes what it needs, up to its share
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{_MEMORY / self._share:.3f}",
        }
        own = {name: os.environ[name] for name in memory if name in os.environ}
        return {**memory, **own, "CUDA_VISIBLE_DEVICES": gpu}


def _locked(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
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
    found = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""
