"""What became of every test: collected tests and the events of worker processes, made results of."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

BAD = ("failed", "error", "crashed", "timeout", "missing", "xpassed")
"""Results that fail a run."""
SHOWN = (*BAD, "stale", "flaky")
"""Results that somebody should read; ``stale`` proves nothing, in either way."""
WORDS = (*SHOWN, "xfailed", "skipped", "passed")
"""All results; ``xpassed`` is a success that was not expected, ``flaky`` one that needed another try."""
_TAIL, _HEAD = 20_000, 4_000
# of faulthandler's traces: how pytest came to call a test
_BELOW = re.compile(r'(?:^  File "[^"\n]*(?:[/\\](?:_pytest|pluggy)[/\\]|[/\\]testing[/\\]worker\.py)[^\n]*\n)+', re.M)


class Test(NamedTuple):
    """A test as it was collected."""

    id: str
    file: str
    """Its absolute path."""
    level: int = 0
    models: tuple[str, ...] = ()
    timeout: float | None = None
    """Seconds, of its own marker."""
    numeric: bool = False
    """Whether it compares with a numeric baseline: such a test has one try."""
    environment: str = "default"


class Result(NamedTuple):
    """What became of a test, of one of its subtests, or of a file that gave none."""

    name: str
    result: str
    """One of :data:`WORDS`."""
    info: str
    """In a line: why."""
    start: float
    stop: float
    """Seconds since 1970."""
    models: tuple[str, ...] = ()
    level: int = 0
    output: str = ""
    """Traceback, log and what was printed; of what is not abnormal, nothing."""
    gpu: str = ""
    """Its use after a slow test."""

    @property
    def seconds(self) -> float:
        """From the start of its first fixture to the end of its last."""
        return self.stop - self.start

    @property
    def bad(self) -> bool:
        """Whether it fails the run."""
        return self.result in BAD


class Ending(NamedTuple):
    """All that a worker process left behind."""

    files: tuple[str, ...]
    tests: tuple[Test, ...] | None
    """Those it was to run; None: it was to collect."""
    environment: str
    events: list[dict[str, Any]]
    code: int | None
    """Of its exit; None: the runner ended it."""
    fate: str
    """How it ended, in words."""
    verdict: str
    """The result of whatever it was at when it died: crashed, timeout, or missing where the runner was stopped."""
    log: Path
    terminal: Path
    gpu: dict[str, str]
    """Its use after slow tests, by id."""
    started: float
    ended: float

    @property
    def orderly(self) -> bool:
        """Whether pytest came to its end with every test behind it."""
        return self.exit_event is not None and self.exit_event["code"] in (0, 1, 5)

    @property
    def exit_event(self) -> dict[str, Any] | None:
        """The last word of a process that came to its end."""
        last = self.events[-1] if self.events else {}
        return last if last.get("event") == "exit" else None

    @property
    def importing(self) -> str | None:
        """The file that was being imported at the end."""
        last = self.events[-1] if self.events else {}
        return last["file"] if last.get("event") == "collecting" else None

    def output(self, start: int = 0, stop: int | None = None) -> str:
        """What was printed between two lengths of the log, in the middle of it left out if it is much."""
        stop = self.log.stat().st_size if stop is None else stop
        left = stop - start - _HEAD - _TAIL
        with self.log.open("rb") as file:
            file.seek(start)
            if left <= 0:
                return file.read(max(0, stop - start)).decode(errors="replace")
            head = file.read(_HEAD).decode(errors="replace")
            file.seek(stop - _TAIL)
            return f"{head}\n... {left:,} bytes ...\n{file.read(_TAIL).decode(errors='replace')}"

    def everything(self) -> str:
        """What pytest itself and the process said."""
        internal = [event["text"] for event in self.events if event["event"] == "internal"]
        said = self.terminal.read_text(encoding="utf-8", errors="replace") if self.terminal.exists() else ""
        return _BELOW.sub("  ...\n", "\n".join([*internal, said[-_TAIL:], self.output()]))


class Account(NamedTuple):
    """What an ending amounts to."""

    results: list[Result]
    left: list[Test]
    """Tests that another process is to run."""


def account(ending: Ending) -> Account:
    """Reads the results of the tests that a process was to run.

    The test that was running when a process died is to blame for it; of a death in an import, every test of that file.
    Those that were not begun are left, unless nobody is to blame: then they would end the next process as well, and
    a process of one file has no smaller part.
    """
    began = {event["id"]: event for event in ending.events if event["event"] == "start"}
    ends = {event["id"]: event for event in ending.events if event["event"] == "finish"}
    results, open_tests = [], []
    for test in ending.tests:
        if test.id in ends:
            results += _reported(test, began[test.id], ends[test.id], ending)
        elif test.id in began:
            results.append(_broken(test, ending, began[test.id]))
        else:
            open_tests.append(test)
    blamed = [test for test in open_tests if test.file == ending.importing]
    results += [_broken(test, ending, None) for test in blamed]
    left = [test for test in open_tests if test.file != ending.importing]
    if ending.orderly:
        results += [_vanished(test, ending) for test in left]
        return Account(results + _afterwards(ending, results), [])
    progress = len(left) < len(ending.tests) or len(ending.files) > 1
    if not progress:
        said = f"not run: {ending.fate}"
        results += [_result(test, "missing", said, ending, output=ending.everything()) for test in left]
    return Account(results, left if progress else [])


class Collection(NamedTuple):
    """What a collecting process found."""

    tests: list[Test]
    results: list[Result]
    """Of what could not be collected, and of skipped files."""
    again: list[tuple[str, ...]]
    """Files for other processes to collect: this one died, and not of them alone."""


def gathered(ending: Ending) -> Collection:
    """Reads the tests that a process has collected; a file that ended it is a result of its own."""
    found = next((event for event in ending.events if event["event"] == "collected"), None)
    if found is None:
        culprit = ending.importing or (ending.files[0] if len(ending.files) == 1 else None)
        if culprit is None:
            return Collection([], [], [(file,) for file in ending.files])
        rest = tuple(file for file in ending.files if file != culprit)
        return Collection([], [_broken_file(culprit, ending)], [rest] if rest else [])
    tests = [
        Test(**{**test, "models": tuple(test["models"])}, environment=ending.environment) for test in found["tests"]
    ]
    words = {"failed": "error", "skipped": "skipped"}
    results = [
        Result(event["id"], words[event["outcome"]], event["info"], ending.started, event["time"], output=event["text"])
        for event in ending.events
        if event["event"] == "uncollected"
    ]
    return Collection(tests, results + _afterwards(ending, results), [])


def _broken_file(file: str, ending: Ending) -> Result:
    """The result of a file whose import ended the process, or which pytest would not begin with."""
    when = "while it was imported" if ending.importing else "before its tests were collected"
    word = ending.verdict if ending.importing or ending.code is None else "error"
    return Result(file, word, f"{ending.fate} {when}", ending.started, ending.ended, output=ending.everything())


def _result(test: Test, word: str, info: str, ending: Ending, output: str = "", times=None) -> Result:
    start, stop = times or (ending.started, ending.ended)
    return Result(test.id, word, info, start, stop, test.models, test.level, output, ending.gpu.get(test.id, ""))


def _broken(test: Test, ending: Ending, start: dict[str, Any] | None) -> Result:
    """The result of the test that a process died in."""
    if start is None:
        return _result(test, ending.verdict, f"{ending.fate} while its file was imported", ending, ending.everything())
    internal = "".join(event["text"] for event in ending.events if event["event"] == "internal")
    said = "\n".join(part for part in (*_texts(test, ending), internal, ending.output(start["log"])) if part)
    times = (start["time"], ending.ended)
    return _result(test, ending.verdict, ending.fate, ending, _BELOW.sub("  ...\n", said), times)


def _texts(test: Test, ending: Ending) -> list[str]:
    return [event["text"] for event in ending.events if event["event"] == "report" and event["id"] == test.id]


def _vanished(test: Test, ending: Ending) -> Result:
    """The result of a test that was collected, and was not there when its file was to be run."""
    for event in ending.events:
        if event["event"] == "uncollected" and test.id.startswith(event["id"]):
            info = f"collected, but when its file was to be run: {event['info']}"
            return _result(test, "error", info, ending, event["text"])
    said = "collected, but not found when its file was run: are its name and its parameters the same every time?"
    return _result(test, "missing", said, ending)


def _afterwards(ending: Ending, results: Iterable[Result]) -> list[Result]:
    """Whatever is wrong with a process all of whose tests have reported."""
    code, said = (ending.exit_event or {}).get("code"), ""
    if ending.code != code or code is None:
        said = f"all its tests were done, then {ending.fate}"
    elif code == 1 and not any(result.bad for result in results):
        said = "pytest ended with 1, though no test of it failed"
    if not said:
        return []
    name = "process of " + ", ".join(Path(file).name for file in ending.files)
    word = "error" if said.startswith("pytest") else ending.verdict
    return [Result(name, word, said, ending.events[-1]["time"], ending.ended, output=ending.everything())]


def _reported(test: Test, start: dict, end: dict, ending: Ending) -> list[Result]:
    """The result of a test that came to its end, and those of its subtests."""
    reports = [event for event in ending.events if event["event"] == "report" and event["id"] == test.id]
    times, printed = (start["time"], end["time"]), ending.output(start["log"], end["log"])
    word, info = _outcome([report for report in reports if report["subtest"] is None])
    failed = sum(report["outcome"] == "failed" for report in reports if report["subtest"] is not None)
    if failed and word == "passed":
        # pytest says so of its own subtests, but not of unittest's
        word, info = "failed", f"contains {failed} failed subtest{'s' * (failed > 1)}"
    main = [report["text"] for report in reports if report["text"] and report["subtest"] is None]
    output = "\n".join([*main, printed]) if word in SHOWN else ""
    results = [_result(test, word, info, ending, output, times)]
    for report in reports:
        if report["subtest"] is not None:
            word, info = _outcome([report])
            one = _result(test, word, info, ending, report["text"] if word in BAD else "", times)
            results.append(one._replace(name=f"{test.id} {report['subtest'] or '(subtest)'}"))
    return results


def _outcome(reports: list[dict[str, Any]]) -> tuple[str, str]:
    """The worst of the phases of a test, and why."""
    for report in reports:
        if report["outcome"] == "skipped" and report["properties"].get("baseline") == "STALE":
            return "stale", report["info"]
    for report in reports:
        if report["outcome"] == "failed":
            # unittest's own unexpected success, and pytest's strict one, are failures with a reason and no traceback
            if report["text"].startswith(("Unexpected success", "[XPASS(strict)]")):
                return "xpassed", report["info"]
            return ("failed", report["info"]) if report["when"] == "call" else (
                "error", f"{report['when']}: {report['info']}"
            )  # fmt: skip
    for report in reports:
        if report["outcome"] == "skipped":
            return "xfailed" if report["expected"] else "skipped", report["info"]
    for report in reports:
        if report["expected"] and report["when"] == "call":
            return "xpassed", report["info"] or "passed, though it was expected to fail"
    if not reports:
        return "missing", "it began and ended, and reported nothing"
    recorded = [report["properties"]["baseline"] for report in reports if "baseline" in report["properties"]]
    return "passed", f"baseline {recorded[-1]}" if recorded else ""
