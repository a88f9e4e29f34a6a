"""What all spiking connections do: spikes to synapses, and their currents, as old as delays say, through weights."""

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, PyTree, Shaped

from jaxkit.spiking.connections.executions import at_arrival, at_departure, at_once, elements_at
from jaxkit.spiking.connections.options import Execution, check_carry, check_options
from jaxkit.spiking.connections.plan import Plan, planned
from jaxkit.spiking.connections.receptive import Carry, Receptive
from jaxkit.spiking.delays import WINDOWS, Interpolation
from jaxkit.spiking.history import History, in_order, latest, length, push
from jaxkit.spiking.synapses import Synapse


class Connection(Receptive, kw_only=True):
    """Feeds spikes to synapses, and their currents through delays and weights.

    ``carry = connection.initialize_carry(batch)``, then ``carry, y = connection(carry, x)`` for every step. What is
    sent at step ``t`` with a delay of ``k`` steps arrives at step ``t + k``; of 0, at once. For many steps,
    :meth:`sequence` does what is the same in all of them once, as do :meth:`plan` and :meth:`step`.

    Args:
        synapse: turns spikes into currents.
        bias: whether a current is added to every output.
        delay: the longest delay, ms. None: no delays. 0: the parameter is there, and nothing is delayed.
        delay_per: whether each synapse has a delay of its own, or shares that of its input or its output.
        delay_steps: the only delays there are, in steps, for ``grouped`` and ``convolution``, which then look at no
            others. Outputs that have any other become not-a-number. None: all up to the longest.
        out_of_range: what delays outside [0, ``delay``] do. ``silent``: they read what the synapse's overbounds say,
            by default nothing, as in the original; ``clamp``: they read what the nearest end does; ``project``: the
            same, and :meth:`project` moves them there after an update.
        relaxed_delay: the interpolation whose derivative by the delay stands for that of the synapse's own.
        execution: how delayed currents are computed. ``gather`` reads the past through every delay, and is right
            while weights change; ``grouped`` multiplies each step of the past by the weights that read it; ``future``
            multiplies what is sent, and stores it until it arrives: weights and delays count as they were then;
            ``convolution`` is ``grouped`` for many steps at once (:meth:`sequence`). ``auto``: see :attr:`executed`.
        plastic: whether weights or delays change between steps of a sequence; ``auto`` goes by it.
        weight_init, bias_init, delay_init: flax initializers; by default uniform in [0, 1), and delays of 0 ms.
        dtype: of currents and products; parameters are float32.

    Raises:
        ValueError: for options that are unknown or contradict each other.
    """

    synapse: Synapse
    bias: bool = False
    delay: float | None = None
    delay_per: Literal["synapse", "input", "output"] = "synapse"
    delay_steps: tuple[int, ...] | None = None
    out_of_range: Literal["silent", "clamp", "project"] = "silent"
    relaxed_delay: Interpolation | None = None
    execution: Execution = "auto"
    plastic: bool = False
    weight_init: Callable = nn.initializers.uniform(1.0)
    bias_init: Callable = nn.initializers.uniform(1.0)
    delay_init: Callable = nn.initializers.zeros
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_options(self)
        super().__post_init__()

    def setup(self):
        self.weight_ = self.param("weight", self.weight_init, self.weight_shape, jnp.float32)
        if self.bias:
            self.bias_ = self.param("bias", self.bias_init, self.bias_shape, jnp.float32)
        if self.delay is not None:
            self.delay_ = self.param("delay", self.delay_init, self.delay_shape, jnp.float32)

    def __call__(
        self, carry: Carry, *inputs: Shaped[Array, "b ..."], window: float | Float[Array, ""] = 1.0
    ) -> tuple[Carry, Float[Array, "b ..."]]:
        """Takes a step, from spikes ``[b *inshape]`` to currents ``[b *outshape]``, nA.

        Further inputs are currents, nA, for synapses that take them. ``window``: steps, the width of the
        interpolations ``gaussian`` and ``triangle``.
        """
        return self.step(self.plan(self.parameters(), window), carry, *inputs)

    def sequence(
        self, carry: Carry, *inputs: Shaped[Array, "t b ..."], window: float | Float[Array, ""] = 1.0
    ) -> tuple[Carry, Float[Array, "t b ..."]]:
        """Takes as many steps as the inputs have, with the same outcome as one by one."""
        plan = self.plan(self.parameters(), window)
        check_carry(self, carry, *(x[0] for x in inputs))
        if self.executed == "convolution":
            return self._all_steps(plan, carry, inputs)
        if (
            self.delayed
            and self.execution == "auto"
            and self.executed == "future"
            and len(inputs[0]) >= 2 * self.record
        ):
            return self._all_sent(plan, carry, inputs)
        return lax.scan(lambda carry, x: self.step(plan, carry, *x), carry, inputs)

    def parameters(self) -> dict[str, Array]:
        """The parameters of a bound connection, as :meth:`plan` takes them."""
        params = {"weight": self.weight_}
        if self.bias:
            params["bias"] = self.bias_
        return params if self.delay is None else params | {"delay": self.delay_}

    # What follows needs no parameters: it may be called on a connection that is not bound, inside a scan.

    @property
    def delayed(self) -> bool:
        """Whether anything is delayed."""
        return bool(self.delay)

    @property
    def record(self) -> int:
        """Steps of the past that delays can read, the present one included."""
        return length(self.delay, self.step_time) if self.delayed else 1

    @property
    def executed(self) -> Execution:
        """The execution that is used, where ``auto`` chooses.

        Without delays there is nothing to choose: ``gather``. Those with ``delay_steps`` are ``grouped``. ``plastic``
        connections gather, and so do those whose delays come before the weights: they read one number an input. All
        else is ``future``, of which :meth:`sequence` takes twice :attr:`record` steps or more at once, as a
        ``convolution`` of the same outcome. The figures behind it are in docs/benchmarks.md.

        Raises:
            ValueError: for ``gather`` of an interpolation that weighs all steps.
        """
        if not self.delayed:
            return "gather"
        windowed = self.relaxed_delay is not None or self.synapse.terms(self.step_time)[0].mode in WINDOWS
        if self.execution == "gather" and windowed:
            raise ValueError(
                "execution 'gather' reads a step or two of the past; this interpolation weighs all: 'future'"
            )
        if self.execution != "auto":
            return self.execution
        if self.delay_steps is not None:
            return "grouped"
        if self.plastic or self._before:
            return "grouped" if windowed else "gather"
        return "future"

    @property
    def _before(self) -> bool:
        """Whether delays act on inputs, before the weights."""
        return self.elementwise or self.delay_per == "input"

    @property
    def ago(self) -> tuple[int, ...]:
        """The delays, in steps, that ``grouped`` and ``convolution`` look at."""
        steps = range(self.record) if self.delay_steps is None else self.delay_steps
        if not steps or not set(steps) <= set(range(self.record)):
            raise ValueError(f"delay_steps {self.delay_steps}: name some of 0 to {self.record - 1}")
        return tuple(sorted(set(steps)))

    @property
    def _state_dtype(self) -> Any:
        """Of what is carried on: in bfloat16 slow currents would not decay."""
        return jnp.promote_types(self.dtype, jnp.float32)

    @nn.nowrap
    def initialize_carry(self, batch: int) -> Carry:
        """Makes the state in which nothing was sent yet."""
        future = self.delayed and self.executed == "future"
        r = 1 if future else self.record
        graded = [term.ring for term in self.synapse.terms(self.step_time)]
        rings = {
            name: jnp.zeros((r, batch, *self.synapse_shape), self._state_dtype if name in graded else bool)
            for name in self.synapse.quantities
        }
        shape = self.synapse_shape if self._before else self.product_shape
        arrivals = jnp.zeros((self.record - 1, batch, *shape), self._state_dtype) if future else None
        return Carry(History(rings, jnp.int32(r - 1)), arrivals)

    @nn.nowrap
    def plan(self, params: PyTree, window: float | Float[Array, ""] = 1.0) -> Plan:
        """Finds what the parameters ``{weight, bias, delay}`` amount to, for :meth:`step`."""
        return planned(self, params, window)

    @nn.nowrap
    def step(self, plan: Plan, carry: Carry, *inputs: Shaped[Array, "b ..."]) -> tuple[Carry, Float[Array, "b ..."]]:
        """Takes a step as a call does."""
        check_carry(self, carry, *inputs)
        values = self.synapse.step(latest(carry.history), self._synaptic(inputs), self.step_time)
        history, arrivals = push(carry.history, values), carry.arrivals
        if not self.delayed:
            y = self.product(self._current(values), plan.weight)
        elif self.executed == "gather":
            y = self._gathered(plan, history)
        elif self.executed == "future":
            sent = self.summed(plan, values.__getitem__, at_departure)
            queue = jnp.concatenate([arrivals, jnp.zeros_like(arrivals[:1])]) + sent
            y, arrivals = self._weighted(plan, queue[0]), queue[1:]
        else:
            ago = jnp.asarray(self.ago)
            arrived = self.summed(plan, lambda name: in_order(history, name)[ago], at_arrival)
            y = self._weighted(plan, arrived)
        return Carry(history, arrivals), self._output(plan, y)

    @nn.nowrap
    def project(self, params: PyTree) -> PyTree:
        """Moves parameters to where they are allowed: masked ones to 0, delays to their range if it is projected on."""
        params = params | {"weight": self.masked(params["weight"])}
        if self.delay is None:
            return params
        delay = self.masked_delay(params["delay"])
        return params | {"delay": jnp.clip(delay, 0, self.delay) if self.out_of_range == "project" else delay}

    def _all_steps(self, plan: Plan, carry: Carry, inputs: tuple[Array, ...]) -> tuple[Carry, Float[Array, "t b ..."]]:
        """The execution ``convolution``."""
        values = self._reactions(carry, inputs)
        # oldest first
        known = {name: in_order(carry.history, name)[::-1] for name in values}
        known = {name: jnp.concatenate([ring, values[name]]) for name, ring in known.items()}
        history = History({name: past[-self.record :] for name, past in known.items()}, jnp.int32(self.record - 1))
        start = self.record - max(self.ago)

        def convolved(past, kernel, weigh):
            return at_once(past[start:], kernel, weigh, self.ago)

        return Carry(history), self._outputs(plan, self.summed(plan, known.__getitem__, convolved))

    def _all_sent(self, plan: Plan, carry: Carry, inputs: tuple[Array, ...]) -> tuple[Carry, Float[Array, "t b ..."]]:
        """The execution ``future`` for many steps at once, and for those after them, in which nothing more is sent."""
        values, t = self._reactions(carry, inputs), len(inputs[0])

        def convolved(past, kernel, weigh):
            silence = jnp.zeros((self.record - 1, *past.shape[1:]), past.dtype)
            return at_once(jnp.concatenate([silence, past, silence]), kernel, weigh, tuple(range(self.record)))

        arrived = self.summed(plan, values.__getitem__, convolved).astype(self._state_dtype)
        arrived = arrived.at[: self.record - 1].add(carry.arrivals)
        history = History({name: past[-1:] for name, past in values.items()}, jnp.int32(0))
        return Carry(history, arrived[t:]), self._outputs(plan, arrived[:t])

    def _reactions(self, carry: Carry, inputs: tuple[Array, ...]) -> dict[str, Shaped[Array, "t b ..."]]:
        """The synapse's quantities over many steps."""

        def react(past, x):
            values = self.synapse.step(past, self._synaptic(x), self.step_time)
            values = {name: value.astype(past[name].dtype) for name, value in values.items()}
            return values, values

        return lax.scan(react, latest(carry.history), inputs)[1]

    def _outputs(self, plan: Plan, arrived: Float[Array, "t b ..."]) -> Float[Array, "t b ..."]:
        t, b = arrived.shape[:2]
        y = self._output(plan, self._weighted(plan, arrived.reshape(t * b, *arrived.shape[2:])))
        return y.reshape(t, b, *y.shape[1:])

    def _current(self, values: dict[str, Array]) -> Float[Array, "b ..."]:
        return sum(term.factor * values[term.ring].astype(self.dtype) for term in self.synapse.terms(self.step_time))

    def summed(self, plan: Plan, past: Callable[[str], Array], execution: Callable) -> Float[Array, "..."]:
        """An execution over every term of the current."""
        terms = self.synapse.terms(self.step_time)
        pairs = zip(terms, plan.kernels, strict=True)
        weigh = self.product
        if self._before:
            weigh = lambda current, part: current * self.over_inputs(part)  # noqa: E731
        elif self.delay_per == "output":
            weigh = lambda current, part: self.product(current, plan.weight) * self.over_outputs(part)  # noqa: E731
        return sum(execution(term.factor * past(term.ring).astype(self.dtype), kernel, weigh) for term, kernel in pairs)

    def _weighted(self, plan: Plan, arrived: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        return self.product(arrived.astype(self.dtype), plan.weight) if self._before else arrived

    def _gathered(self, plan: Plan, history: History) -> Float[Array, "b ..."]:
        terms = self.synapse.terms(self.step_time)
        rings = [term.factor * history.rings[term.ring].astype(self.dtype) for term in terms]
        pairs = list(zip(rings, plan.reads, strict=True))
        if self._before:
            read = (elements_at(ring, history.newest, found, self.over_inputs) for ring, found in pairs)
            return self.product(sum(read), plan.weight)
        return self.contract(sum(self._read(ring, history.newest, found) for ring, found in pairs), plan.weight)

    def _synaptic(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(x.reshape(len(x), *self.synapse_shape) for x in inputs)

    def _output(self, plan: Plan, y: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        y = y + plan.constant if plan.bias is None else y + plan.constant + self.over_outputs(plan.bias)
        return y.astype(self.dtype).reshape(len(y), *self.outshape)
