"""What all neurons share: one step from current to spike, with a refractory period, over a carry of plain arrays."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxkit.errors import ShapeError
from jaxkit.spiking.checks import (
    Sizes,
    as_shape,
    require_below,
    require_not_negative,
    require_positive,
    require_whole,
)
from jaxkit.spiking.surrogate import Surrogate, arctan


class NeuronCarry(NamedTuple):
    """The state of a group of neurons between two steps; float32 whatever the currents are.

    ``voltage [b *n]`` in mV; ``refrac [b *n]``, what is left of the refractory period in ms; ``spike [b *n]``, 1 where
    the last step fired; ``adaptation``, of adaptive neurons, ``[*n k]`` or ``[b *n k]`` where it is each sample's own.
    """

    voltage: Array
    refrac: Array
    spike: Array
    adaptation: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Neuron(ABC):
    """A group of neurons of one kind.

    Every step: the refractory period runs down; neurons out of it integrate the current; those at or above threshold
    fire, are reset and become refractory.

    Args:
        shape: the shape ``*n`` of the group.
        step_time: length of a step, ms.
        rest_v: resting potential, mV.
        refrac_t: absolute refractory period, ms; 0 for none. It runs down by ``step_time`` in the carry's precision, so
            where that is no exact multiple of the step (0.3 and 0.1) it may end a step later.
        resistance: of the membrane, MΩ.
        refrac_lock: whether voltage and adaptation stand still in the refractory period. If not they move on without
            input current.
        surrogate: derivative of a spike by the distance to threshold, over the distance from rest to threshold.
        detach_reset: whether the gradient ignores that a reset depends on the spike; the usual choice (Zenke and
            Vogels, 2021).

    Raises:
        ValueError: for constants of the wrong sign or order.
    """

    shape: Sizes = field(kw_only=False)
    step_time: float = field(kw_only=False)
    rest_v: float
    refrac_t: float
    resistance: float = 1.0
    refrac_lock: bool = True
    surrogate: Surrogate = field(default_factory=arctan)
    detach_reset: bool = True

    def __post_init__(self):
        require_whole(self, "shape")
        object.__setattr__(self, "shape", as_shape(self.shape))
        require_positive(self, "step_time")
        require_not_negative(self, "refrac_t")
        if not isinstance(self.surrogate, Surrogate):
            name = type(self).__name__
            raise ValueError(f"{name}: surrogate must be a Surrogate, such as arctan(), got {self.surrogate!r}")
        if self.resistance == 0:
            raise ValueError(f"{type(self).__name__}: resistance must not be 0")

    @property
    @abstractmethod
    def tau(self) -> float:
        """The membrane's time constant, ms."""

    @property
    @abstractmethod
    def resting_threshold(self) -> float:
        """The threshold without any adaptation, mV."""

    @abstractmethod
    def integrate(self, voltage: Float[Array, " b *n"], current: Float[Array, " b *n"]) -> Float[Array, " b *n"]:
        """Moves the membrane by one step of its dynamics, mV."""

    @abstractmethod
    def reset(self, voltage: Float[Array, " b *n"]) -> Float[Array, " b *n"] | float:
        """Where a membrane that fired at ``voltage`` goes, mV."""

    def threshold(self, carry: NeuronCarry) -> Float[Array, "*bn"] | float:
        """The voltage at which neurons fire now, mV."""
        return self.resting_threshold

    def net_current(self, carry: NeuronCarry, current: Float[Array, " b *n"]) -> Float[Array, " b *n"]:
        """What of the current drives the membrane, nA."""
        return current

    def adapt(self, carry: NeuronCarry) -> NeuronCarry:
        """Moves the adaptation by one step, knowing the membrane and the spikes after it."""
        return carry

    def initialize_carry(self, batch: int, dtype: DTypeLike = jnp.float32) -> NeuronCarry:
        """Starts ``batch`` samples at rest: no spike, not refractory, not adapted."""
        zeros = jnp.zeros((batch, *self.shape), dtype)
        return NeuronCarry(jnp.full_like(zeros, self.rest_v), zeros, zeros)

    def clear(self, carry: NeuronCarry, *, keep_adaptations: bool = True) -> NeuronCarry:
        """Brings the neurons of a carry back to rest, with what they have adapted to or without it."""
        fresh = self.initialize_carry(carry.voltage.shape[0], carry.voltage.dtype)
        return fresh._replace(adaptation=carry.adaptation) if keep_adaptations else fresh

    def __call__(
        self, carry: NeuronCarry, current: Float[Array, " b *n"], *, adapt: bool = True
    ) -> tuple[NeuronCarry, Float[Array, " b *n"]]:
        """Steps the neurons once under a current in nA; gives the carry and the spikes, 0 or 1 in the current's dtype.

        ``adapt=False`` keeps adaptation as it is, as one does when evaluating; neurons without any ignore it.

        Raises:
            ShapeError: where the current has another shape than the carry.
        """
        if current.shape != carry.voltage.shape:
            raise ShapeError(
                f"{type(self).__name__}: a current of shape {current.shape} for a carry of {carry.voltage.shape}"
            )
        refrac = jnp.maximum(carry.refrac - self.step_time, 0)
        ready = refrac == 0
        drive = self.net_current(carry, current.astype(carry.voltage.dtype))
        voltage = self.integrate(carry.voltage, jnp.where(ready, drive, 0))
        if self.refrac_lock:
            voltage = jnp.where(ready, voltage, carry.voltage)

        above = (voltage - self.threshold(carry)) / (self.resting_threshold - self.rest_v)
        spike = jnp.where(ready, self.surrogate(above), 0)
        if self.detach_reset:
            voltage = jnp.where(spike > 0, self.reset(voltage), voltage)
        else:
            voltage = (1 - spike) * voltage + spike * self.reset(voltage)
        carry = carry._replace(voltage=voltage, refrac=jnp.where(spike > 0, self.refrac_t, refrac), spike=spike)
        return self.adapt(carry) if adapt else carry, spike.astype(current.dtype)


@dataclass(frozen=True, kw_only=True)
class FixedThreshold(Neuron):
    """Fires at ``thresh_v`` and is reset to ``reset_v``, both in mV."""

    reset_v: float
    thresh_v: float

    def __post_init__(self):
        super().__post_init__()
        require_below(self, "rest_v", "thresh_v")
        require_below(self, "reset_v", "thresh_v")

    @property
    def resting_threshold(self) -> float:
        return self.thresh_v

    def reset(self, voltage: Float[Array, " b *n"]) -> float:
        return self.reset_v


@dataclass(frozen=True, kw_only=True)
class NonAdaptive(FixedThreshold):
    """A neuron that is its membrane alone, with ``time_constant`` in ms."""

    time_constant: float

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "time_constant")

    @property
    def tau(self) -> float:
        return self.time_constant
