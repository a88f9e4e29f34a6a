"""Neurons whose membrane rises by itself above some voltage: quadratic and exponential, stepped by Euler's method."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkit.spiking.checks import require_below, require_positive
from jaxkit.spiking.neurons.adaptive import AdaptiveCurrent
from jaxkit.spiking.neurons.neuron import FixedThreshold, NonAdaptive

# keeps the exponential and its gradient finite in float32; a membrane that comes this far is above any threshold
MAX_EXPONENT = 80.0


@dataclass(frozen=True, kw_only=True)
class Quadratic(FixedThreshold):
    """``V ← V + Δt/τ (a (V - V_rest)(V - V_crit) + R I)``, with ``V_crit`` in mV and ``a`` the ``affinity``."""

    crit_v: float
    affinity: float

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "affinity")
        require_below(self, "rest_v", "crit_v")
        require_below(self, "crit_v", "thresh_v", or_equal=True)

    def integrate(self, voltage: Float[Array, " b *n"], current: Float[Array, " b *n"]) -> Float[Array, " b *n"]:
        drift = self.affinity * (voltage - self.rest_v) * (voltage - self.crit_v)
        return voltage + self.step_time / self.tau * (drift + self.resistance * current)


@dataclass(frozen=True, kw_only=True)
class Exponential(FixedThreshold):
    """``V ← V + Δt/τ (V_rest - V + Δ exp((V - V_T) / Δ) + R I)``, with ``V_T`` and ``Δ`` in mV."""

    rheobase_v: float
    sharpness: float

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "sharpness")
        require_below(self, "rest_v", "rheobase_v")
        require_below(self, "rheobase_v", "thresh_v", or_equal=True)

    def integrate(self, voltage: Float[Array, " b *n"], current: Float[Array, " b *n"]) -> Float[Array, " b *n"]:
        exponent = jnp.minimum((voltage - self.rheobase_v) / self.sharpness, MAX_EXPONENT)
        drift = self.rest_v - voltage + self.sharpness * jnp.exp(exponent)
        return voltage + self.step_time / self.tau * (drift + self.resistance * current)


@dataclass(frozen=True, kw_only=True)
class QIF(Quadratic, NonAdaptive):
    """Quadratic integrate-and-fire.

    Args:
        crit_v: voltage above which the membrane rises by itself, mV.
        affinity: how strongly the membrane is drawn to rest and away from ``crit_v``, 1/mV.
        reset_v: voltage after a spike, mV.
        thresh_v: threshold, mV.
        time_constant: of the membrane, ms.

    Source: Gerstner et al., "Neuronal Dynamics", 2014, eq. 5.16.
    """


@dataclass(frozen=True, kw_only=True)
class Izhikevich(Quadratic, AdaptiveCurrent):
    """Quadratic integrate-and-fire whose voltage and spikes drive an opposing current.

    Args:
        crit_v: voltage above which the membrane rises by itself, mV.
        affinity: how strongly the membrane is drawn to rest and away from ``crit_v``, 1/mV.
        reset_v: voltage after a spike, mV.
        thresh_v: threshold, mV.
        tc_membrane: time constant of the membrane, ms.
        tc_adaptation: time constants of the adaptations, ms.
        voltage_coupling: how much current a mV above rest drives in each, µS.
        spike_increment: what a spike adds to each, nA.

    Source: Izhikevich, "Simple Model of Spiking Neurons", IEEE Transactions on Neural Networks 2003.
    """


@dataclass(frozen=True, kw_only=True)
class EIF(Exponential, NonAdaptive):
    """Exponential integrate-and-fire.

    Args:
        rheobase_v: voltage about which the membrane begins to rise by itself, mV.
        sharpness: how sudden that rise is, mV.
        reset_v: voltage after a spike, mV.
        thresh_v: threshold, mV.
        time_constant: of the membrane, ms.

    Source: Fourcaud-Trocmé et al., "How Spike Generation Mechanisms Determine the Neuronal Response to Fluctuating
    Inputs", Journal of Neuroscience 2003.
    """


@dataclass(frozen=True, kw_only=True)
class AdEx(Exponential, AdaptiveCurrent):
    """Adaptive exponential integrate-and-fire: voltage and spikes drive an opposing current.

    Args:
        rheobase_v: voltage about which the membrane begins to rise by itself, mV.
        sharpness: how sudden that rise is, mV.
        reset_v: voltage after a spike, mV.
        thresh_v: threshold, mV.
        tc_membrane: time constant of the membrane, ms.
        tc_adaptation: time constants of the adaptations, ms.
        voltage_coupling: how much current a mV above rest drives in each, µS.
        spike_increment: what a spike adds to each, nA.

    Source: Brette and Gerstner, "Adaptive Exponential Integrate-and-Fire Model", Journal of Neurophysiology 2005.
    """
