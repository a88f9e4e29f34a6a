"""Plots as SVG that take their colours from the page: classes of series are styled there, light and dark."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 40


class Dot(NamedTuple):
    """A value at a place on the x axis, what is said of it, and whether it failed."""

    x: float
    y: float
    label: str
    failed: bool = False


class Series(NamedTuple):
    """Dots of one kind; ``style`` is a class of the page's style sheet."""

    name: str
    style: str
    dots: Sequence[Dot]


class _Frame(NamedTuple):
    """Maps the data's ranges to the picture."""

    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM)

    def picture(self, title: str, x_title: str, y_title: str, parts: Sequence[str]) -> str:
        """Puts the parts into a frame with the names of its axes."""
        middle = (_TOP + self.height - _BOTTOM) / 2
        names = [
            f'<text class="name" x="{(_LEFT + self.width - _RIGHT) / 2}" y="{self.height - 6}" '
            f'text-anchor="middle">{escape(x_title)}</text>',
            f'<text class="name" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_title)}</text>",
        ]
        axes = f'<path class="axis" d="M{_LEFT} {_TOP}V{self.height - _BOTTOM}H{self.width - _RIGHT}"/>'
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(title)}">'
            + "".join([*parts, axes, *names])
            + "</svg>"
        )

    def y_ticks(self, values: Sequence[float], labels: Sequence[str]) -> str:
        """Horizontal lines across, and their values."""
        return "".join(
            f'<path class="grid" d="M{_LEFT} {self.y(value):.1f}H{self.width - _RIGHT}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{self.y(value) + 4:.1f}" text-anchor="end">{escape(label)}</text>'
            for value, label in zip(values, labels, strict=True)
        )

    def x_ticks(self, values: Sequence[float], labels: Sequence[str]) -> str:
        """Values below the axis."""
        y = self.height - _BOTTOM + 15
        return "".join(
            f'<text class="tick" x="{self.x(value):.1f}" y="{y}" text-anchor="middle">{escape(label)}</text>'
            for value, label in zip(values, labels, strict=True)
        )

    def dot(self, x: float, y: float, style: str, label: str) -> str:
        """A circle that tells its label under the pointer."""
        return (
            f'<circle class="{style}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3"><title>{escape(label)}</title>'
            "</circle>"
        )


def errors(title: str, x_title: str, y_title: str, series: Sequence[Series], limit: float | None) -> str:
    """Plots errors on a logarithmic axis against their place in the order of execution.

    Zeros lie on the axis; what is not finite lies at the top. ``limit`` is drawn where it is the same for all.
    """
    finite = [dot.y for one in series for dot in one.dots if dot.y > 0 and math.isfinite(dot.y)]
    finite += [limit] if limit else []
    low, high = math.floor(math.log10(min(finite, default=0.1))) - 0.5, math.ceil(math.log10(max(finite, default=1)))
    frame = _Frame(960, 280, _span([dot.x for one in series for dot in one.dots]), (low, max(high, low + 1) + 0.2))
    decades = range(math.ceil(low), math.floor(frame.y_range[1]) + 1, 1 + int((frame.y_range[1] - low) // 9))
    places = [place for place in _ticks(*frame.x_range) if place >= 1 and place == round(place)]
    parts = [frame.y_ticks(decades, [f"1e{k}" for k in decades]), frame.x_ticks(places, [f"{x:.0f}" for x in places])]
    if limit:
        y = frame.y(math.log10(limit))
        parts += [
            f'<path class="limit" d="M{_LEFT} {y:.1f}H{frame.width - _RIGHT}"/>',
            f'<text class="tick limit-name" x="{frame.width - _RIGHT}" y="{y - 5:.1f}" text-anchor="end">limit</text>',
        ]
    for one in series:
        for dot in one.dots:
            height = _log(dot.y, frame.y_range)
            parts.append(frame.dot(dot.x, height, f"{one.style} failed" if dot.failed else one.style, dot.label))
    return frame.picture(title, x_title, y_title, parts)


def scatter(title: str, x_title: str, y_title: str, x: np.ndarray, y: np.ndarray) -> str:
    """Plots one side's values against the other's, and the line on which equals lie; finite ones only."""
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    span = _span([*x.tolist(), *y.tolist()])
    frame = _Frame(460, 340, span, span)
    ticks = _ticks(*span)
    labels = [f"{tick:.4g}" for tick in ticks]
    line = (
        f'<path class="equal" d="M{frame.x(span[0]):.1f} {frame.y(span[0]):.1f}'
        f'L{frame.x(span[1]):.1f} {frame.y(span[1]):.1f}"/>'
    )
    dots = [frame.dot(a, b, "output", f"{a:.7g}, {b:.7g}") for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    return frame.picture(
        title, x_title, y_title, [frame.y_ticks(ticks, labels), frame.x_ticks(ticks, labels), line, *dots]
    )


def lines(title: str, x_title: str, y_title: str, series: Sequence[Series]) -> str:
    """Plots values step by step, those that are finite."""
    kept = [one._replace(dots=[dot for dot in one.dots if math.isfinite(dot.y)]) for one in series]
    places = sorted({dot.x for one in series for dot in one.dots})
    frame = _Frame(460, 340, _span(places), _span([dot.y for one in kept for dot in one.dots]))
    ticks, every = _ticks(*frame.y_range), math.ceil(len(places) / 10)
    parts = [frame.y_ticks(ticks, [f"{tick:.5g}" for tick in ticks])]
    parts.append(frame.x_ticks(places[::every], [f"{place:g}" for place in places[::every]]))
    for one in kept:
        path = "L".join(f"{frame.x(dot.x):.1f} {frame.y(dot.y):.1f}" for dot in one.dots)
        parts.append(f'<path class="line {one.style}" d="M{path}"/>' if path else "")
        parts += [frame.dot(dot.x, dot.y, one.style, dot.label) for dot in one.dots]
    return frame.picture(title, x_title, y_title, parts)


def _log(value: float, span: tuple[float, float]) -> float:
    """Where a value lies on a logarithmic axis, clipped to its ends."""
    if math.isnan(value):
        return span[1]
    return min(max(math.log10(value) if 0 < value < math.inf else (span[1] if value else span[0]), span[0]), span[1])


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The range of some values and a little around it."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.04 * (high - low) or 0.5 * max(abs(high), 1.0)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Some four to eight round numbers within a range."""
    rough = (high - low) / 6
    unit = 10 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]
