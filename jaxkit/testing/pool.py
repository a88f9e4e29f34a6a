"""Workers: one job each, watched from outside, ended with all that they started."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from jaxkit.testing import gpus, processes
from jaxkit.testing.ending import Ending
from jaxkit.testing.gpus import Slot, Slots
from jaxkit.testing.results import Test

WORKER = Path(__file__).with_name("worker.py")
_EXIT_SECONDS = 30.0
"""That a process may take to end once its tests are done."""
_TRACE_SECONDS = 2.0
"""That a process may take to write where it hangs."""
_MOST_PROCESSES = 256
"""That a worker may have started at one time."""
_SLOW_SECONDS = 5.0
"""Of a test after which the use of its GPU is noted."""
_POLL_SECONDS = 0.02


class Job(NamedTuple):
    """What one process does."""

    files: tuple[str, ...]
    """Absolute paths."""
    tests: tuple[Test, ...] | None
    """To run; None: to collect."""
    environment: str = "default"
    known: tuple[str, ...] = ()
    """Ids of all tests that were collected in the files; others are told of."""


class Setting(NamedTuple):
    """What all workers share."""

    folder: Path
    """Of jobs, events and logs."""
    root: Path
    """Where pytest is run, and what ids are relative to."""
    top: Path
    """Where test files are looked for."""
    arguments: tuple[str, ...]
    """Of pytest."""
    variables: dict[str, str]
    pythons: dict[str, str]
    """The interpreter of each environment."""
    timeout: float
    """Seconds for a test, or for the import of a file."""


class Signals:
    """Notes SIGINT, SIGTERM and SIGHUP in its ``with`` block; the second one does what it did before."""

    def __init__(self):
        self.number: int | None = None

    def __enter__(self):
        noted = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            # under nohup it stays ignored
            noted.append(signal.SIGHUP)
        self._former = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(self, *_):
        self._restore()

    def _note(self, number, _frame):
        self.number = number
        self._restore()

    def _restore(self):
        for number, handler in self._former.items():
            signal.signal(number, handler)


class Worker:
    """A process at work on a job."""

    def __init__(self, job: Job, name: str, setting: Setting, slot: Slot):
        self.job, self.slot, self._setting = job, slot, setting
        self._log, self._terminal = setting.folder / f"{name}.log", setting.folder / f"{name}.pytest.log"
        events = setting.folder / f"{name}.events"
        events.touch()
        told = {
            "files": job.files,
            "ids": None if job.tests is None else [test.id for test in job.tests],
            "known": job.known,
            "top": str(setting.top),
            "arguments": setting.arguments,
            "events": str(events),
            "log": str(self._log),
            "terminal": str(self._terminal),
        }
        path = setting.folder / f"{name}.job.json"
        path.write_text(json.dumps(told), encoding="utf-8")
        self._mark = processes.nested(f"{os.getpid()}.{time.time_ns()}")
        self._events, self._file, self._partial = [], events.open("rb"), b""
        self._limits = {test.id: test.timeout for test in job.tests or () if test.timeout}
        self._use: dict[str, str] = {}
        self._started, self._since, self._counted = time.time(), time.monotonic(), 0.0
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        variables.pop("PYTEST_CURRENT_TEST", None)
        with self._log.open("wb") as log:
            # a session of its own: a signal to the terminal is the runner's, and its group can be ended whole
            self._process = subprocess.Popen(
                [setting.pythons[job.environment], "-u", str(WORKER), str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=setting.root,
                env={**variables, **setting.variables, **slot.variables, processes.MARK: self._mark},
                start_new_session=True,
                pass_fds=() if slot.lock is None else (slot.lock,),
            )

    def look(self) -> Ending | None:
        """Reads what the process has told, ends it if it must be, and says so if it has ended."""
        self._read()
        if self._process.poll() is not None:
            return self.end(None, "crashed")
        limit = self._limit()
        if time.monotonic() - self._since > limit:
            self._trace()
            return self.end(f"no end after {limit:g} s", "timeout")
        if time.monotonic() - self._counted > 0.25:
            self._counted = time.monotonic()
            if processes.count(self._process.pid) > _MOST_PROCESSES:
                return self.end(f"ended with the more than {_MOST_PROCESSES} processes it had started", "crashed")
        return None

    def end(self, why: str | None, verdict: str) -> Ending:
        """Ends the process, unless it has ended already (``why`` is None), and all that it started."""
        processes.end_all(self._process.pid, self._mark)
        code = self._process.wait()
        self._read()
        self._file.close()
        fate = why or processes.died(code)
        return Ending(
            self.job.files, self.job.tests, self.job.environment, self._events, None if why else code, fate, verdict,
            self._log, self._terminal, self._use, self._started, time.time(),
        )  # fmt: skip

    def _read(self) -> None:
        *lines, self._partial = (self._partial + self._file.read()).split(b"\n")
        for line in lines:
            event = json.loads(line)
            self._events.append(event)
            # a test's own reports do not give it more time
            if event["event"] != "report":
                self._since = time.monotonic()
            self._note_use(event)

    def _limit(self) -> float:
        last: dict[str, Any] = next((event for event in reversed(self._events) if event["event"] != "report"), {})
        if last.get("event") == "exit":
            return min(_EXIT_SECONDS, self._setting.timeout)
        running = last.get("id") if last.get("event") == "start" else None
        return self._limits.get(running, self._setting.timeout)

    def _note_use(self, event: dict[str, Any]) -> None:
        if event["event"] == "finish" and self.slot.gpu is not None:
            start = next(one for one in reversed(self._events) if one["event"] == "start" and one["id"] == event["id"])
            if event["time"] - start["time"] > _SLOW_SECONDS:
                self._use[event["id"]] = gpus.use(self.slot.gpu)

    def _trace(self) -> None:
        """Has the process write the line of each of its threads: pytest has faulthandler answer SIGABRT."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_TRACE_SECONDS)


def run(
    jobs: Iterable[Job],
    setting: Setting,
    parallel: int,
    slots: Slots,
    signals: Signals,
    after: Callable[[Ending], list[Job]],
) -> None:
    """Works through jobs, up to ``parallel`` at a time, and those that ``after`` makes of an ending.

    A signal ends all workers; each has its ending then, too.
    """
    waiting, running = deque(jobs), []
    numbers = count(len(list(setting.folder.glob("*.job.json"))))
    try:
        while (waiting or running) and signals.number is None:
            while waiting and len(running) < parallel and (slot := slots.claim()) is not None:
                running.append(Worker(waiting.popleft(), f"{next(numbers):04d}", setting, slot))
            for worker in list(running):
                ending = worker.look()
                if ending is not None:
                    running.remove(worker)
                    slots.release(worker.slot)
                    waiting.extend(after(ending))
            time.sleep(_POLL_SECONDS)
    finally:
        for worker in running:
            after(worker.end("the runner was stopped", "missing"))
            slots.release(worker.slot)
