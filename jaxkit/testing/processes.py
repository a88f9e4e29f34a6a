"""Processes and all that they start: counted, and ended."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "JAXKIT_TEST_WORKER"
"""The variable that a worker and all below it carry in their environment."""
_PROC = Path("/proc")
_ROUNDS = 50


def nested(name: str) -> str:
    """The mark of a worker: that of the worker around this process, if there is one, and its own name."""
    return f"{os.environ.get(MARK, '')}/{name}/"


def count(session: int) -> int:
    """How many processes belong to a session; 0 where there is no /proc."""
    return sum(_session(pid) == session for pid in _pids())


def end_all(session: int, mark: str) -> None:
    """Kills a worker, its process group, and what carries its mark wherever it went, a daemon or a fork's fork."""
    for _ in range(_ROUNDS):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(session, signal.SIGKILL)
        found = [pid for pid in _pids() if _session(pid) == session or _marked(pid, mark)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return
        # what was just being forked is seen in the next round
        time.sleep(0.02)


def _pids() -> Iterator[int]:
    own = os.getpid()
    if _PROC.is_dir():
        yield from (int(name) for name in os.listdir(_PROC) if name.isdigit() and int(name) != own)


def _session(pid: int) -> int | None:
    """The session of a living process."""
    try:
        state = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state[0] in "ZX" else int(state[3])


def _marked(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in (_PROC / str(pid) / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False


def died(code: int) -> str:
    """How a process ended, by its exit code."""
    if code >= 0:
        return f"the process ended with {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + ("; by the kernel, if memory ran out" if code == -signal.SIGKILL else "")
