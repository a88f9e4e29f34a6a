"""Leaky integrate-and-fire neurons: the membrane's equation is linear and solved exactly over a step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float

from jaxkit.spiking.checks import require_below
from jaxkit.spiking.neurons.adaptive import AdaptiveThreshold
from jaxkit.spiking.neurons.neuron import Neuron, NonAdaptive


@dataclass(frozen=True, kw_only=True)
class Leaky(Neuron):
    """A membrane that decays towards where the current holds it.

    ``V ← V_rest + (V - V_rest - R I) exp(-Δt/τ) + R I``, exact for a current that is constant over the step.

    Source: Gerstner et al., "Neuronal Dynamics", 2014, section 1.3.
    """

    def integrate(self, voltage: Float[Array, " b *n"], current: Float[Array, " b *n"]) -> Float[Array, " b *n"]:
        driven = self.resistance * current
        return self.rest_v + (voltage - self.rest_v - driven) * math.exp(-self.step_time / self.tau) + driven


@dataclass(frozen=True, kw_only=True)
class LIF(Leaky, NonAdaptive):
    """Leaky integrate-and-fire: a leak, a fixed threshold, a fixed reset.

    Args:
        reset_v: voltage after a spike, mV.
        thresh_v: threshold, mV.
        time_constant: of the membrane, ms.

    Source: Gerstner et al., "Neuronal Dynamics", 2014, section 1.3.
    """


@dataclass(frozen=True, kw_only=True)
class GLIF1(LIF):
    """The first of the generalised leaky integrate-and-fire neurons, which is :class:`LIF` itself.

    Source: Teeter et al., "Generalized leaky integrate-and-fire models...", Nature Communications 2018.
    """


@dataclass(frozen=True, kw_only=True)
class ALIF(Leaky, AdaptiveThreshold):
    """Adaptive leaky integrate-and-fire: each spike makes the next harder.

    Args:
        reset_v: voltage after a spike, mV.
        thresh_eq_v: threshold without adaptation, mV.
        tc_membrane: time constant of the membrane, ms.
        tc_adaptation: time constants of the adaptations, ms.
        spike_increment: what a spike adds to each adaptation, mV.

    Source: Bellec et al., "Long short-term memory and learning-to-learn in networks of spiking neurons", NeurIPS 2018.
    """

    adaptation_fields: ClassVar = ("tc_adaptation", "spike_increment")

    reset_v: float
    tc_adaptation: float | Sequence[float]

    def __post_init__(self):
        super().__post_init__()
        require_below(self, "reset_v", "thresh_eq_v")

    @property
    def adaptation_times(self) -> tuple[float, ...]:
        return self.tc_adaptation

    def reset(self, voltage: Float[Array, " b *n"]) -> float:
        return self.reset_v


@dataclass(frozen=True, kw_only=True)
class GLIF2(Leaky, AdaptiveThreshold):
    """The second of the generalised neurons: spikes raise the threshold, and the reset keeps some of the voltage.

    ``V ← V_rest + reset_v_mul (V - V_rest) - reset_v_add``; with 1 and ``thresh_eq_v - rest_v`` that is the reset by
    subtraction common in surrogate-gradient learning.

    Args:
        reset_v_add: what a spike takes from the voltage, mV.
        reset_v_mul: what a spike leaves of the distance from rest.
        thresh_eq_v: threshold without adaptation, mV.
        tc_membrane: time constant of the membrane, ms.
        rc_adaptation: rates at which adaptations decay, 1/ms.
        spike_increment: what a spike adds to each adaptation, mV.

    Source: Teeter et al., "Generalized leaky integrate-and-fire models...", Nature Communications 2018.
    """

    adaptation_fields: ClassVar = ("rc_adaptation", "spike_increment")

    reset_v_add: float
    reset_v_mul: float
    rc_adaptation: float | Sequence[float]

    @property
    def adaptation_times(self) -> tuple[float, ...]:
        return tuple(1 / rate for rate in self.rc_adaptation)

    def reset(self, voltage: Float[Array, " b *n"]) -> Float[Array, " b *n"]:
        return self.rest_v + self.reset_v_mul * (voltage - self.rest_v) - self.reset_v_add
