"""Adaptation to a neuron's own spikes and voltage: of its threshold, or of the current it receives.

A neuron has ``k`` adaptations, each with a time constant. The batch shares them by default: after each step they are
reduced over it, and over the devices of ``axis_name``, to ``[*n k]``.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxkit.spiking.checks import as_tuple, require_below, require_positive
from jaxkit.spiking.neurons.neuron import FixedThreshold, Neuron, NeuronCarry

REDUCTIONS = {
    "mean": (jnp.mean, jax.lax.pmean),
    "sum": (jnp.sum, jax.lax.psum),
    "max": (jnp.max, jax.lax.pmax),
    "min": (jnp.min, jax.lax.pmin),
}


@dataclass(frozen=True, kw_only=True)
class Adaptive(Neuron):
    """A neuron that adapts; scalars and tuples of one are shared by all ``k`` adaptations.

    Args:
        tc_membrane: time constant of the membrane, ms.
        spike_increment: what a spike adds to each adaptation, in its unit.
        batch_reduction: how adaptations of a batch become one: mean, sum, max, min; or none, each sample its own.
            The reduction is of the adaptations themselves, so a sum multiplies them by the batch at every step.
        axis_name: the mapped axis (of ``pmap``, ``vmap``, ``shard_map``) whose devices share the batch.

    Raises:
        ValueError: for tuples of different lengths, an unknown reduction, and an axis with nothing to reduce over it.
    """

    # those with a constant for each adaptation; the first is a time or a rate
    adaptation_fields: ClassVar[tuple[str, ...]]

    tc_membrane: float
    spike_increment: float | Sequence[float]
    batch_reduction: str = "mean"
    axis_name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        values = {name: as_tuple(getattr(self, name)) for name in self.adaptation_fields}
        k = max(map(len, values.values()))
        if any(len(value) not in (1, k) for value in values.values()) or not all(values.values()):
            counts = ", ".join(f"{name} {len(value)}" for name, value in values.items())
            raise ValueError(f"{type(self).__name__}: adaptations need as many constants of each kind, got {counts}")
        for name, value in values.items():
            object.__setattr__(self, name, value * (k // len(value)))
        require_positive(self, "tc_membrane", self.adaptation_fields[0])
        if self.batch_reduction not in (*REDUCTIONS, "none"):
            known = ", ".join((*REDUCTIONS, "none"))
            raise ValueError(
                f"{type(self).__name__}: batch_reduction must be one of {known}, got {self.batch_reduction!r}"
            )
        if self.axis_name is not None and self.batch_reduction == "none":
            raise ValueError(f"{type(self).__name__}: axis_name has nothing to reduce where batch_reduction is none")

    @property
    def tau(self) -> float:
        return self.tc_membrane

    @abstractmethod
    def relax(self, adaptation: Float[Array, "*bnk"], voltage: Float[Array, " b *n"]) -> Float[Array, "*bnk"]:
        """Moves adaptations by one step without a spike."""

    def initialize_carry(self, batch: int, dtype: DTypeLike = jnp.float32) -> NeuronCarry:
        samples = (batch,) if self.batch_reduction == "none" else ()
        adaptation = jnp.zeros((*samples, *self.shape, len(self.spike_increment)), dtype)
        return super().initialize_carry(batch, dtype)._replace(adaptation=adaptation)

    def adapt(self, carry: NeuronCarry) -> NeuronCarry:
        adaptation = self.relax(carry.adaptation, carry.voltage)
        if self.refrac_lock:
            # the refractory period of a spike has begun by now: its adaptation stands still on this step too
            adaptation = jnp.where(carry.refrac[..., None] > 0, carry.adaptation, adaptation)
        adaptation += jnp.asarray(self.spike_increment, adaptation.dtype) * carry.spike[..., None]
        return carry._replace(adaptation=self._reduce(adaptation))

    def _reduce(self, adaptation: Float[Array, "b *n k"]) -> Float[Array, "*bnk"]:
        if self.batch_reduction == "none":
            return adaptation
        over_batch, over_devices = REDUCTIONS[self.batch_reduction]
        reduced = over_batch(adaptation, axis=0)
        return reduced if self.axis_name is None else over_devices(reduced, self.axis_name)


@dataclass(frozen=True, kw_only=True)
class AdaptiveThreshold(Adaptive):
    """Spikes raise the threshold, which falls back exponentially: ``θ = θ∞ + Σ_k a_k``.

    ``a_k ← a_k exp(-Δt/τ_k) + spike_increment_k · spike``.
    """

    thresh_eq_v: float

    def __post_init__(self):
        super().__post_init__()
        require_below(self, "rest_v", "thresh_eq_v")

    @property
    def resting_threshold(self) -> float:
        return self.thresh_eq_v

    @property
    @abstractmethod
    def adaptation_times(self) -> tuple[float, ...]:
        """The time constants ``τ_k``, ms."""

    def threshold(self, carry: NeuronCarry) -> Float[Array, "*bn"]:
        return self.thresh_eq_v + carry.adaptation.sum(-1)

    def relax(self, adaptation: Float[Array, "*bnk"], voltage: Float[Array, " b *n"]) -> Float[Array, "*bnk"]:
        return adaptation * jnp.exp(-self.step_time / jnp.asarray(self.adaptation_times, adaptation.dtype))


@dataclass(frozen=True, kw_only=True)
class AdaptiveCurrent(Adaptive, FixedThreshold):
    """Voltage and spikes drive currents ``w_k`` that are taken from the input: ``I - Σ_k w_k``.

    ``w_k ← w_k + Δt/τ_k (a_k (V - V_rest) - w_k) + spike_increment_k · spike``, with the voltage after the reset.

    Args:
        tc_adaptation: time constants ``τ_k``, ms.
        voltage_coupling: ``a_k``, µS.
    """

    adaptation_fields: ClassVar = ("tc_adaptation", "voltage_coupling", "spike_increment")

    tc_adaptation: float | Sequence[float]
    voltage_coupling: float | Sequence[float]

    def net_current(self, carry: NeuronCarry, current: Float[Array, " b *n"]) -> Float[Array, " b *n"]:
        return current - carry.adaptation.sum(-1)

    def relax(self, adaptation: Float[Array, "*bnk"], voltage: Float[Array, " b *n"]) -> Float[Array, "b *n k"]:
        coupling = jnp.asarray(self.voltage_coupling, adaptation.dtype)
        steps = self.step_time / jnp.asarray(self.tc_adaptation, adaptation.dtype)
        return adaptation + steps * (coupling * (voltage - self.rest_v)[..., None] - adaptation)
