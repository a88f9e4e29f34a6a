"""The report as one HTML page: style and script are in it, and it asks for no other file."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from jaxkit.testing.results import BAD, SHOWN, Result
from jaxkit.testing.run import Outcome
from jaxkit.testing.summary import abnormal, counts, models, sentence, slowest
from jaxkit.testing.texts import clean, clock, stamp, write_whole

_PRE = """
pre { overflow: auto; max-height: 480px; font: 12px/1.45 ui-monospace, monospace; white-space: pre-wrap; }
summary b { font-family: ui-monospace, monospace; font-weight: 600; overflow-wrap: anywhere; color: var(--ink); }
"""


def write(path: Path, outcome: Outcome, profile: bool, style: str, script: str) -> None:
    """Writes the page.

    Args:
        path: of the file.
        outcome: of a run.
        profile: whether the slowest tests are shown.
        style: sheet of cards, badges and tables.
        script: that sorts a table at a click on a head.
    """
    body = [*_head(outcome), *_abnormal(outcome), *_models(outcome)]
    if profile:
        body += _section("Slowest", slowest(outcome.results))
    body += _section("All tests", outcome.results)
    verdict = "failed" if outcome.exit_code else "passed"
    write_whole(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Tests: {verdict}</title>\n<style>{style}{_PRE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + f"\n</main><script>{script}</script></body></html>\n",
    )


def _head(outcome: Outcome) -> Iterator[str]:
    verdict = "failed" if outcome.exit_code else "passed"
    yield f'<header><h1>Tests <span class="badge {verdict}">{verdict}</span></h1>'
    setup = " · ".join(f"{name} {value}" for name, value in outcome.setup.items() if value)
    seconds = outcome.ended - outcome.started
    yield f'<p class="muted">{stamp(outcome.started)}, {seconds:.1f} s · {_text(setup)}</p></header>'
    if not outcome.tests:
        yield '<p class="diagnosis">nothing was collected, so nothing is known to work</p>'
    if outcome.signal is not None:
        yield f'<p class="diagnosis">stopped by signal {outcome.signal}: what had not ended by then is missing</p>'
    cards = [
        f'<div class="card {_state(word)}"><b>{word}</b><span class="count">{number}</span></div>'
        for word, number in counts(outcome.results).items()
    ]
    yield f'<div class="cards">{"".join(cards)}</div><p>{len(outcome.tests)} collected: {sentence(outcome.results)}</p>'


def _state(word: str) -> str:
    return "failed" if word in BAD else "kink" if word in SHOWN else "passed"


def _abnormal(outcome: Outcome) -> Iterator[str]:
    for result in abnormal(outcome.results):
        output = _text(result.output.strip("\n"))
        yield (
            f'<section class="abnormal"><details open><summary><span class="badge failed">{result.result}</span> '
            f"<b>{_text(result.name)}</b><br>{_text(result.info)}</summary><pre>{output}</pre>"
            "</details></section>"
        )


def _models(outcome: Outcome) -> Iterator[str]:
    found = models(outcome.tests, outcome.results)
    if found:
        rows = [(_name(model), _word(verdict, verdict in ("FAIL", "MISSING"))) for model, verdict in found.items()]
        yield "<section><h2>Models</h2>" + _table(("model", "result"), rows) + "</section>"


def _section(title: str, results: Sequence[Result]) -> Iterator[str]:
    if results:
        head = ("name", "result", "seconds", "start", "stop", "level", "model", "GPU", "info")
        yield f"<section><h2>{title}</h2>" + _table(head, [_row(result) for result in results]) + "</section>"


def _row(result: Result) -> tuple[str, ...]:
    return (
        _name(result.name),
        _word(result.result, result.bad),
        f'<td class="number" data-value="{result.seconds:.4f}">{result.seconds:.2f}</td>',
        f'<td class="number">{clock(result.start)}</td>',
        f'<td class="number">{clock(result.stop)}</td>',
        f'<td class="number">{result.level}</td>',
        f"<td>{_text(', '.join(result.models))}</td>",
        f"<td>{_text(result.gpu)}</td>",
        f"<td>{_text(result.info[:300])}</td>",
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = "".join(f'<th scope="col"><button type="button">{name}</button></th>' for name in head)
    lines = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>\n{lines}\n</tbody></table></div>'


def _name(name: str) -> str:
    return f'<td class="name">{_text(name)}</td>'


def _word(word: str, bad: bool) -> str:
    return f'<td class="{"fail" if bad else "ok"}">{word}</td>'


def _text(text: str) -> str:
    return escape(clean(text))
