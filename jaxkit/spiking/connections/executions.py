"""Sums over the past, ``y(t) = sum_k K_k c(t - k)``: step by step at arrival, ahead at departure, or all steps at once.

``weigh`` is the product of a current ``[b ...]`` and a step's part of the kernel; it is linear in both.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float, Int

from jaxkit.spiking.delays import Taps


def at_arrival(past: Float[Array, "k b ..."], kernel: Float[Array, "k ..."], weigh: Callable) -> Float[Array, "b ..."]:
    """What arrives now, of what was sent ``k`` steps ago."""
    return jax.vmap(weigh)(past, kernel).sum(0)


def at_departure(current: Float[Array, "b ..."], kernel: Float[Array, "k ..."], weigh: Callable):
    """What will arrive in ``k`` steps ``[k b ...]``, of what is sent now.

    Linear in what a sequence carries on, so that its gradient keeps ``current`` of every step and nothing else.
    """
    return jax.vmap(weigh, (None, 0))(current, kernel)


def at_once(
    past: Float[Array, "s b ..."],
    kernel: Float[Array, "k ..."],
    weigh: Callable,
    ago: tuple[int, ...],
) -> Float[Array, "t b ..."]:
    """What arrives in each of many steps: a causal convolution over time, as one product for each step of delay.

    Args:
        past: currents from ``max(ago)`` steps before the first step on, oldest first; ``s = max(ago) + t``.
        kernel: of the delays ``ago``.
        weigh: the product.
        ago: delays, in steps.
    """
    longest = max(ago)
    t, b = len(past) - longest, past.shape[1]

    # The gradient needs each slice again; computed anew, all of them together take no more memory than the past.
    @jax.checkpoint
    def add(total, item):
        start, part = item
        sent = lax.dynamic_slice_in_dim(past, start, t)
        return total + weigh(rearrange(sent, "t b ... -> (t b) ..."), part), None

    shape = jax.eval_shape(weigh, rearrange(past[:t], "t b ... -> (t b) ..."), kernel[0])
    starts = jnp.asarray([longest - k for k in ago])
    total, _ = lax.scan(add, jnp.zeros(shape.shape, shape.dtype), (starts, kernel))
    return rearrange(total, "(t b) ... -> t b ...", b=b)


def elements_at(
    ring: Float[Array, "r b ..."], newest: Int[Array, ""], taps: Taps, spread: Callable
) -> Float[Array, "b ..."]:
    """Reads every element of a ring through a delay of its own; ``spread`` gives delays the shape ``n``."""

    def at(step, coefficient):
        slots = jnp.broadcast_to(spread((newest - step) % len(ring)), ring.shape[2:])
        return spread(coefficient).astype(ring.dtype) * jnp.take_along_axis(ring, slots[None, None], 0)[0]

    return sum(at(*tap) for tap in zip(taps.steps, taps.coefficients, strict=True))
