"""From updates to parameters, and what is done to parameters from time to time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxkit.errors import ShapeError
from jaxkit.spelling import nearest
from jaxkit.spiking.checks import require_positive
from jaxkit.spiking.plasticity.bounds import FullBound, unbounded
from jaxkit.spiking.plasticity.rule import Updates


@dataclass(frozen=True, kw_only=True)
class Updater:
    """Applies the updates of one or more rules to a connection's parameters.

    ``params = connection.project(updater(params, updates))``: a bound may need a projection after it, of lateral
    connections' diagonals, or of delays.

    Args:
        weight, bias, delay: the change of each by what is to be added and what to be taken away (:mod:`.bounds`), such
            as ``partial(bound_power, max=1.0, min=0.0, upper_power=1.0, lower_power=1.0)``.
        reduction: how what several rules say becomes one; of an array ``[rules ...]`` and the axis 0.
    """

    weight: FullBound = unbounded
    bias: FullBound = unbounded
    delay: FullBound = unbounded
    reduction: Callable[[Array, int], Array] = jnp.sum

    def __call__(self, params: PyTree, *updates: Updates) -> PyTree:
        """Changes the parameters ``{weight, bias, delay}`` that updates name.

        Raises:
            ValueError: for updates of a parameter that is not there.
            ShapeError: for updates of another shape than the parameter's.
        """
        named = {name for each in updates for name in each}
        if not named <= set(params):
            missing = ", ".join(sorted(named - set(params)))
            raise ValueError(f"updates of {missing}, but the parameters are {', '.join(params)}")
        bounds = {"weight": self.weight, "bias": self.bias, "delay": self.delay}
        changed = {}
        for name in named:
            pairs = zip(*(each[name] for each in updates if name in each), strict=True)
            pos, neg = (self.reduction(jnp.stack(parts), 0) for parts in pairs)
            if pos.shape != params[name].shape:
                raise ShapeError(f"updates of {name} are {pos.shape}, and the parameter is {params[name].shape}")
            changed[name] = params[name] + bounds[name](params[name], pos, neg)
        return params | changed


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Scales a parameter to a norm along some axes: ``scale x / max(|x|_order, epsilon)``.

    Args:
        attr: the parameter.
        order: of the norm; may be infinite, not 0.
        scale: the norm to be had.
        dim: the axes whose elements share a norm; None: all.
        epsilon: the least norm to divide by.

    Raises:
        ValueError: for an order or a scale of 0, an epsilon that is not above 0.
    """

    attr: str = "weight"
    order: int | float
    scale: int | float
    dim: int | tuple[int, ...] | None
    epsilon: float = 1e-12

    def __post_init__(self):
        if self.order == 0 or self.scale == 0:
            raise ValueError(f"Normalization: order and scale must not be 0, got {self.order!r} and {self.scale!r}")
        require_positive(self, "epsilon")

    def __call__(self, params: PyTree) -> PyTree:
        """Normalizes the parameter among ``params``.

        Raises:
            ValueError: if it is not there.
        """
        x = _named(self, params)
        return params | {self.attr: self.scale * x / jnp.maximum(_norm(x, self.order, self.dim), self.epsilon)}


def _norm(x: Float[Array, "..."], order: int | float, dim: int | tuple[int, ...] | None) -> Float[Array, "..."]:
    size = jnp.abs(x)
    if math.isinf(order):
        return (jnp.max if order > 0 else jnp.min)(size, dim, keepdims=True)
    return (size**order).sum(dim, keepdims=True) ** (1 / order)


@dataclass(frozen=True, kw_only=True)
class Clamping:
    """Keeps a parameter between two values.

    Args:
        attr: the parameter.
        min, max: the least and the greatest value; None: no such limit.

    Raises:
        ValueError: without any limit, or if there is nothing between them.
    """

    attr: str = "weight"
    min: float | None = None
    max: float | None = None

    def __post_init__(self):
        if self.min is None and self.max is None:
            raise ValueError("Clamping needs min or max")
        if self.min is not None and self.max is not None and not self.min < self.max:
            raise ValueError(f"Clamping: min must be below max, got {self.min!r} and {self.max!r}")

    def __call__(self, params: PyTree) -> PyTree:
        """Clamps the parameter among ``params``.

        Raises:
            ValueError: if it is not there.
        """
        return params | {self.attr: jnp.clip(_named(self, params), self.min, self.max)}


def _named(hook: Normalization | Clamping, params: PyTree) -> Float[Array, "..."]:
    if hook.attr not in params:
        near = nearest(hook.attr, params)
        name = type(hook).__name__
        raise ValueError(f"{name}: no parameter is named {hook.attr!r}{near}; there are {', '.join(params)}")
    return params[hook.attr]
