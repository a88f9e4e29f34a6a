"""How a spiking task turns images into spikes over time."""

from typing import Annotated, Literal

from pydantic import Field

from jaxkit.schema.section import Count, NonNegative, Positive, Section


class Frames(Section):
    """Takes an image's rows as steps of time, from the top, and their pixels as input: recorded events, say."""

    name: Literal["frames"]


class Poisson(Section):
    """Draws spikes at a rate in proportion to each pixel, with a dead time."""

    name: Literal["poisson"]
    steps: Count
    frequency: Positive
    """Hz, of a pixel of 1."""
    refrac: NonNegative | None = None
    """Dead time, ms. None: one step."""


class Latency(Section):
    """Lets each pixel spike once, the brighter the sooner; dark ones never."""

    name: Literal["latency"]
    steps: Count
    tc_membrane: Positive = 20.0
    """ms"""
    thresh: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The darkest pixel that spikes."""


class Current(Section):
    """Feeds each pixel as a constant current; the first neurons turn it into spikes."""

    name: Literal["current"]
    steps: Count


def mistimed(encoding: Section, step_time: float, data: Section) -> str | None:
    """What is wrong with a network's ``step_time``, if the frames that it takes for steps are of another length."""
    recorded = getattr(data, "step_time", step_time)
    if not isinstance(encoding, Frames) or recorded == step_time:
        return None
    return f"is {step_time} ms, and data.step_time, of frames that are its steps, {recorded} ms; give both one value"


ENCODINGS = {"frames": Frames, "poisson": Poisson, "latency": Latency, "current": Current}
