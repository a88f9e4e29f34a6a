"""The report for a terminal: a table of all tests, what is abnormal with its output, models, the slowest, the sum."""

from collections.abc import Iterator

from jaxkit.testing.results import Result
from jaxkit.testing.run import Outcome
from jaxkit.testing.summary import abnormal, models, sentence, slowest
from jaxkit.testing.texts import clean, clock

_LINES = 200
"""Of one test's output; the files of the report have more."""


def render(outcome: Outcome, profile: bool) -> str:
    """Writes the report; ``profile`` adds the slowest tests and what they used of their GPU."""
    parts = [*_table(outcome), *_abnormal(outcome), *_models(outcome)]
    if profile:
        parts += _slowest(outcome)
    return "\n".join([*parts, *_end(outcome)])


def _table(outcome: Outcome) -> Iterator[str]:
    """Every result but skips."""
    shown = [result for result in outcome.results if result.result != "skipped"]
    width = min(100, max((len(result.name) for result in shown), default=4))
    yield f"{'name':<{width}}  {'result':<8} {'start':<12} {'stop':<12} {'seconds':>8}  info"
    for result in shown:
        times = f"{clock(result.start)} {clock(result.stop)} {result.seconds:>8.2f}"
        yield f"{clean(result.name):<{width}}  {result.result:<8} {times}  {clean(result.info)[:200]}".rstrip()


def _abnormal(outcome: Outcome) -> Iterator[str]:
    for result in abnormal(outcome.results):
        yield f"\n=== {result.result.upper()} {clean(result.name)}: {clean(result.info)}"
        lines = clean(result.output).strip("\n").splitlines()
        if len(lines) > _LINES:
            lines = [*lines[: _LINES // 4], f"... {len(lines) - _LINES} lines ...", *lines[-3 * _LINES // 4 :]]
        yield from lines


def _models(outcome: Outcome) -> Iterator[str]:
    found = models(outcome.tests, outcome.results)
    if found:
        yield "\nmodels"
        width = max(map(len, found))
        yield from (f"  {clean(name):<{width}}  {verdict}" for name, verdict in found.items())


def _slowest(outcome: Outcome) -> Iterator[str]:
    found = slowest(outcome.results)
    if found:
        yield "\nslowest"
        yield from (f"  {result.seconds:>8.2f} s  {clean(result.name)}{_use(result)}" for result in found)


def _use(result: Result) -> str:
    return f"  (GPU after it: {result.gpu})" if result.gpu else ""


def _end(outcome: Outcome) -> Iterator[str]:
    for file in outcome.empty:
        yield f"no tests in {clean(file)}"
    if outcome.setup["shard"]:
        yield f"shard {outcome.setup['shard']}"
    if not outcome.tests:
        yield "nothing was collected, so nothing is known to work"
    elif outcome.signal is not None:
        yield f"stopped by signal {outcome.signal}: what had not ended by then is missing"
    yield (
        f"\n{'FAILED' if outcome.exit_code else 'OK'}: {len(outcome.tests)} collected: {sentence(outcome.results)}; "
        f"{outcome.ended - outcome.started:.1f} s"
    )


def listing(outcome: Outcome) -> str:
    """The tests that were collected, a line each: level, environment if it is another, models."""
    lines = []
    for test in outcome.tests:
        more = [f"level {test.level}", *([test.environment] if test.environment != "default" else []), *test.models]
        lines.append(f"{clean(test.id)}  ({', '.join(more)})")
    return "\n".join([*lines, *_abnormal(outcome), f"{len(outcome.tests)} tests"])
