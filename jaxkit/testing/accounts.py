"""The events of worker processes, made results of: what became of every test, and of every file that gave none."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jaxkit.testing.ending import Ending, without_pytest
from jaxkit.testing.results import BAD, SHOWN, Result, Test

_MODEL = re.compile(r"""mark\.model\(\s*["']([^"'\n]+)["']""")


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
    results += _grown(ending, {test.file for test in left})
    if ending.orderly:
        results += [_vanished(test, ending) for test in left]
    if ending.orderly or (not open_tests and began.keys() == ends.keys()):
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
        Result(
            event["id"], words[event["outcome"]], event["info"], ending.started, event["time"],
            _models(event.get("file")), output=event["text"],
        )
        for event in ending.events
        if event["event"] == "uncollected"
    ]  # fmt: skip
    return Collection(tests, results + _afterwards(ending, results), [])


def _broken_file(file: str, ending: Ending) -> Result:
    """The result of a file whose import ended the process, or which pytest would not begin with."""
    when = "while it was imported" if ending.importing else "before its tests were collected"
    word = ending.verdict if ending.importing or ending.code is None else "error"
    said = f"{ending.fate} {when}"
    return Result(file, word, said, ending.started, ending.ended, _models(file), output=ending.everything())


def _models(file: str | None) -> tuple[str, ...]:
    """The models that the text of a file marks tests with: a file that gave no tests has no other way to say so."""
    known = file is not None and Path(file).is_file()
    text = Path(file).read_text(encoding="utf-8", errors="replace") if known else ""
    return tuple(dict.fromkeys(_MODEL.findall(text)))


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
    return _result(test, ending.verdict, ending.fate, ending, without_pytest(said), times)


def _texts(test: Test, ending: Ending) -> list[str]:
    return [event["text"] for event in ending.reports.get(test.id, ())]


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
    if ending.verdict == "missing":
        # the runner was stopped: that is no fault of the process
        return []
    code, said = (ending.exit_event or {}).get("code"), ""
    if ending.code != code or code is None:
        word, said = ending.verdict, f"all its tests were done, then {ending.fate}"
    elif code not in (0, 5) and not any(result.bad for result in results):
        word, said = "error", f"pytest ended with {code}, though no test of it failed"
    if not said:
        return []
    name = "process of " + ", ".join(Path(file).name for file in ending.files)
    return [Result(name, word, said, ending.events[-1]["time"], ending.ended, output=ending.everything())]


def _grown(ending: Ending, left: set[str]) -> list[Result]:
    """The results of tests that nobody knew of until their file was run; of files without others that are ``left``.

    Those are lost, which says as much: a test that has another name every time is one test, not two.
    """
    said = "not run: found when its file was run, but not when tests were collected; are they the same every time?"
    return [
        Result(event["id"], "error", said, event["time"], event["time"])
        for event in ending.events
        if event["event"] == "grown" and event["file"] not in left
    ]


def _reported(test: Test, start: dict, end: dict, ending: Ending) -> list[Result]:
    """The result of a test that came to its end, and those of its subtests."""
    reports = ending.reports.get(test.id, [])
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
        if report["outcome"] == "failed":
            # unittest's own unexpected success, and pytest's strict one, are failures with a reason and no traceback
            if report["text"].startswith(("Unexpected success", "[XPASS(strict)]")):
                return "xpassed", report["info"]
            return ("failed", report["info"]) if report["when"] == "call" else (
                "error", f"{report['when']}: {report['info']}"
            )  # fmt: skip
    for report in reports:
        if report["outcome"] == "skipped":
            word = "stale" if report["properties"].get("baseline") == "STALE" else "skipped"
            return "xfailed" if report["expected"] else word, report["info"]
    for report in reports:
        if report["expected"] and report["when"] == "call":
            return "xpassed", report["info"] or "passed, though it was expected to fail"
    if not reports:
        return "missing", "it began and ended, and reported nothing"
    recorded = [report["properties"]["baseline"] for report in reports if "baseline" in report["properties"]]
    return "passed", f"baseline {recorded[-1]}" if recorded else ""
