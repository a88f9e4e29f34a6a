"""What learning rules remember of spikes: traces that decay, the time since the last one, how many there were.

All are 0 where there never was a spike, so that the zeros around an image, and those that delays out of range read,
stand for silence.
"""

import math
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TraceMode = Literal["cumulative", "nearest"]


def trace(
    past: Float[Array, "*n"], spikes: Float[Array, "*n"], *, step_time: float, time_constant: float, mode: TraceMode
) -> Float[Array, "*n"]:
    """Moves a trace by one step: ``x <- x exp(-step_time / time_constant) + spikes``, both in ms.

    ``nearest``: a spike sets the trace to 1 instead, so that only the last one counts (Morrison et al.,
    "Phenomenological models of synaptic plasticity based on spike timing", 2008, section 4.1.2).
    """
    decayed = past * math.exp(-step_time / time_constant)
    return decayed + spikes if mode == "cumulative" else jnp.where(spikes != 0, 1.0, decayed)


def age(past: Float[Array, "*n"], spikes: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Counts the steps since the last spike, that of the spike included: 1 where there is one now.

    Whole numbers, as sums of a step time in ms would round, and the order of two spikes decide by it.
    """
    return jnp.where(spikes != 0, 1.0, jnp.where(past > 0, past + 1, 0.0))


class Rate(NamedTuple):
    """The average of what was seen so far."""

    mean: Float[Array, "..."]
    count: Int[Array, ""]


def average(rate: Rate, spikes: Float[Array, "*n"]) -> Rate:
    """Adds an observation: ``mean <- mean + (spikes - mean) / count``."""
    count = rate.count + 1
    return Rate(rate.mean + (spikes - rate.mean) / count, count)
