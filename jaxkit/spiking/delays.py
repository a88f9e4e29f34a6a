"""What a delay in ms reads from samples taken at steps: one or two steps of the past, or a window of all of them.

Every reading is linear in the past: ``value(t) = sum_k c_k h[k] + constant``, ``h[k]`` being the sample of ``k`` steps
ago. The coefficients are found here; they depend on the delay alone, so that any way to compute the sum will do.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxkit.spiking.checks import known
from jaxkit.spiking.history import length

Interpolation = Literal["previous", "nearest", "linear", "expdecay", "gaussian", "triangle"]
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
# These weigh every step of the past, the others one or two.
WINDOWS = ("gaussian", "triangle")


class Reading(NamedTuple):
    """How delays read a history."""

    step_time: float
    """ms"""
    max_delay: float
    """ms"""
    mode: Interpolation = "previous"
    tolerance: float = 0.0
    """ms by which a delay may miss a step and be taken for it."""
    overbound: float | None = 0.0
    """What delays outside [0, max_delay] read; None: what the nearest end reads."""
    time_constant: float = 1.0
    """ms, of ``expdecay``"""
    relaxed: Interpolation | None = None
    """The mode whose derivative by the delay stands for this one's, which may have none (straight-through)."""
    width: Any = 1.0
    """Steps, of the windows: the standard deviation of ``gaussian``, half the base of ``triangle``; may be traced."""


def within(delay: Float[Array, "..."], longest: float) -> Float[Array, "..."]:
    """Moves delays into [0, ``longest``]; the derivative is 1 there, both ends included, and 0 outside."""
    return jnp.where((delay >= 0) & (delay <= longest), delay, lax.stop_gradient(jnp.clip(delay, 0, longest)))


class Taps(NamedTuple):
    """The steps that delays read, the coefficient of each, and which delays are in range."""

    steps: tuple[Int[Array, "..."], ...]
    coefficients: tuple[Float[Array, "..."], ...]
    inside: Bool[Array, "..."]


def taps(delay: Float[Array, "..."], reading: Reading) -> Taps:
    """Finds the one or two steps that each delay in ms reads.

    A delay that misses a step by ``tolerance`` or less is that step. Between two of them, ``s`` steps ago with ``f``
    its fraction, it reads: ``previous`` the older, so that what was sent arrives at the next step; ``nearest`` the
    nearer, of two as near the older; ``linear`` ``(1 - f)`` of the newer and ``f`` of the older; ``expdecay`` the
    older, decayed over the time since, ``exp(-(1 - f) step_time / time_constant)``, exact of an exponential into
    which nothing came at the newer one. All in float32, as the steps must not depend on the precision of weights.

    Raises:
        ValueError: for the modes that weigh all steps: they are :func:`kernel`'s only.
    """
    delay = delay.astype(jnp.promote_types(delay.dtype, jnp.float32))
    bounded = within(delay, reading.max_delay)
    inside = jnp.ones(delay.shape, bool)
    if reading.overbound is not None:
        inside = jnp.abs(delay - bounded) <= reading.tolerance

    # XLA would multiply by the rounded inverse of a constant, and fuse the product below with the subtraction: either
    # moves a delay of whole steps by one step now and then. The barrier and the maximum, of what is positive, stop it.
    step_time = lax.optimization_barrier(jnp.full_like(delay, reading.step_time))
    shift = bounded / step_time
    whole = jnp.round(shift)
    missed = jnp.abs(jnp.maximum(step_time * whole, 0) - bounded)
    # the value of a step, and the derivative of the delay
    shift = shift + lax.stop_gradient(jnp.where(missed <= reading.tolerance, whole - shift, 0.0))
    # Counted from the step to come, as the original does: near a whole number the sum's rounding decides.
    older, newer = (edge(1 + lax.stop_gradient(shift)).astype(jnp.int32) - 1 for edge in (jnp.ceil, jnp.floor))
    exact = older == newer
    since = jnp.where(exact, 0.0, reading.step_time - reading.step_time * (shift % 1))

    def one(step, coefficient):
        return Taps((step,), (jnp.where(inside, coefficient, 0.0),), inside)

    match reading.mode:
        case "previous":
            return one(older, 1.0)
        case "nearest":
            return one(jnp.where(since / reading.step_time > 0.5, newer, older), 1.0)
        case "expdecay":
            return one(older, jnp.exp(-since / reading.time_constant))
        case "linear":
            # At a whole step the slope is that towards the older one; at the last, which has none, towards the newer.
            last = length(reading.max_delay, reading.step_time) - 1
            step = jnp.minimum(jnp.floor(lax.stop_gradient(shift)), last - 1)
            part = jnp.where(inside, shift - step, 0.0)
            steps = (step.astype(jnp.int32), step.astype(jnp.int32) + 1)
            return Taps(steps, (jnp.where(inside, 1 - (shift - step), 0.0), part), inside)
    raise ValueError(f"{reading.mode} weighs every step of the past, not one or two")


def kernel(delay: Float[Array, "..."], reading: Reading) -> Float[Array, "r ..."]:
    """The coefficient of every step of the past: :func:`taps` written out, or a window around the delay.

    ``gaussian``: ``exp(-(k - s)² / 2 width²)`` of step ``k`` for a delay of ``s`` steps, divided by the sum over the
    steps (Hammouamri et al., "Learning Delays in Spiking Neural Networks using Dilated Convolutions with Learnable
    Spacings", 2023); ``triangle``: ``max(0, 1 - |k - s| / (1 + width))``, divided likewise (the window of DelRec,
    Queant et al., 2025). With ``reading.relaxed`` the values are this mode's, the derivative by the delay the other's.

    Raises:
        ValueError: for a window without width. Of a width that is traced the coefficients are not-a-number.
    """
    if reading.relaxed is not None:
        soft = kernel(delay, reading._replace(mode=reading.relaxed, relaxed=None))
        return lax.stop_gradient(kernel(delay, reading._replace(relaxed=None)) - soft) + soft
    r = length(reading.max_delay, reading.step_time)
    if reading.mode not in WINDOWS:
        found = taps(delay, reading)
        pairs = zip(found.steps, found.coefficients, strict=True)
        return sum(jax.nn.one_hot(step, r, axis=0) * coefficient for step, coefficient in pairs)
    bounded = within(delay, reading.max_delay)
    distance = jnp.expand_dims(jnp.arange(r), tuple(range(1, delay.ndim + 1))) - bounded / reading.step_time
    width = float(reading.width) if known(reading.width) else 1.0
    # a triangle without width still reaches to the next steps
    if not width >= 0 or (width == 0 and reading.mode == "gaussian"):
        raise ValueError(f"the window of {reading.mode!r} must be wider than 0 steps, got {width}")
    if reading.mode == "gaussian":
        window = jax.nn.softmax(-0.5 * (distance / reading.width) ** 2, axis=0)
    else:
        window = jnp.maximum(0, 1 - jnp.abs(distance) / (1 + reading.width))
        window = window / window.sum(0)
    if reading.overbound is None:
        return window
    return jnp.where(jnp.abs(delay - bounded) <= reading.tolerance, window, 0.0)
