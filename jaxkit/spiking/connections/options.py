"""What a connection can be told, and what is refused."""

import math
from typing import Literal, get_args

from jaxtyping import Array

from jaxkit.errors import ShapeError
from jaxkit.spiking.connections.receptive import Carry
from jaxkit.spiking.delays import INTERPOLATIONS
from jaxkit.spiking.synapses import Synapse

Execution = Literal["auto", "gather", "grouped", "future", "convolution"]
CHOICES = {
    "execution": get_args(Execution),
    "delay_per": ("synapse", "input", "output"),
    "out_of_range": ("silent", "clamp", "project"),
    "relaxed_delay": (None, *INTERPOLATIONS),
}


def check_options(connection) -> None:
    """Checks the options of a connection.

    Raises:
        ValueError: for options that are unknown or contradict each other.
    """
    for name, choices in CHOICES.items():
        given = getattr(connection, name)
        if given not in choices:
            raise ValueError(f"{name} is {given!r}; it can be {', '.join(map(repr, choices))}")
    if not isinstance(connection.synapse, Synapse):
        raise ValueError(f"synapse is {connection.synapse!r}; give a synapse, such as DeltaCurrent(spike_charge=1.0)")
    if not 0 < connection.step_time < math.inf:
        raise ValueError(f"step_time is {connection.step_time} ms; it must be positive")
    if connection.delay is not None and not 0 <= connection.delay < math.inf:
        raise ValueError(f"delay, the longest, is {connection.delay} ms; it must be 0 or more, or None for no delays")
    if connection.delay_steps is not None and connection.execution in ("gather", "future"):
        raise ValueError(f"delay_steps are for 'grouped' and 'convolution'; execution is {connection.execution!r}")


def check_carry(connection, carry: Carry, *inputs: Array) -> None:
    """Checks the inputs of a step against the connection, and the carry against both.

    Raises:
        ShapeError: naming what does not fit.
        ValueError: for currents that the synapse does not take.
    """
    if not inputs:
        raise ShapeError(f"{type(connection).__name__} was given no spikes")
    for x in inputs:
        if x.shape[1:] != connection.inshape:
            raise ShapeError(f"input {x.shape} is not [b, {', '.join(map(str, connection.inshape))}]")
    if len(inputs) > 1 and not connection.synapse.injectable:
        raise ValueError(f"{type(connection.synapse).__name__} takes spikes alone; DeltaPlusCurrent takes currents too")
    future = connection.delayed and connection.executed == "future"
    steps = len(next(iter(carry.history.rings.values())))
    if (carry.arrivals is not None) != future or steps != (1 if future else connection.record):
        name, record = connection.executed, connection.record
        raise ShapeError(f"the carry is not one of execution {name!r} and {record} steps: initialize_carry makes it")
    for x in inputs:
        if len(x) != carry.batch:
            raise ShapeError(f"input {x.shape} for a carry of {carry.batch} samples")
