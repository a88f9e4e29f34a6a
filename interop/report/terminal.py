"""The report as text: failures first, what passed in a line a section."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from interop.report import Leaf, Report
from interop.report.difference import Difference, severity

_MIN_WIDTH = 80


def render(report: Report, width: int, rows: int) -> str:
    """Writes the report in lines of up to ``width`` characters, with up to ``rows`` failures a section."""
    width = max(width, _MIN_WIDTH)
    blocks = [
        wrapped(_head(report), width),
        _summary(report, width),
        _layers(report, width, rows),
        *_leaves(report, width, rows),
        wrapped(_end(report), width),
    ]
    return "\n\n".join(text for block in blocks if (text := "\n".join(block)))


def wrapped(sentences: Iterable[str], width: int) -> Iterator[str]:
    """Breaks sentences into lines; names stay whole if they fit one."""
    for sentence in sentences:
        yield from textwrap.wrap(sentence, width, subsequent_indent="  ", break_on_hyphens=False)


def _head(report: Report) -> Iterator[str]:
    setup = report.setup
    versions = ", ".join(f"{name} {setup['versions'][name]}" for name in ("torch", "jax", "flax"))
    devices = ", ".join(f"{side} on {device}" for side, device in setup["devices"].items())
    yield f"crosscheck in {setup['dtype']}: {devices}; {versions}"
    yield (
        f"products in full precision (jax_default_matmul_precision={setup['jax_default_matmul_precision']}, TF32 off), "
        f"{setup['torch_threads']} torch threads, seed {setup['seed']}"
    )


def _summary(report: Report, width: int) -> Iterator[str]:
    """A line a section: how many, the worst of them, the verdict."""
    unit = "R" if "ratio" in report.setup["limits"] else "error"
    yield f"{'':<19} {'compared':>8} {'worst ' + unit:>12} {'limit':>8}   where"
    yield _line("model's output", [("", report.final)], [], width)
    yield _line("layers, running", [(layer.name, layer.output) for layer in report.layers], [], width)
    yield _line("layers, alone", [(layer.name, layer.local) for layer in report.layers if layer.local], [], width)
    wide = [(layer.name, layer.local_float64) for layer in report.layers if layer.local_float64]
    if wide:
        yield _line("  ... in float64", wide, [], width)
    for title, leaves in report.leaves.items():
        yield _line(title, [(leaf.name, leaf.difference) for leaf in leaves], leaves, width)
    steps = list(zip(*report.losses, strict=True))
    if not steps:
        return
    said = [f"{torch:.6g} {flax:.6g}" for torch, flax in (steps if len(steps) < 4 else [steps[0], steps[-1]])]
    yield from wrapped([f"losses (torch flax){' ' * 6}{(', ' if len(steps) < 4 else ' ... ').join(said)}"], width)


def _line(title: str, compared: Sequence[tuple[str, Difference]], leaves: Sequence[Leaf], width: int) -> str:
    if not compared:
        return f"{title:<19} {0:>8}"
    kinks = sum(leaf.verdict == "kink" for leaf in leaves)
    failed = sum(not difference.passed for _, difference in compared) - kinks
    verdict = f"{failed} FAILED" if failed else "ok"
    verdict += f", {kinks} kinks" if kinks else ""
    where, worst = max(compared, key=lambda pair: severity(pair[1]))
    line = f"{title:<19} {len(compared):>8} {worst.error:>12.2g} {worst.limit:>8.2g}   {verdict}"
    return f"{line}; {shortened(where, max(8, width - len(line) - 2))}" if where else line


def _layers(report: Report, width: int, rows: int) -> Iterator[str]:
    failed = [layer for layer in report.layers if not layer.passed]
    if not failed:
        return
    yield _row("layer (torch)", ("entered", "output", "alone", "float64", "rel. L2", "ulp"), width)
    for layer in failed[:rows]:
        judged = map(_judged, (layer.entered, layer.output, layer.local, layer.local_float64))
        yield _row(layer.name, (*judged, f"{layer.output.relative_l2:.2g} ", f"{layer.output.ulp:.2g} "), width)
    yield from _rest(len(failed) - rows, len(report.layers) - len(failed), "layers")


def _leaves(report: Report, width: int, rows: int) -> Iterator[Iterator[str]]:
    """Tables of what failed, unless the forward pass did: all after it differs then."""
    for title, leaves in report.leaves.items():
        failed = [leaf for leaf in leaves if leaf.verdict == "fail"]
        if failed and report.forward_passed:
            yield _failed_leaves(title, failed, len(leaves), width, rows)


def _failed_leaves(title: str, failed: list[Leaf], count: int, width: int, rows: int) -> Iterator[str]:
    yield _row(title, ("error", "float64", "max |d|", "rel. L2"), width)
    for leaf in failed[:rows]:
        apart = leaf.difference
        cells = (_judged(apart), _judged(leaf.float64), f"{apart.max_abs:.2g} ", f"{apart.relative_l2:.2g} ")
        yield _row(leaf.name, cells, width)
    yield from _rest(len(failed) - rows, count - len(failed), "leaves")


def _row(name: str, cells: Sequence[str], width: int) -> str:
    left = width - 10 * len(cells)
    return f"{shortened(name, left):<{left}}{''.join(f'{cell:>10}' for cell in cells)}".rstrip()


def _rest(more: int, passed: int, what: str) -> Iterator[str]:
    if more > 0:
        yield f"... and {more} more {what}"
    yield f"... and {passed} {what} that passed"


def _end(report: Report) -> Iterator[str]:
    for name, why in report.unseen.items():
        yield f"not compared: {name}: {why}"
    for path, why in report.without_evidence.items():
        yield f"no evidence: {path}: its shape tells no wrong layout from the right one ({why}), and no number does"
    proven = len(report.blind) - len(report.without_evidence)
    if proven:
        yield f"{proven} leaves whose shape cannot tell a wrong layout are covered by the numbers of their layer"
    alone = sum(layer.local is not None for layer in report.layers)
    wide = sum(layer.local_float64 is not None for layer in report.layers)
    if report.setup["dtype"] == "float32" and wide < alone:
        yield f"{alone - wide} of {alone} layers compute in float32 whatever they are given: not compared in float64"
    if kinks := len(report.of_verdict("kink")):
        yield f"{kinks} differences are not there in float64: roundings on either side of a kink, such as ReLU's at 0"
    for sentence in report.diagnosis():
        yield f"FIRST: {sentence}"
    yield "passed" if report.passed else "FAILED"


def _judged(difference: Difference | None) -> str:
    """A cell; what exceeds its limit is marked."""
    return "- " if difference is None else f"{difference.error:.2g}{' ' if difference.passed else '!'}"


def shortened(name: str, width: int) -> str:
    """Cuts a long name in its middle: both ends tell more."""
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"
