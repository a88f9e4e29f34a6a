"""Multiply-accumulates of a function, counted in its jaxpr: whatever a module is made of, nothing bypasses it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def macs(function: Callable, *arguments: Any) -> int | float:
    """Counts the multiply-accumulates of the convolutions and matrix products in ``function(*arguments)``.

    A convolution has as many as its output has positions, times the size of its kernel; taps on the padding count, as
    in published figures. One that dilates its input (a transposed convolution) has the positions of its input. Products
    of attention count as those of dense layers do; the passes of a scan are counted, and of a branch the costliest arm.

    Args:
        function: traced, not run.
        arguments: arrays, or ``jax.ShapeDtypeStruct`` in their place.

    Returns:
        a whole number, or NaN where the count depends on the data: inside a ``while``, or a Pallas kernel.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int | float:
    return sum(_cost(equation) for equation in jaxpr.eqns)


def _cost(equation: JaxprEqn) -> int | float:
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            return equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        case "conv_general_dilated":
            return _convolution(equation)
        case "pallas_call":
            return math.nan
        case name:
            inner = [_count(jaxpr) for jaxpr in _within(equation.params.values())]
            if name == "while":
                return math.nan if any(inner) else 0
            if name == "cond":
                return math.nan if any(map(math.isnan, inner)) else max(inner)
            return sum(inner) * equation.params.get("length", 1) if name == "scan" else sum(inner)


def _convolution(equation: JaxprEqn) -> int:
    """Positions times the size of the kernel."""
    images, kernel = (variable.aval for variable in equation.invars)
    numbers = equation.params["dimension_numbers"]
    # zeros put between the values of the input are multiplied by nobody
    dilated = max(equation.params["lhs_dilation"], default=1) > 1
    array, axis = (images, numbers.lhs_spec[1]) if dilated else (equation.outvars[0].aval, numbers.out_spec[1])
    return array.size // array.shape[axis] * kernel.size


def _within(values: Any) -> Iterator[Jaxpr]:
    """The jaxprs among the parameters of an equation, however they are nested."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _within(value)
