"""Scores of a trained run's samples over all combinations of some settings, as a table and a plot."""

import csv
import io
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from jaxkit.errors import ConfigError
from jaxkit.inference import score_run
from jaxkit.tasks.task import Readers
from jaxkit.tracking import write_atomically

Row = dict[str, str | float]


def axes(arguments: list[str]) -> dict[str, list[str]]:
    """Reads ``section.key=value,value,...`` each as one axis of a sweep.

    Raises:
        ConfigError: for what is no such thing.
    """
    found = {}
    for argument in arguments:
        key, separator, values = argument.partition("=")
        if not key or not separator or not all(values.split(",")):
            raise ConfigError(f"{argument!r} is no axis of a sweep: write section.key=value,value,...")
        found[key] = values.split(",")
    return found


def sweep(
    folder: Path, settings: dict[str, list[str]], step: int | None = None, *, readers: Readers | None = None
) -> Iterator[Row]:
    """Scores one checkpoint of the run in ``folder`` with every combination of settings; a row each.

    ``readers`` as in :func:`jaxkit.inference.score_run`.
    """
    for values in itertools.product(*settings.values()):
        row = dict(zip(settings, values, strict=True))
        changes = tuple(f"{key}={value}" for key, value in row.items())
        yield row | score_run(folder, step, changes, readers=readers)


def write(rows: list[Row], settings: dict[str, list[str]], folder: Path) -> None:
    """Writes ``sweep.csv``, and ``sweep.png``: a panel for each score over the first axis, a curve for the others."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(folder / "sweep.csv", text.getvalue())
    _draw(rows, settings, folder / "sweep.png")


def _draw(rows: list[Row], settings: dict[str, list[str]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    along, *others = settings
    told = [name for name in others if len(settings[name]) > 1]
    scores = [name for name in rows[0] if name not in settings]
    columns = min(4, len(scores))
    lines = math.ceil(len(scores) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.8 * lines), layout="constrained", dpi=80)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for score, panel in zip(scores, panels, strict=False):
        for values in itertools.product(*(settings[name] for name in others)):
            curve = [row for row in rows if tuple(row[name] for name in others) == values]
            label = ", ".join(f"{name.split('.')[-1]} {row[name]}" for row in curve[:1] for name in told)
            panel.plot([_place(row[along]) for row in curve], [row[score] for row in curve], "o-", label=label or None)
        panel.set(xlabel=along.removeprefix("task.sampler."), title=score.replace("_", " "))
        panel.grid(alpha=0.3)
        if told:
            panel.legend()
    for panel in list(panels):
        panel.remove()
    part = path.with_suffix(".part.png")
    FigureCanvasAgg(figure).print_png(part)
    part.replace(path)


def _place(value: str) -> float | str:
    """Where a value lies on the axis: numbers as far apart as they are, words side by side."""
    try:
        return float(value)
    except ValueError:
        return value
