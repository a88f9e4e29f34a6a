"""What a connection's parameters amount to, found once for many steps."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxkit.errors import ShapeError
from jaxkit.spiking.delays import Reading, Taps, kernel, taps, within
from jaxkit.spiking.synapses import Term


class Plan(NamedTuple):
    """Weights and delays, ready for a connection's execution."""

    weight: Float[Array, "..."]
    bias: Float[Array, "..."] | None
    delay: Float[Array, "..."] | None
    """ms; clipped if the connection clips"""
    reads: tuple[Taps, ...] = ()
    """Of every term of the current, the steps that delays read; of the execution ``gather``."""
    kernels: tuple[Float[Array, "k ..."], ...] = ()
    """Of every term, the coefficients of the steps of the past, times the weights unless delays come before or after
    them; of the other executions."""
    constant: Float[Array, "..."] | float = 0.0
    """What delays out of range add to the output."""


def planned(connection, params: PyTree, window: float | Float[Array, ""] = 1.0) -> Plan:
    """Makes the plan of a connection's parameters ``{weight, bias, delay}``.

    ``window``: steps, the width of the interpolations ``gaussian`` and ``triangle``.

    Raises:
        ShapeError: for parameters of other names or shapes than the connection's.
        ValueError: for a window of no width.
    """
    _check(connection, params)
    weight = connection.masked(params["weight"]).astype(connection.dtype)
    bias = params["bias"].astype(connection.dtype) if connection.bias else None
    if connection.delay is None:
        return Plan(weight, bias, None)
    delay = connection.masked_delay(params["delay"])
    if not connection.delayed:
        return Plan(weight, bias, delay)
    if connection.out_of_range != "silent":
        delay = within(delay, connection.delay)

    readings = [current_reading(connection, term, window) for term in connection.synapse.terms(connection.step_time)]
    constant = _beyond(connection, weight, delay, readings[0])
    if connection.executed == "gather":
        return Plan(weight, bias, delay, reads=tuple(taps(delay, reading) for reading in readings), constant=constant)
    kernels = [kernel(delay, reading) for reading in readings]
    if connection.executed != "future" and connection.delay_steps is not None:
        constant += _unread(connection, kernels[0])
        kernels = [found[np.asarray(connection.ago)] for found in kernels]
    if connection.delay_per == "synapse" and not connection.elementwise:
        kernels = [found * weight for found in kernels]
    kernels = tuple(found.astype(connection.dtype) for found in kernels)
    return Plan(weight, bias, delay, kernels=kernels, constant=constant)


def _check(connection, params: PyTree) -> None:
    """Checks the names and shapes of parameters: others would be broadcast, or never looked at."""
    expected = {"weight": connection.weight_shape}
    if connection.bias:
        expected["bias"] = connection.bias_shape
    if connection.delay is not None:
        expected["delay"] = connection.delay_shape
    if set(params) != set(expected):
        given, needed = (", ".join(names) or "none" for names in (params, expected))
        raise ShapeError(f"{type(connection).__name__} has the parameters {needed}; given are {given}")
    for name, shape in expected.items():
        if np.shape(params[name]) != shape:
            raise ShapeError(f"{type(connection).__name__}: {name} must be {shape}, got {np.shape(params[name])}")


def current_reading(connection, term: Term, window: float | Float[Array, ""] = 1.0) -> Reading:
    """How a connection's delays read a term of its current."""
    synapse = connection.synapse
    overbound = synapse.current_overbound if connection.out_of_range == "silent" else None
    relaxed = connection.relaxed_delay
    shared = (connection.step_time, connection.delay)
    return Reading(*shared, term.mode, synapse.interp_tol, overbound, term.time_constant, relaxed, window)


def spike_reading(connection) -> Reading:
    """How a connection's delays read spikes."""
    synapse = connection.synapse
    overbound = synapse.spike_overbound if connection.out_of_range == "silent" else None
    return Reading(connection.step_time, connection.delay, synapse.spike_interpolation, synapse.interp_tol, overbound)


def _beyond(connection, weight, delay, reading: Reading) -> Float[Array, "..."] | float:
    """What the overbound of delays out of range adds to the output."""
    if not reading.overbound:
        return 0.0
    outside = ~taps(delay, reading._replace(mode="previous")).inside
    return connection.total(weight * connection.over_weights(jnp.where(outside, reading.overbound, 0.0)))


def _unread(connection, coefficients: Float[Array, "r ..."]) -> Float[Array, "..."]:
    """Not-a-number at outputs with a delay that is not among the steps that are looked at, 0 at others."""
    others = [k for k in range(connection.record) if k not in connection.ago]
    lost = (coefficients[np.asarray(others, int)] != 0).any(0)
    return connection.total(connection.over_weights(jnp.where(lost, jnp.nan, 0.0)))
