"""The report as one HTML page: style, script and plots are in it, light or dark as the reader's system is."""

import math
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from interop.report import Layer, Leaf, Report, plots
from interop.report.difference import Difference
from interop.report.plots import Dot, Series
from interop.report.style import SCRIPT, STYLE

_SAMPLES = 1000
_UNJUDGED = "—"


def render(report: Report) -> str:
    """Writes the page."""
    body = [*_head(report), *_forward(report), *_training(report), *_notes(report), *_setup(report)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Crosscheck: {_verdict(report)}</title>\n<style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + f"\n</main><script>{SCRIPT}</script></body></html>\n"
    )


def _verdict(report: Report) -> str:
    return "passed" if report.passed else "failed"


def _head(report: Report) -> Iterator[str]:
    setup = report.setup
    yield f'<header><h1>Crosscheck <span class="badge {_verdict(report)}">{_verdict(report)}</span></h1>'
    versions = " · ".join(f"{name} {number}" for name, number in setup["versions"].items())
    yield f'<p class="muted">{escape(setup["dtype"])} · {escape(versions)}</p></header>'
    for sentence in report.diagnosis():
        yield f'<p class="diagnosis">{escape(sentence)}</p>'
    compared = {
        "output": [report.final],
        "layers, running": [layer.output for layer in report.layers],
        "layers, alone": [layer.local for layer in report.layers if layer.local],
        "alone, in float64": [layer.local_float64 for layer in report.layers if layer.local_float64],
        **{title: [leaf.difference for leaf in leaves] for title, leaves in report.leaves.items()},
    }
    kinks = {title: sum(leaf.verdict == "kink" for leaf in leaves) for title, leaves in report.leaves.items()}
    cards = [_card(title, differences, kinks.get(title, 0)) for title, differences in compared.items()]
    yield f'<div class="cards">{"".join(cards)}</div>'


def _card(title: str, differences: Sequence[Difference], kinks: int) -> str:
    failed = sum(not difference.passed for difference in differences) - kinks
    state = "failed" if failed else "kink" if kinks else "passed"
    said = ", ".join(
        [f"{failed} failed"] * bool(failed) + [f"{kinks} kinks"] * bool(kinks) or ["agree" if differences else "none"]
    )
    return (
        f'<div class="card {state}"><b>{escape(title)}</b><span class="count">{len(differences)}</span>'
        f"<span>{said}</span></div>"
    )


def _forward(report: Report) -> Iterator[str]:
    layers = report.layers
    series = [
        Series("output, in the running model", "output", [_layer_dot(i, x, x.output) for i, x in enumerate(layers, 1)]),
        Series(
            "alone, on torch's input", "local", [_layer_dot(i, x, x.local) for i, x in enumerate(layers, 1) if x.local]
        ),
    ]
    yield "<section><h2>Forward, layer by layer</h2>" + _legend(series)
    limits = [layer.output.limit for layer in layers]
    yield _wide(plots.errors("error by layer", "layer, in order of execution", _unit(report), series, _common(limits)))
    judged = ("entered", "output", "alone", "float64")
    head = ("#", "torch", "flax", "shape", *judged, "max |d|", "rel. L2", "cosine", "ulp", "verdict")
    rows = [_layer_row(i, layer) for i, layer in enumerate(layers, 1)]
    yield _table(head, rows, opened=not all(layer.passed for layer in layers), title=f"{len(layers)} layers")
    yield "</section><section class='two'><div><h2>Outputs</h2>"
    x, y = (_sample(values) for values in report.outputs)
    yield plots.scatter("outputs of both sides", "torch", "flax", x, y)
    if report.setup["steps"]:
        yield "</div><div><h2>Losses</h2>"
        torch, flax = ([Dot(i, y, f"step {i}: {y:.7g}") for i, y in enumerate(ys, 1)] for ys in report.losses)
        both = [Series("torch", "reference", torch), Series("flax", "local", flax)]
        yield _legend(both) + plots.lines("losses of both sides", "step", "loss", both)
    yield "</div></section>"


def _layer_dot(i: int, layer: Layer, difference: Difference) -> Dot:
    label = f"{layer.name} ({layer.flax}): {difference.error:.3g}, limit {difference.limit:.3g}"
    return Dot(i, difference.error, label, not difference.passed)


def _layer_row(i: int, layer: Layer) -> tuple[str, ...]:
    output = layer.output
    verdict = "ok" if layer.passed else "inherited" if layer.right_alone and layer.local else "fail"
    return (
        _cell(str(i), i),
        _name(layer.name),
        _name(layer.flax),
        _cell("×".join(map(str, layer.shape)), math.prod(layer.shape)),
        _judged(layer.entered),
        _judged(output),
        _judged(layer.local),
        _judged(layer.local_float64),
        _number(output.max_abs),
        _number(output.relative_l2),
        _cell(f"{output.cosine:.7f}", output.cosine),
        _number(output.ulp),
        f'<td class="{verdict}">{verdict}</td>',
    )


def _training(report: Report) -> Iterator[str]:
    for title, leaves in report.leaves.items():
        series = [
            Series(
                name,
                style,
                [_leaf_dot(i, leaf) for i, leaf in enumerate(leaves, 1) if (leaf.verdict == "kink") is kink],
            )
            for name, style, kink in (("error", "output", False), ("kink: gone in float64", "kink", True))
        ]
        yield f"<section><h2>{escape(title.capitalize())}</h2>" + _legend([one for one in series if one.dots])
        limits = [leaf.difference.limit for leaf in leaves]
        yield _wide(plots.errors(title, "leaf, in order of execution", _unit(report), series, _common(limits)))
        head = ("#", "flax", "torch", "error", "float64", "scale", "max |d|", "rel. L2", "cosine", "verdict")
        rows = [_leaf_row(i, leaf) for i, leaf in enumerate(leaves, 1)]
        opened = any(leaf.verdict == "fail" for leaf in leaves)
        yield _table(head, rows, opened, f"{len(leaves)} compared") + "</section>"


def _leaf_dot(i: int, leaf: Leaf) -> Dot:
    return Dot(i, leaf.difference.error, f"{leaf.name}: {leaf.difference.error:.3g}", leaf.verdict == "fail")


def _leaf_row(i: int, leaf: Leaf) -> tuple[str, ...]:
    difference = leaf.difference
    return (
        _cell(str(i), i),
        _name(leaf.name),
        _name(leaf.torch),
        _judged(difference),
        _judged(leaf.float64),
        _number(difference.scale),
        _number(difference.max_abs),
        _number(difference.relative_l2),
        _cell(f"{difference.cosine:.7f}", difference.cosine),
        f'<td class="{leaf.verdict}">{leaf.verdict}</td>',
    )


def _notes(report: Report) -> Iterator[str]:
    lists = {
        "Not compared": report.unseen,
        "Shapes that tell nothing, and no number either": report.without_evidence,
        "Shapes that tell nothing, covered by the numbers of their layer": {
            path: why for path, why in report.blind.items() if path not in report.without_evidence
        },
    }
    for title, entries in lists.items():
        if entries:
            rows = [(_name(name), f"<td>{escape(why)}</td>") for name, why in entries.items()]
            yield f"<section><h2>{title}</h2>" + _table(("name", "why"), rows, len(entries) < 8, str(len(entries)))
            yield "</section>"


def _setup(report: Report) -> Iterator[str]:
    rows = [(_name(key), f"<td>{escape(_said(value))}</td>") for key, value in report.setup.items()]
    yield "<section><h2>Setup</h2>" + _table(("setting", "value"), rows, True, "settings") + "</section>"


def _said(value: object) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _unit(report: Report) -> str:
    return "ratio R" if "ratio" in report.setup["limits"] else "error / scale"


def _common(limits: Sequence[float]) -> float | None:
    """The limit of all, if they share one; that of a ratio depends on how many values there are."""
    return limits[0] if len(set(limits)) == 1 else None


def _sample(values: np.ndarray) -> np.ndarray:
    flat = values.ravel()
    return flat[:: max(1, math.ceil(flat.size / _SAMPLES))].astype(np.float64)


def _wide(picture: str) -> str:
    """Keeps a wide plot legible on a narrow screen, where it scrolls."""
    return f'<div class="wide">{picture}</div>'


def _legend(series: Sequence[Series]) -> str:
    keys = [f'<span><i class="{one.style}"></i>{escape(one.name)}</span>' for one in series]
    return f'<p class="legend">{"".join(keys)}</p>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], opened: bool, title: str) -> str:
    columns = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in head)
    lines = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (
        f"<details{' open' * opened}><summary>{escape(title)}</summary><div class='scroll'><table><thead><tr>{columns}"
        f"</tr></thead><tbody>\n{lines}\n</tbody></table></div></details>"
    )


def _name(name: str) -> str:
    return f'<td class="name" data-value="{escape(name)}">{escape(name)}</td>'


def _cell(text: str, value: float, style: str = "number") -> str:
    return f'<td class="{style}" data-value="{value}">{escape(text)}</td>'


def _number(value: float) -> str:
    return _cell(f"{value:.2g}", value)


def _judged(difference: Difference | None) -> str:
    if difference is None:
        return f'<td class="number" data-value="-1">{_UNJUDGED}</td>'
    return _cell(f"{difference.error:.2g}", difference.error, "number" if difference.passed else "number fail")
