"""What a file of textual inversion holds, whoever wrote it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

MOST = 75
"""Vectors that a prompt of CLIP has room for between its two marks."""
_BASES = {
    (768,): "Stable Diffusion 1 (or the first text encoder of XL)",
    (1024,): "Stable Diffusion 2",
    (1280,): "the second text encoder of Stable Diffusion XL",
    (768, 1280): "Stable Diffusion XL",
}


class Embedding(NamedTuple):
    """A learned word."""

    token: str
    rows: tuple[np.ndarray, ...]
    """Of each text encoder its vectors, [n d] float32: of Stable Diffusion 1 and 2 one array, of XL two."""
    about: Mapping[str, str] = MappingProxyType({})
    """What the file says besides, such as the step it was saved at."""

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers in a vector of each text encoder."""
        return tuple(rows.shape[1] for rows in self.rows)

    @property
    def base(self) -> str:
        """The model that has vectors of these widths."""
        return _BASES.get(self.widths, "no Stable Diffusion that is known")


def shape_problem(shape: tuple[int, ...]) -> str | None:
    """Says why an array of this shape is not the vectors of a word; None if it can be."""
    if len(shape) not in (1, 2):
        return f"its shape {list(shape)} is neither [n d], n vectors, nor [d], one"
    if 0 in shape:
        return f"its shape {list(shape)} has no numbers"
    if len(shape) == 2 and shape[0] > MOST:
        return f"it has {shape[0]:,} vectors, and a prompt has room for {MOST}"
    return None


def rows_problem(rows: np.ndarray) -> str | None:
    """Says what keeps vectors from being used; None if nothing does."""
    finite = np.isfinite(rows).reshape(len(rows), -1).all(1)
    if not finite.all():
        return f"not-a-numbers or infinities are in vector {int(np.argmin(finite))}, counted from 0"
    return None


def counts_problem(rows: tuple[np.ndarray, ...]) -> str | None:
    """Says so where the text encoders have not the same number of vectors; None if they do."""
    counts = [len(array) for array in rows]
    return None if len(set(counts)) == 1 else f"its text encoders have {' and '.join(map(str, counts))} vectors"
