"""The Halton order of a grid's cells: each next cell is far from those before it."""

import numpy as np
from jaxtyping import Int


def halton_ranks(height: int, width: int) -> Int[np.ndarray, "{height} {width}"]:
    """Ranks the cells of a grid by when the Halton sequence first falls into them, 0 first.

    The sequence's points are ``(φ₂(i), φ₃(i))`` for ``i = 1, 2, ...``, with ``φ_b(i)`` the digits of ``i`` in base
    ``b`` mirrored at the point; the first is for the rows. Found in whole numbers, so that no rounding tells.

    Source: Besnier et al., "Halton Scheduler for Masked Generative Image Transformer", ICLR 2025, section 4.
    """
    cells, points = height * width, 4 * height * width
    while True:
        index = np.arange(1, points + 1)
        visits = _cell(index, 2, height) * width + _cell(index, 3, width)
        visited, first = np.unique(visits, return_index=True)
        if len(visited) == cells:
            break
        points *= 2
    ranks = np.empty(cells, np.int32)
    ranks[visited[np.argsort(first)]] = np.arange(cells)
    return ranks.reshape(height, width)


def _cell(index: np.ndarray, base: int, size: int) -> np.ndarray:
    """``⌊φ_base(index) size⌋``."""
    mirrored, scale = np.zeros_like(index), 1
    while index.any():
        index, digit = np.divmod(index, base)
        mirrored, scale = mirrored * base + digit, scale * base
    return mirrored * size // scale
