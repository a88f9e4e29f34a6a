"""The report as JSON, and as the XML that JUnit made common."""

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from jaxkit.errors import ConfigError
from jaxkit.testing.results import Result
from jaxkit.testing.run import Outcome
from jaxkit.testing.summary import counts, models
from jaxkit.testing.texts import clean, stamp, write_whole

_FAILURES = ("failed", "xpassed")
_SKIPPED = ("skipped", "xfailed", "stale")


def require_places(paths: Sequence[Path]) -> None:
    """Refuses to run tests for hours whose report has no place.

    Raises:
        ConfigError: if the folder of one of ``paths`` does not exist, or it is a folder itself.
    """
    for path in paths:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; name a file")
        if not path.parent.is_dir():
            raise ConfigError(f"{path}: the folder {path.parent} does not exist; make it first")


def write(outcome: Outcome, json_path: Path | None, junit_path: Path | None) -> None:
    """Writes the report to each path that is given."""
    if json_path:
        write_json(json_path, outcome)
    if junit_path:
        write_junit(junit_path, outcome)


def write_json(path: Path, outcome: Outcome) -> None:
    """Writes every result, as name, result, info, start, stop, seconds, model, level, gpu, output; and their sums.

    Beside them ``tests``, all that were collected: name, level, models, environment.
    """
    write_whole(path, json.dumps(tree(outcome), indent=1) + "\n")


def tree(outcome: Outcome) -> dict:
    """The report as dicts and lists. A test of several models has their names separated by commas."""
    return {
        "exit_code": outcome.exit_code,
        "collected": len(outcome.tests),
        "counts": counts(outcome.results),
        "models": models(outcome.tests, outcome.results),
        "start": stamp(outcome.started),
        "stop": stamp(outcome.ended),
        "seconds": round(outcome.ended - outcome.started, 3),
        "setup": outcome.setup,
        "files_without_tests": outcome.empty,
        "tests": [
            {"name": clean(test.id), "level": test.level, "models": test.models, "environment": test.environment}
            for test in outcome.tests
        ],
        "results": [_row(result) for result in outcome.results],
    }


def _row(result: Result) -> dict:
    return {
        "name": clean(result.name),
        "result": result.result,
        "info": clean(result.info),
        "start": stamp(result.start),
        "stop": stamp(result.stop),
        "seconds": round(result.seconds, 3),
        "model": ",".join(result.models) or None,
        "level": result.level,
        "gpu": result.gpu,
        "output": clean(result.output),
    }


def write_junit(path: Path, outcome: Outcome) -> None:
    """Writes one suite with a case a result; what is neither passed, skipped nor a failure is an error."""
    results = outcome.results
    failures = sum(result.result in _FAILURES for result in results)
    suite = ElementTree.Element(
        "testsuite",
        name="run_tests",
        tests=str(len(results)),
        failures=str(failures),
        errors=str(sum(result.bad for result in results) - failures),
        skipped=str(sum(result.result in _SKIPPED for result in results)),
        time=f"{outcome.ended - outcome.started:.3f}",
        timestamp=stamp(outcome.started).removesuffix("Z"),
    )
    for result in results:
        _case(suite, result)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    text = ElementTree.tostring(root, encoding="unicode")
    write_whole(path, f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')


def _case(suite: ElementTree.Element, result: Result) -> None:
    file, _, name = clean(result.name).partition("::")
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=file.removesuffix(".py").replace("/", "."),
        name=name or file,
        time=f"{result.seconds:.3f}",
    )
    if result.bad:
        kind = "failure" if result.result in _FAILURES else "error"
        found = ElementTree.SubElement(case, kind, type=result.result, message=clean(result.info))
        found.text = clean(result.output)
    elif result.result in _SKIPPED:
        ElementTree.SubElement(case, "skipped", type=result.result, message=clean(result.info))
    elif result.result == "flaky":
        ElementTree.SubElement(case, "system-out").text = clean(f"{result.info}\n{result.output}")
