"""The ``task`` section of spiking classifiers trained by surrogate gradients."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from jaxkit.schema.encodings import ENCODINGS, mistimed
from jaxkit.schema.section import Count, Fraction, Misfit, NonNegative, Positive, Section, one_of


class Window(Section):
    """The width of a delay's window over training: falls from ``start`` to ``end`` by the same factor every step."""

    start: Positive
    """Steps of time."""
    end: Positive
    steps: Count
    """Of training; with ``optimizer.accumulate`` a step for each piece of a batch."""


class Delay(Section):
    """Delays of every synapse between layers, learned along with the weights."""

    longest: Positive
    """ms"""
    per: Literal["synapse", "input", "output"] = "synapse"
    interpolation: Literal["previous", "nearest", "linear", "gaussian", "triangle"] = "linear"
    """How a delay between two steps is read; ``gaussian`` and ``triangle`` read a window around it."""
    straight_through: bool = False
    """Whether spikes arrive at whole steps, as by ``previous``, and only the gradient is that of ``interpolation``."""
    window: Window | None = None
    learned: bool = True
    """Whether delays get a gradient; else they stay as drawn, uniform over the range, unless ``optimizer.weight_decay``
    takes them along: name them in ``no_decay``."""

    @model_validator(mode="after")
    def _fits(self):
        windowed = self.interpolation in ("gaussian", "triangle")
        if windowed != (self.window is not None):
            raise Misfit({"window": "is what interpolation 'gaussian' and 'triangle' need, and no other"})
        if self.learned and self.interpolation in ("previous", "nearest"):
            problem = f"{self.interpolation!r} has no gradient by a delay; choose linear, gaussian or triangle"
            raise Misfit({"interpolation": f"{problem}, with straight_through for whole steps, or learned: false"})
        if self.straight_through and not self.learned:
            raise Misfit({"straight_through": "is about learning, and learned is false"})
        return self


class Network(Section):
    """Layers of leaky integrate-and-fire neurons, and a readout that never spikes."""

    hidden: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]
    """Neurons of each layer."""
    step_time: Positive = 1.0
    """ms"""
    time_constant: Positive = 10.0
    """ms, of the membranes."""
    refractory: NonNegative = 0.0
    """ms"""
    readout_time_constant: Positive | None = 20.0
    """ms, of the readout's membranes, whose mean over time are the logits. None: the sum of
    their currents, which knows nothing of order."""
    delay: Delay | None = None
    batch_norm: bool = False
    """Whether the currents of hidden layers are normalised over time and batch."""
    gain: Positive = 1.0
    """Standard deviation of weights, times the square root of the inputs. A weight of 1 takes a neuron to threshold."""
    dropout_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of hidden neurons, the same ones over all of a sample's time."""
    surrogate: Literal["arctan", "fast_sigmoid", "sigmoid", "triangular", "boxcar", "gaussian", "straight_through"] = (
        "arctan"
    )
    execution: Literal["auto", "grouped", "future", "convolution"] = "auto"


class Spiking(Section):
    """Classification by a spiking network."""

    METRICS: ClassVar[dict[str, str]] = {"top1": "max", "top5": "max", "loss": "min", "rate": "max"}

    name: Literal["spiking"]
    encoding: one_of(ENCODINGS)
    network: Network
    label_smoothing: Fraction = 0.0

    def misfits(self, data: Section) -> dict[str, str]:
        """What of this section does not go with the config's ``data``, by dotted path."""
        problem = mistimed(self.encoding, self.network.step_time, data)
        return {"network.step_time": problem} if problem else {}


SECTION = Spiking
