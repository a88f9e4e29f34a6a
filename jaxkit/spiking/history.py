"""The past that a delay reads: rings of the latest values, newest overwriting oldest."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Shaped


class History(NamedTuple):
    """The latest ``r`` values of some quantities of a synapse, all written at the same moments."""

    rings: dict[str, Shaped[Array, "r b ..."]]
    newest: Int[Array, ""]
    """The slot that was written last; ``k`` steps ago is slot ``(newest - k) mod r``."""


def length(duration: float, step_time: float) -> int:
    """How many values cover a duration in ms, both of its ends included (``ceil(duration / step_time) + 1``)."""
    return math.ceil(duration / step_time) + 1


def push(history: History, values: Mapping[str, Shaped[Array, "b ..."]]) -> History:
    """Writes one value of every ring over its oldest."""
    r = len(next(iter(history.rings.values())))
    if r == 1:
        return history._replace(
            rings={name: values[name].astype(ring.dtype)[None] for name, ring in history.rings.items()}
        )
    slot = (history.newest + 1) % r
    rings = {
        name: lax.dynamic_update_index_in_dim(ring, values[name].astype(ring.dtype), slot, 0)
        for name, ring in history.rings.items()
    }
    return History(rings, slot)


def latest(history: History) -> dict[str, Shaped[Array, "b ..."]]:
    """The values written last."""
    if all(len(ring) == 1 for ring in history.rings.values()):
        return {name: ring[0] for name, ring in history.rings.items()}
    return {name: lax.dynamic_index_in_dim(ring, history.newest, 0, False) for name, ring in history.rings.items()}


def in_order(history: History, name: str) -> Shaped[Array, "r b ..."]:
    """A ring as ``[k b ...]``: what was written ``k`` steps ago."""
    ring = history.rings[name]
    return ring[(history.newest - jnp.arange(len(ring))) % len(ring)]
