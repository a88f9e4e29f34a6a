"""What the results of a run amount to: counts, models, the slowest tests."""

from collections import Counter
from collections.abc import Iterable, Sequence

from jaxkit.testing.results import BAD, SHOWN, WORDS, Result, Test

_TITLES = {"xfailed": "failed as expected", "xpassed": "passed unexpectedly"}


def counts(results: Iterable[Result]) -> dict[str, int]:
    """How many there are of each result that there is."""
    found = Counter(result.result for result in results)
    return {word: found[word] for word in WORDS if found[word]}


def sentence(results: Iterable[Result]) -> str:
    """The counts in words."""
    return ", ".join(f"{number} {_TITLES.get(word, word)}" for word, number in counts(results).items()) or "no tests"


def models(tests: Sequence[Test], results: Sequence[Result]) -> dict[str, str]:
    """FAIL, PASS, SKIP or MISSING for each model that a test is marked with, or a file that gave no tests.

    FAIL, if a result of the model is bad; then MISSING, if a test of it has none, or one that is itself missing; PASS,
    if a test of it passed; SKIP, if all were skipped or stale.
    """
    found: dict[str, set[str]] = {}
    words = {result.name: result.result for result in results}
    for test in tests:
        for model in test.models:
            found.setdefault(model, set()).add(words.get(test.id, "missing"))
    for result in results:
        for model in result.models:
            found.setdefault(model, set()).add(result.result)
    return {model: _verdict(found[model]) for model in sorted(found)}


def _verdict(words: set[str]) -> str:
    if words & set(BAD) - {"missing"}:
        return "FAIL"
    if "missing" in words:
        return "MISSING"
    return "SKIP" if words <= {"skipped", "stale"} else "PASS"


def abnormal(results: Iterable[Result]) -> list[Result]:
    """What somebody should read, the worst first."""
    shown = [result for result in results if result.result in SHOWN]
    return sorted(shown, key=lambda result: WORDS.index(result.result))


def slowest(results: Iterable[Result], number: int = 10) -> list[Result]:
    """The tests that took longest, of those that took a second."""
    slow = [result for result in results if result.seconds >= 1]
    return sorted(slow, key=lambda result: -result.seconds)[:number]
