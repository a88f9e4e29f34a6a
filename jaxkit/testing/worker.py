"""One pytest session in a process of its own, which tells the runner what happens while it happens.

A script: it runs in environments that hold pytest and nothing of jaxkit. What it tells is a line of JSON in a file, so
that a process that dies has said all that went before. Output goes to a log uncaptured, and each line tells how
long the log is: the output of a test that never ends is then what lies behind its start.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

_LONGEST = 20_000
_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""
# tests replace functions of these modules, and a worker must not notice
_open, _write, _close, _size, _process, _exit = os.open, os.write, os.close, os.path.getsize, os.getpid, os._exit
_now, _dumps = time.time, json.dumps


class Witness:
    """A pytest plugin that runs the tests of a job and writes down every event.

    Args:
        job: ``events``, the file that gets a line of JSON an event; ``log``, where the output of this process goes;
            ``ids`` of the tests to run, None: to collect all; ``known``, those that were collected in its files;
            ``top``, the folder that test files were looked for in.
    """

    def __init__(self, job: dict):
        self._events, self._log, self._pid, self._top = job["events"], job["log"], _process(), Path(job["top"])
        self._ids = None if job["ids"] is None else set(job["ids"])
        self._known = set(job["known"])
        self._limit = None

    def tell(self, event: str, **facts) -> None:
        """Writes a line; in a child that came back from a test that forked, ends the process instead."""
        if _process() != self._pid:
            _exit(0)
        line = _dumps({"event": event, "time": _now(), "log": _size(self._log), **facts}) + "\n"
        # opened anew each time: tests close descriptors that are not theirs
        descriptor = _open(self._events, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        _write(descriptor, line.encode())
        _close(descriptor)

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config):
        # the runner is what spreads tests over processes
        if hasattr(config.option, "dist"):
            config.option.dist, config.option.tx = "no", []

    # last: when all plugins have had their options
    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config):
        self._root = config.rootpath
        # the runner ends what takes too long, in a way that no test can hold up
        if config.pluginmanager.has_plugin("timeout"):
            config.pluginmanager.unregister(name="timeout")
            self._limit = config.getoption("timeout") or config.getini("timeout") or None
        config.addinivalue_line("markers", "level(n): 0 to 2, run by the runner under --level n and above")
        config.addinivalue_line("markers", "model(id): what the runner sums the results of this test up for")

    def pytest_sessionstart(self):
        # pytest's own reporter keeps the stream that it was made with
        sys.stdout = sys.__stdout__

    @pytest.hookimpl(tryfirst=True)
    def pytest_make_collect_report(self, collector):
        if not isinstance(collector, pytest.File):
            return None
        # a file given by its path is collected even where a conftest.py or an option ignores it, or a folder around it
        around = [path for path in collector.path.parents if path.is_relative_to(self._top) and path != self._top]
        for path in (collector.path, *around):
            ask = collector.session.gethookproxy(path.parent)
            if ask.pytest_ignore_collect(collection_path=path, config=collector.config):
                return pytest.CollectReport(collector.nodeid, "passed", None, [])
        self.tell("collecting", file=str(collector.path))
        return None

    def pytest_collectreport(self, report):
        if not report.passed:
            file = str(self._root / report.nodeid.partition("::")[0])
            self.tell("uncollected", id=report.nodeid, file=file, outcome=report.outcome, **_said(report))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        if self._ids is not None:
            for item in items:
                if item.nodeid not in self._known and not _misfit(*self._marks(item)):
                    self.tell("grown", id=item.nodeid, file=str(item.path))
            others = [item for item in items if item.nodeid not in self._ids]
            items[:] = [item for item in items if item.nodeid in self._ids]
            config.hook.pytest_deselected(items=others)

    def pytest_collection_finish(self, session):
        tests = []
        for item in session.items:
            level, timeout = self._marks(item)
            said = _misfit(level, timeout)
            if said:
                self.tell("uncollected", id=item.nodeid, file=str(item.path), outcome="failed", info=said, text=said)
                continue
            tests.append({
                "id": item.nodeid,
                "file": str(item.path),
                "level": level,
                "models": [str(mark.args[0]) for mark in item.iter_markers("model") if mark.args],
                "timeout": None if timeout is None else float(timeout),
                "numeric": "numeric_baseline" in getattr(item, "fixturenames", ()),
            })  # fmt: skip
        self.tell("collected", tests=tests)

    def _marks(self, item):
        """The level and the seconds of a test."""
        return _argument(item, "level", "n", 0), _argument(item, "timeout", "timeout", self._limit)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logstart(self, nodeid):
        self.tell("start", id=nodeid)

    # last: the reporter's turn is where a test with failed subtests becomes a failure
    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report):
        context = getattr(report, "context", None)
        properties = {str(name): str(value) for name, value in report.user_properties}
        self.tell(
            "report",
            id=report.nodeid,
            when=report.when,
            outcome=report.outcome,
            expected=hasattr(report, "wasxfail"),
            subtest=None if context is None else _subtest(context),
            properties=properties,
            **_said(report),
        )

    def pytest_runtest_logfinish(self, nodeid):
        self.tell("finish", id=nodeid)

    def pytest_internalerror(self, excrepr):
        self.tell("internal", text=str(excrepr)[-_LONGEST:])


def _argument(item, name, keyword, default):
    """The argument of the nearest marker of a name."""
    mark = item.get_closest_marker(name)
    if mark is None:
        return default
    return mark.args[0] if mark.args else mark.kwargs.get(keyword, default)


def _misfit(level, timeout) -> str:
    """Says what is wrong with the markers of a test; empty if nothing is."""
    if level not in (0, 1, 2):
        return f"level({level!r}): a level is 0, 1 or 2"
    try:
        float(0 if timeout is None else timeout)
    except (TypeError, ValueError):
        return f"timeout({timeout!r}): give seconds"
    return ""


def _subtest(context) -> str:
    """What tells a subtest from others of its test: message and values."""
    values = ", ".join(f"{name}={value}" for name, value in context.kwargs.items())
    return " ".join(
        part for part in (f"[{context.msg}]" if context.msg else "", f"({values})" if values else "") if part
    )


def _said(report) -> dict[str, str]:
    """The reason in a line, and in full with what was logged."""
    if isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        return {"info": reason.partition("\n")[0], "text": reason}
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(report.longrepr or "")
    lines = (crash.message if crash else text.strip().rpartition("\n")[2]).strip().splitlines()
    reason = getattr(report, "wasxfail", lines[0].removeprefix("E  ").strip() if lines else "")
    logged = [f"--- {title} ---\n{content}" for title, content in report.sections if "log" in title]
    return {"info": reason, "text": "\n".join([_shortened(text), *map(_shortened, logged)])}


def _shortened(text: str) -> str:
    left = len(text) - _LONGEST
    return text if left <= 0 else f"{text[: _LONGEST // 2]}\n... {left:,} characters ...\n{text[-_LONGEST // 2 :]}"


def main(path: str) -> int:
    """Runs the job that is described in a file, to pytest's exit code."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    # as under `python -m pytest`, in place of this file's folder
    sys.path[0], sys.argv = os.getcwd(), ["pytest"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # whatever kills the runner, its workers do not outlive it
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    arguments = [*job["arguments"], "--capture=no", "--maxfail=0", "--continue-on-collection-errors"]
    arguments += ["--collect-only"] * (job["ids"] is None)
    witness = Witness(job)
    with open(job["terminal"], "w", encoding="utf-8") as terminal, contextlib.redirect_stdout(terminal):
        code = int(pytest.main([*arguments, *job["files"]], plugins=[witness]))
    witness.tell("exit", code=code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
