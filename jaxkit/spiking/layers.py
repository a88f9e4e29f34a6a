"""Layers: connections feed neurons."""

import math
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jax import lax
from jaxtyping import Array, Float, PyTree

from jaxkit.errors import ShapeError
from jaxkit.spiking.connections import Carry, Connection, Plan
from jaxkit.spiking.neurons import Neuron, NeuronCarry


class LayerCarry(NamedTuple):
    """The state of a layer, by the names of its parts."""

    connections: dict[str, Carry]
    neurons: dict[str, NeuronCarry]


class Step(NamedTuple):
    """What a step gives."""

    carry: LayerCarry
    spikes: PyTree
    currents: dict[str, Array]
    """What each connection put out, nA."""


class Layer(nn.Module):
    """Connections, neurons, and how the ones' currents reach the others.

    ``carry = layer.initialize_carry(batch)``, then ``carry, spikes = layer(carry, x)`` for every step; as with
    connections, :meth:`sequence` for many.
    """

    @nn.nowrap
    def parts(self) -> tuple[dict[str, Connection], dict[str, Neuron]]:
        """The connections, by the names of their parameters, and the neurons."""
        raise NotImplementedError

    @nn.nowrap
    def step(self, plans: dict[str, Plan], carry: LayerCarry, *inputs: PyTree, adapt: bool = True) -> Step:
        """Takes a step as a call does, without parameters: for use inside a scan."""
        raise NotImplementedError

    @nn.nowrap
    def initialize_carry(self, batch: int) -> LayerCarry:
        """Makes the state at rest, in which nothing was sent yet."""
        parts = self.parts()
        step_times = {name: part.step_time for kind in parts for name, part in kind.items()}
        if len(set(step_times.values())) > 1:
            raise ValueError(f"the parts of a layer take steps of one length, not {step_times} ms")
        return LayerCarry(*({name: part.initialize_carry(batch) for name, part in kind.items()} for kind in parts))

    @nn.nowrap
    def plan(self, params: PyTree, window: float | Float[Array, ""] = 1.0) -> dict[str, Plan]:
        """Finds what the parameters of the connections amount to, for :meth:`step`.

        Raises:
            ShapeError: for a connection without parameters.
        """
        connections = self.parts()[0]
        if missing := ", ".join(name for name in connections if name not in params):
            raise ShapeError(
                f"{type(self).__name__}: no parameters of {missing}; given are those of {', '.join(params)}"
            )
        return {name: part.plan(params[name], window) for name, part in connections.items()}

    @nn.nowrap
    def project(self, params: PyTree) -> PyTree:
        """Moves the connections' parameters to where they are allowed."""
        return {name: part.project(params[name]) for name, part in self.parts()[0].items()}

    def parameters(self) -> PyTree:
        """The parameters of a bound layer, as :meth:`plan` takes them."""
        return {name: part.parameters() for name, part in self.parts()[0].items()}

    def __call__(
        self, carry: LayerCarry, *inputs: PyTree, adapt: bool = True, window: float | Float[Array, ""] = 1.0
    ) -> tuple[LayerCarry, PyTree]:
        """Takes a step, from spikes to spikes. ``adapt``: whether adaptations move; ``window``: as of a connection."""
        step = self.step(self.plan(self.parameters(), window), carry, *inputs, adapt=adapt)
        return step.carry, step.spikes

    def sequence(
        self,
        carry: LayerCarry,
        *inputs: PyTree,
        adapt: bool = True,
        window: float | Float[Array, ""] = 1.0,
        record: Callable[[Step], PyTree] | None = None,
    ) -> tuple[LayerCarry, PyTree] | tuple[LayerCarry, PyTree, PyTree]:
        """Takes as many steps as the inputs ``[t b ...]`` have.

        ``record`` is a monitor: what it returns of every step comes back third, stacked along ``t``, such as
        ``lambda step: step.carry.neurons["neuron"].voltage``.
        """
        plans = self.plan(self.parameters(), window)

        def advance(carry, x):
            step = self.step(plans, carry, *x, adapt=adapt)
            return step.carry, (step.spikes, record(step) if record else None)

        carry, (spikes, recorded) = lax.scan(advance, carry, inputs)
        return (carry, spikes, recorded) if record else (carry, spikes)


def _alike(currents: dict[str, Array]) -> list[Array]:
    """The currents, if they are of one shape: others would be broadcast."""
    shapes = {name: current.shape for name, current in currents.items()}
    if len(set(shapes.values())) > 1:
        raise ShapeError(f"currents that come together are of one shape, not {shapes}")
    return list(currents.values())


class Serial(Layer):
    """Feeds one connection to one group of neurons.

    Args:
        connection, neuron: of the same output shape.
        transform: of the current, before the neurons.
    """

    connection: Connection
    neuron: Neuron
    transform: Callable[[Array], Array] | None = None

    @nn.nowrap
    def parts(self):
        return {"connection": self.connection}, {"neuron": self.neuron}

    @nn.nowrap
    def step(self, plans, carry, *inputs, adapt=True):
        sent, current = self.connection.step(plans["connection"], carry.connections["connection"], *inputs)
        drive = self.transform(current) if self.transform else current
        neuron, spikes = self.neuron(carry.neurons["neuron"], drive, adapt=adapt)
        return Step(LayerCarry({"connection": sent}, {"neuron": neuron}), spikes, {"connection": current})


_MANY = "connections_"
COMBINE = {
    "sum": sum,
    "mean": lambda currents: sum(currents) / len(currents),
    "prod": math.prod,
    "min": partial(reduce, jnp.minimum),
    "max": partial(reduce, jnp.maximum),
}


class Biclique(Layer):
    """Feeds every connection to every group of neurons: the same combination of all currents.

    A call takes a dict of inputs, and gives a dict of spikes.

    Args:
        connections, neurons: by name, all of one output shape once transformed.
        combine: of the currents: ``sum``, ``mean``, ``prod``, ``min``, ``max``, or a function of a dict of them.
        before: transforms of connections' currents, by name.
        after: transforms of the combined current for neurons, by name.

    Raises:
        ValueError: for an unknown ``combine``, or a transform of what is not there, when first used.
    """

    connections: Mapping[str, Connection]
    neurons: Mapping[str, Neuron]
    combine: Literal["sum", "mean", "prod", "min", "max"] | Callable[[dict[str, Array]], Array] = "sum"
    before: Mapping[str, Callable[[Array], Array]] = FrozenDict()
    after: Mapping[str, Callable[[Array], Array]] = FrozenDict()

    @nn.nowrap
    def parts(self):
        stray = {*self.before} - {*self.connections} | {*self.after} - {*self.neurons}
        if stray:
            raise ValueError(f"transforms of {sorted(stray)}, which are no parts of this layer")
        if isinstance(self.combine, str) and self.combine not in COMBINE:
            raise ValueError(f"combine is '{self.combine}'; it can be {', '.join(COMBINE)} or a function")
        return {_MANY + name: part for name, part in self.connections.items()}, dict(self.neurons)

    @nn.nowrap
    def step(self, plans, carry, inputs, adapt=True):
        if not isinstance(inputs, Mapping) or set(inputs) != set(self.connections):
            given = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(f"inputs of {given} for connections {sorted(self.connections)}")
        sent, currents = {}, {}
        for name, part in self.parts()[0].items():
            sent[name], currents[name] = part.step(
                plans[name], carry.connections[name], inputs[name.removeprefix(_MANY)]
            )
        drives = {
            name: self.before[name](current) if name in self.before else current
            for name, current in ((name.removeprefix(_MANY), current) for name, current in currents.items())
        }
        drive = self.combine(drives) if callable(self.combine) else COMBINE[self.combine](_alike(drives))
        neurons, spikes = {}, {}
        for name, part in self.neurons.items():
            current = self.after[name](drive) if name in self.after else drive
            neurons[name], spikes[name] = part(carry.neurons[name], current, adapt=adapt)
        return Step(LayerCarry(sent, neurons), spikes, currents)


class RecurrentSerial(Layer):
    """Feeds neurons, they other neurons, and those the first ones again, a step later.

    A call gives the spikes of both: ``feedfwd``, ``feedback``.

    Args:
        feedfwd_connection: from the input to the first neurons.
        lateral_connection: from the first to the second ones, within a step.
        feedback_connection: from the second ones' last spikes to the first ones.
        feedfwd_neuron, feedback_neuron: the first and the second ones.
    """

    feedfwd_connection: Connection
    lateral_connection: Connection
    feedback_connection: Connection
    feedfwd_neuron: Neuron
    feedback_neuron: Neuron

    @nn.nowrap
    def parts(self):
        names = ("feedfwd_connection", "lateral_connection", "feedback_connection")
        neurons = {"feedfwd": self.feedfwd_neuron, "feedback": self.feedback_neuron}
        return {name: getattr(self, name) for name in names}, neurons

    @nn.nowrap
    def step(self, plans, carry, *inputs, adapt=True):
        sent, currents = {}, {}

        def connect(name, *x):
            sent[name], currents[name] = self.parts()[0][name].step(plans[name], carry.connections[name], *x)
            return currents[name]

        last = carry.neurons["feedback"].spike
        connect("feedfwd_connection", *inputs)
        connect("feedback_connection", last)
        drive = sum(_alike(currents))
        first, spikes = self.feedfwd_neuron(carry.neurons["feedfwd"], drive, adapt=adapt)
        second, echo = self.feedback_neuron(
            carry.neurons["feedback"], connect("lateral_connection", spikes), adapt=adapt
        )
        neurons = {"feedfwd": first, "feedback": second}
        return Step(LayerCarry(sent, neurons), {"feedfwd": spikes, "feedback": echo}, currents)
