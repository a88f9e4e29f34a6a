"""Neurons, connections and layers that hold their own state and parameters, as in torch: for notebooks.

``layer = Stateful(Serial(...), batch_size=20)``, then ``spikes = layer(x)`` for every step. A call moves the object's
state: none of this works inside ``jit``, ``scan`` or ``grad``, which take the functions that are held here.
"""

from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from jaxkit.errors import ShapeError
from jaxkit.spiking.connections import Connection
from jaxkit.spiking.layers import Layer
from jaxkit.spiking.neurons import Neuron, NeuronCarry
from jaxkit.spiking.plasticity import Rule, Updater


class Stateful:
    """Holds neurons, a layer, or as :class:`StatefulConnection` a connection.

    Names that are not its own are its state's (``neurons.voltage``, ``layer.neurons["neuron"].voltage``), or those of
    what it holds (``connection.like_bias``). Other names cannot be set; state is set as ``carry``.

    Args:
        part: what is held. Connections on ``auto`` go by their present parameters, as the original's do.
        batch_size: of the state.
        key: of the first parameters; None: seed 0.
    """

    __slots__ = ("__weakref__", "_batch_size", "_params", "_planned", "_rules", "_step", "carry", "part", "plan")

    def __init__(self, part: Neuron | Connection | Layer, batch_size: int = 1, *, key: Array | None = None):
        self.part = _plastic(part)
        self._batch_size, self.carry, self._rules = batch_size, self.part.initialize_carry(batch_size), {}
        self._step = jax.jit(self._next, static_argnames="adapt")
        key, learns = jax.random.key(0) if key is None else key, not isinstance(part, Neuron)
        self._planned = jax.jit(self.part.plan) if learns else dict
        self._params = self.part.init(key, method="parameters")["params"] if learns else {}
        self.params = self._params

    def _next(self, plan, carry, *inputs, adapt):
        match self.part:
            case Neuron():
                return self.part(carry, *inputs, adapt=adapt)
            case Connection():
                return self.part.step(plan, carry, *inputs)
        step = self.part.step(plan, carry, *inputs, adapt=adapt)
        return step.carry, step.spikes

    def __call__(self, *inputs: PyTree, adapt: bool = True) -> PyTree:
        """Takes a step, as what is held does; ``adapt``: whether adaptations move, where there are any.

        Raises:
            ShapeError: for inputs of another batch than the state's.
        """
        shapes = [np.shape(x) for x in jax.tree.leaves(inputs)]
        if any(shape[:1] != (self.batch_size,) for shape in shapes):
            raise ShapeError(f"inputs {shapes} for a state of {self.batch_size} samples: set batch_size first")
        self.carry, y = self._step(self.plan, self.carry, *inputs, adapt=adapt)
        return y

    def __getattr__(self, name: str) -> Any:
        if name in Stateful.__slots__:  # of an object in the making, such as a copy
            raise AttributeError(name)
        return getattr(self.carry if name in self.carry._fields else self.part, name)

    @property
    def batch_size(self) -> int:
        """Samples. Setting it clears the state, but for what samples share."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.clear()

    @property
    def params(self) -> PyTree:
        """The parameters, which are set as a whole; what is masked is masked then.

        Raises:
            ShapeError: for other names or shapes.
        """
        return self._params

    @params.setter
    def params(self, params: PyTree) -> None:
        params = _checked(params, self._params)
        self._params = self.part.project(params) if params else params
        self.plan = self._planned(self._params)

    def clear(self, *, keep_adaptations: bool = True) -> None:
        """Brings the state to rest, that of learning rules too; adaptations unless they are to be kept."""
        fresh, past = self.part.initialize_carry(self.batch_size), self.carry
        if keep_adaptations and isinstance(self.part, Neuron):
            fresh = _adapted(fresh, past)
        elif keep_adaptations and isinstance(self.part, Layer):
            fresh = fresh._replace(neurons={k: _adapted(v, past.neurons[k]) for k, v in fresh.neurons.items()})
        self.carry, self._rules = fresh, {}


def _parameter(name: str) -> property:
    def read(self):
        return self.params.get(name)

    def write(self, value):
        self.params = self.params | {name: value}

    return property(read, write, doc=f"The parameter; None without one. Set: a {name} of the same shape.")


class StatefulConnection(Stateful):
    """Holds a connection: ``currents = connection(spikes)``; attributes have the original's names and shapes."""

    __slots__ = ()

    weight, bias, delay = map(_parameter, ("weight", "bias", "delay"))

    def learn(self, rule: Rule, updater: Updater, post: Shaped[Array, "b ..."], *signal: Any) -> None:
        """Changes the parameters as a rule says of the last step, after which neurons sent the spikes ``post``.

        ``signal``: what else the rule takes, such as a reward.
        """
        state = self._rules[rule] if rule in self._rules else rule.initialize_carry(self.part, self.batch_size)
        at = (self.plan, self.carry, post, *signal)
        state, self.params = _learnt(rule, updater, self.part, state, self.params, *at)
        self._rules = self._rules | {rule: state}

    @property
    def delayedby(self) -> float | None:
        """The longest delay, ms."""
        return self.part.delay

    @property
    def selector(self) -> Float[Array, "b ..."] | None:
        """The delays, ms, as each synapse of each sample reads."""
        return self.part.selector(self.plan, self.batch_size)

    @property
    def syncurrent(self) -> Float[Array, "b ..."]:
        """The currents, nA, that weights met in the last step."""
        return self.part.syncurrent(self.plan, self.carry)

    @property
    def synspike(self) -> Bool[Array, "b ..."]:
        """The spikes that weights met in the last step."""
        return self.part.synspike(self.plan, self.carry)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _learnt(rule, updater, connection, state, params, plan, carry, post, *signal):
    state, updates = rule(state, connection, plan, carry, post, *signal)
    return state, updater(params, updates)


def _plastic(part: Any) -> Any:
    if isinstance(part, Connection):
        return part.clone(plastic=True)
    if not isinstance(part, Layer):
        return part
    own = {field.name: getattr(part, field.name) for field in fields(part) if field.name not in ("parent", "name")}
    return part.clone(**jax.tree.map(_plastic, own))


def _adapted(fresh: NeuronCarry, past: NeuronCarry) -> NeuronCarry:
    same = np.shape(fresh.adaptation) == np.shape(past.adaptation)
    return fresh._replace(adaptation=past.adaptation) if same else fresh


def _checked(params: PyTree, like: PyTree) -> PyTree:
    given, expected = flatten_dict(params), flatten_dict(like)
    wrong = [f"no {'/'.join(name)} here" for name in given if name not in expected]
    wrong += [f"{'/'.join(name)} is missing" for name in expected if name not in given]
    shapes = {name: (np.shape(given[name]), expected[name].shape) for name in expected if name in given}
    wrong += [f"{'/'.join(name)} is {was}, not {due}" for name, (was, due) in shapes.items() if was != due]
    if wrong:
        raise ShapeError(f"parameters that do not fit: {'; '.join(wrong)}")
    return unflatten_dict({name: jnp.asarray(value, expected[name].dtype) for name, value in given.items()})
