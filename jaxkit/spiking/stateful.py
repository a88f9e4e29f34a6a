"""Connections, neurons and layers that hold their own parameters and state, as in torch.

For notebooks. Every call moves the state of an object, so none of this may be used inside ``jit``, ``scan`` or ``grad``:
those take the functions that are held here.
"""

from collections.abc import Callable
from dataclasses import fields

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Bool, Float, PyTree

from jaxkit.errors import ShapeError
from jaxkit.spiking.connections import Connection
from jaxkit.spiking.layers import Layer
from jaxkit.spiking.neurons import Neuron, NeuronCarry
from jaxkit.spiking.plasticity import Rule, Updater


class Stateful:
    """Holds neurons, or a layer, with its parameters and its state: ``y = thing(x)`` is a step.

    What it does not say itself is the state's, as ``thing.voltage`` of neurons and ``thing.neurons["feedfwd"].voltage``
    of a layer, or the part's, as ``thing.step_time``.

    Args:
        part: neurons, a layer, a connection. Connections become ``plastic``, as parameters may be assigned at any
            time: those on ``auto`` go by the present ones, as in the original.
        batch_size: of the state.
        params: as the part's ``init`` would make them; None: these, of ``key``.
        key: None: of seed 0.

    Raises:
        ShapeError: for parameters that are not the part's.
    """

    def __init__(
        self, part: Neuron | Connection | Layer, batch_size: int = 1, *, params: PyTree = None, key: Array | None = None
    ):
        self.part = _plastic(part)
        learns = isinstance(part, Connection | Layer)
        make = lambda key: self.part.init(key, method="parameters")["params"] if learns else {}  # noqa: E731
        start = jax.random.key(0) if key is None else key
        self._like, self._plan = jax.eval_shape(make, start), jax.jit(self.part.plan if learns else dict)
        self._step, self._learnt = jax.jit(self._next, static_argnums=3), jax.jit(_learnt, static_argnums=(0, 1, 2))
        self.params = jax.jit(make)(start) if params is None else params
        self.carry, self._rules = self.part.initialize_carry(batch_size), {}

    def __call__(self, *inputs: PyTree, adapt: bool = True) -> PyTree:
        """Takes a step: from spikes to spikes, of neurons from currents ``[b *n]``, of connections to currents.

        ``adapt``: whether adaptations move; connections have none.

        Raises:
            ShapeError: for inputs of another batch than the state's.
        """
        if any(len(x) != self.batch_size for x in jax.tree.leaves(inputs)):
            sizes = ", ".join(str(x.shape) for x in jax.tree.leaves(inputs))
            raise ShapeError(f"inputs {sizes} for a state of batch {self.batch_size}: set batch_size first")
        self.carry, y = self._step(self.plan, self.carry, inputs, adapt)
        return y

    def _next(self, plan, carry, inputs, adapt):
        if isinstance(self.part, Neuron):
            return self.part(carry, *inputs, adapt=adapt)
        if isinstance(self.part, Connection):
            return self.part.step(plan, carry, *inputs)
        step = self.part.step(plan, carry, *inputs, adapt=adapt)
        return step.carry, step.spikes
