"""How near its limits a parameter is, and by how much an update shrinks for it.

Upper bounds act on what is added, lower bounds on what is taken away, full bounds on both; those give the change of the
parameter. Beyond a limit updates turn around, of any power, and of ``sharp`` bounds they stop. Names and arguments are
the original's (inferno), in which full bounds by a power fail, and powers beyond a limit become not-a-number or grow.
Scaled bounds raise a ValueError for a range, ``max - min``, that is not above 0.

Source: Morrison et al., "Phenomenological models of synaptic plasticity based on spike timing", 2008, section 4.1.3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkit.spiking.checks import known

Values = Float[Array, "..."]
HalfBound = Callable[[Array, Array], Array]
"""What is left of an update, by the parameter and the update."""
FullBound = Callable[[Array, Array, Array], Array]
"""The change of a parameter, by the parameter, what is to be added and what is to be taken away."""


def unbounded(param: Values, pos: Values, neg: Values) -> Values:
    """``pos - neg``"""
    return pos - neg


@dataclass(frozen=True)
class HalfBounds:
    """A full bound of an upper and a lower one, either of which may be left out."""

    upper: HalfBound | None = None
    lower: HalfBound | None = None

    def __call__(self, param: Values, pos: Values, neg: Values) -> Values:
        """The change of the parameter."""
        pos = pos if self.upper is None else self.upper(param, pos)
        return pos - (neg if self.lower is None else self.lower(param, neg))


def _part(distance: Values, range: float) -> Values:
    if known(range) and not np.all(range > 0):
        raise ValueError(f"scaled bounds divide by their range, max - min: it must be above 0, got {range!r}")
    return distance / range


def _power(distance: Values, power: float) -> Values:
    return jnp.sign(distance) * jnp.abs(distance) ** power


def bound_upper_power(param: Values, update: Values, limit: float, *, power: float) -> Values:
    """``(limit - param)^power update``"""
    return _power(limit - param, power) * update


def bound_lower_power(param: Values, update: Values, limit: float, *, power: float) -> Values:
    """``(param - limit)^power update``"""
    return _power(param - limit, power) * update


def bound_power(
    param: Values,
    pos: Values,
    neg: Values,
    max: float | None = None,
    min: float | None = None,
    *,
    upper_power: float,
    lower_power: float,
) -> Values:
    """``(max - param)^upper_power pos - (param - min)^lower_power neg``; None: that side is free."""
    pos = pos if max is None else bound_upper_power(param, pos, max, power=upper_power)
    return pos - (neg if min is None else bound_lower_power(param, neg, min, power=lower_power))


def bound_upper_scaled_power(param: Values, update: Values, limit: float, *, power: float, range: float) -> Values:
    """``((limit - param) / range)^power update``"""
    return _power(_part(limit - param, range), power) * update


def bound_lower_scaled_power(param: Values, update: Values, limit: float, *, power: float, range: float) -> Values:
    """``((param - limit) / range)^power update``"""
    return _power(_part(param - limit, range), power) * update


def bound_scaled_power(
    param: Values, pos: Values, neg: Values, max: float, min: float, *, upper_power: float, lower_power: float
) -> Values:
    """As :func:`bound_power`, with distances divided by ``max - min``."""
    pos = bound_upper_scaled_power(param, pos, max, power=upper_power, range=max - min)
    return pos - bound_lower_scaled_power(param, neg, min, power=lower_power, range=max - min)


def bound_upper_multiplicative(param: Values, update: Values, limit: float) -> Values:
    """``(limit - param) update``"""
    return (limit - param) * update


def bound_lower_multiplicative(param: Values, update: Values, limit: float) -> Values:
    """``(param - limit) update``"""
    return (param - limit) * update


def bound_multiplicative(
    param: Values, pos: Values, neg: Values, max: float | None = None, min: float | None = None
) -> Values:
    """``(max - param) pos - (param - min) neg``; None: that side is free."""
    pos = pos if max is None else bound_upper_multiplicative(param, pos, max)
    return pos - (neg if min is None else bound_lower_multiplicative(param, neg, min))


def bound_upper_scaled_multiplicative(param: Values, update: Values, limit: float, range: float) -> Values:
    """``(limit - param) / range update``"""
    return _part(limit - param, range) * update


def bound_lower_scaled_multiplicative(param: Values, update: Values, limit: float, range: float) -> Values:
    """``(param - limit) / range update``"""
    return _part(param - limit, range) * update


def bound_scaled_multiplicative(param: Values, pos: Values, neg: Values, max: float, min: float) -> Values:
    """As :func:`bound_multiplicative`, with distances divided by ``max - min``."""
    pos = bound_upper_scaled_multiplicative(param, pos, max, max - min)
    return pos - bound_lower_scaled_multiplicative(param, neg, min, max - min)


def bound_upper_sharp(param: Values, update: Values, limit: float) -> Values:
    """The update where ``param < limit``, else 0: at the limit itself updates stop."""
    return jnp.where(param < limit, update, 0.0)


def bound_lower_sharp(param: Values, update: Values, limit: float) -> Values:
    """The update where ``param > limit``, else 0: at the limit itself updates stop."""
    return jnp.where(param > limit, update, 0.0)


def bound_sharp(param: Values, pos: Values, neg: Values, max: float | None = None, min: float | None = None) -> Values:
    """``pos`` below ``max`` less ``neg`` above ``min``; None: that side is free."""
    pos = pos if max is None else bound_upper_sharp(param, pos, max)
    return pos - (neg if min is None else bound_lower_sharp(param, neg, min))
