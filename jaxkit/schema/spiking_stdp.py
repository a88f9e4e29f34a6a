"""The ``task`` section of unsupervised learning by spike timing."""

from typing import ClassVar, Literal

from pydantic import model_validator

from jaxkit.schema.encodings import ENCODINGS, mistimed
from jaxkit.schema.section import Count, Misfit, NonNegative, Positive, Section, one_of


class Excitatory(Section):
    """The neurons that learn: leaky, with a threshold that rises with every spike of theirs."""

    neurons: Count = 100
    drive: Positive = 60.0
    """Current, nA, that an input spike sends through a weight of 1."""
    rest_v: float = -65.0
    """mV, as all voltages"""
    reset_v: float = -60.0
    thresh_eq_v: float = -52.0
    refrac_t: NonNegative = 5.0
    """ms, as all times"""
    tc_membrane: Positive = 100.0
    tc_adaptation: Positive = 1e7
    spike_increment: NonNegative = 0.05
    """mV by which a spike raises the threshold."""

    @model_validator(mode="after")
    def _fits(self):
        return _below(self, "thresh_eq_v")


class Inhibitory(Section):
    """The neurons that each follow an excitatory one, and hold back all others."""

    rest_v: float = -60.0
    reset_v: float = -45.0
    thresh_v: float = -40.0
    refrac_t: NonNegative = 2.0
    time_constant: Positive = 75.0
    drive: Positive = 22.5
    """Current, nA, that its excitatory neuron's spikes send."""
    strength: Positive = 120.0
    """Current, nA, that its spikes take away from the other excitatory neurons."""

    @model_validator(mode="after")
    def _fits(self):
        return _below(self, "thresh_v")


def _below(neurons: Excitatory | Inhibitory, threshold: str) -> Excitatory | Inhibitory:
    limit = getattr(neurons, threshold)
    high = {name: getattr(neurons, name) for name in ("rest_v", "reset_v") if getattr(neurons, name) >= limit}
    if high:
        raise Misfit({name: f"must be below {threshold}, {limit} mV, got {value}" for name, value in high.items()})
    return neurons


class Stdp(Section):
    """Spike-timing-dependent plasticity, bounded by what is left to the greatest weight, and to 0."""

    lr_post: float = 0.01
    """At a spike behind a synapse."""
    lr_pre: float = -0.0001
    """At a spike before it."""
    tc_post: Positive = 20.0
    """ms"""
    tc_pre: Positive = 20.0
    max_weight: Positive = 1.0
    total_weight: Positive = 19.2
    """What each neuron's weights add up to before every batch."""


class SpikingStdp(Section):
    """Clusters images without their labels, which then name the neurons."""

    METRICS: ClassVar[dict[str, str]] = {"top1": "max", "rate": "max"}

    name: Literal["spiking_stdp"]
    encoding: one_of(ENCODINGS)
    step_time: Positive = 1.0
    """ms"""
    excitatory: Excitatory = Excitatory()
    inhibitory: Inhibitory = Inhibitory()
    stdp: Stdp = Stdp()
    decay: NonNegative = 0.02
    """How fast neurons' responses to a class are forgotten, per image of it."""

    def misfits(self, data: Section) -> dict[str, str]:
        """What of this section does not go with the config's ``data``, by dotted path."""
        problem = mistimed(self.encoding, self.step_time, data)
        return {"step_time": problem} if problem else {}


SECTION = SpikingStdp
