"""Layouts: einops patterns from the axes of one array to those of another, with ``-h`` for the axis h reversed."""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from einops.parsing import ParsedExpression

Shape = tuple[int, ...]

# A tile takes rows that are read at full length, few enough side by side that all the lines written stay in a core's
# cache; axes shorter than a run are not cut, and below the size all stays there.
_ROWS, _COLUMNS, _RUN, _LARGE = 1024, 16, 32, 1 << 20
# Memory is the limit: more threads than these wait for it.
_WORKERS = 4


class Spec(NamedTuple):
    """Shape and type of an array."""

    shape: Shape
    dtype: np.dtype


def spec(array: Any) -> Spec:
    """Shape and type of anything that has them."""
    return Spec(tuple(array.shape), np.dtype(array.dtype))


class Layout(NamedTuple):
    """A pattern taken apart: for each axis of the source and of the target, the elementary axes merged in it."""

    source: tuple[tuple[str, ...], ...]
    target: tuple[tuple[str, ...], ...]
    pattern: str
    reversed_axes: frozenset[str]

    @property
    def inverse(self) -> "Layout":
        """The way back."""
        back = " -> ".join(self.pattern.split(" -> ")[::-1])
        return Layout(self.target, self.source, back, self.reversed_axes)

    def sizes(self, source: Shape, known: Mapping[str, int]) -> dict[str, int] | None:
        """Finds the size of every elementary axis of a source of this shape; None if it cannot have it."""
        if len(source) != len(self.source):
            return None
        sizes = {axis: n for axis, n in known.items() if any(axis in group for group in self.source)}
        for n, group in zip(source, self.source, strict=True):
            unknown = [axis for axis in group if axis not in sizes]
            rest, remainder = divmod(n, math.prod(sizes[axis] for axis in group if axis in sizes) or 1)
            if remainder or len(unknown) > 1 or (not unknown and rest != 1):
                return None
            sizes |= dict.fromkeys(unknown, rest)
        return sizes

    def known(self, target: Shape) -> dict[str, int]:
        """The sizes that the target's shape tells: those of the axes that stand alone there."""
        pairs = zip(self.target, target, strict=False)
        return {group[0]: n for group, n in pairs if len(group) == 1}

    def shape(self, sizes: Mapping[str, int]) -> Shape:
        """The shape of the target."""
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.target)

    def apply(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Views the array in the target's layout, or copies it where no view can be."""
        moved = rearrange(array, self.pattern, **sizes)
        flips = [i for i, group in enumerate(self.target) if self.reversed_axes.intersection(group)]
        return np.flip(moved, flips) if flips else moved

    def blindness(self, sizes: Mapping[str, int]) -> str | None:
        """Says what a wrong layout of the same shape could have mixed up; None if the shape excludes it."""
        axes = [axis for group in self.source for axis in group if sizes[axis] > 1]
        merged = [group for group in (*self.source, *self.target) if sum(sizes[axis] > 1 for axis in group) > 1]
        if merged:
            return f"the order of {', '.join(merged[0])} within one axis"
        alike = {}
        for axis in axes:
            alike.setdefault(sizes[axis], []).append(axis)
        doubtful = [f"{' = '.join(same)} = {n}" for n, same in alike.items() if len(same) > 1]
        return ", ".join(doubtful) or None


@cache
def parse(pattern: str) -> Layout:
    """Takes a pattern apart, such as ``"o (c h w) -> h w c o"``."""
    flips = frozenset(word.lstrip("-") for word in pattern.split() if word.startswith("-") and word != "->")
    plain = " -> ".join(" ".join(word.removeprefix("-") for word in side.split()) for side in pattern.split(" -> "))
    source, target = (
        tuple(tuple(map(str, group)) if isinstance(group, list) else (group,) for group in expression.composition)
        for expression in map(ParsedExpression, plain.split(" -> "))
    )
    return Layout(source, target, plain, flips)


def contiguous(view: np.ndarray) -> np.ndarray:
    """Copies a view, C-contiguous.

    NumPy copies in the order of the target alone: where that runs across the source, it reads every cache line many
    times. Here a large array is copied tile by tile, two to nine times faster.
    """
    copied = np.empty(view.shape, view.dtype)
    strides = [abs(stride) for stride in view.strides]
    long = sorted((i for i, n in enumerate(view.shape) if n >= _RUN), key=strides.__getitem__)
    if view.nbytes < _LARGE or len(long) < 2 or long[0] > long[-1] or not min(strides):
        np.copyto(copied, view)
        return copied
    near, far = long[0], long[-1]

    def copy_rows(start: int) -> None:
        index = [slice(None)] * view.ndim
        index[near] = slice(start, start + _ROWS)
        for column in range(0, view.shape[far], _COLUMNS):
            index[far] = slice(column, column + _COLUMNS)
            copied[tuple(index)] = view[tuple(index)]

    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(copy_rows, range(0, view.shape[near], _ROWS)))
    return copied
