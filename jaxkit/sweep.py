"""Scores of a trained run's samples over all combinations of some settings, as a table and a plot."""

import csv
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxkit.errors import ConfigError
from jaxkit.inference import score_run
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
    folder: Path, settings: dict[str, list[str]], step: int | None = None, *, read_weights: Callable | None = None
) -> Iterator[Row]:
    """Scores one checkpoint of the run in ``folder`` with every combination of settings; a row each.

    ``read_weights`` as in :func:`jaxkit.inference.score_run`.
    """
    for values in itertools.product(*settings.values()):
        row = dict(zip(settings, values, strict=True))
        changes = tuple(f"{key}={value}" for key, value in row.items())
        yield row | score_run(folder, step, changes, read_weights=read_weights)


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
    scores = [name for name in rows[0] if name not in settings]
    figure = Figure(figsize=(5 * len(scores), 4), layout="constrained")
    for panel, score in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        for values in itertools.product(*(settings[name] for name in others)):
            curve = [row for row in rows if tuple(row[name] for name in others) == values]
            label = ", ".join(f"{name.split('.')[-1]} {value}" for name, value in zip(others, values, strict=True))
            panel.plot([row[along] for row in curve], [row[score] for row in curve], marker="o", label=label or None)
        panel.set(xlabel=along, title=score)
        panel.grid(alpha=0.3)
        if others:
            panel.legend()
    part = path.with_suffix(".part.png")
    FigureCanvasAgg(figure).print_png(part)
    part.replace(path)
