"""What the spiking tasks share: images to spikes over time."""

from collections.abc import Callable

from einops import rearrange, repeat

from jaxkit.errors import ConfigError
from jaxkit.schema.encodings import Current, Frames, Latency, Poisson
from jaxkit.spiking.encoders import HomogeneousPoissonEncoder, LatencyEncoder


def encoder(config: Frames | Poisson | Latency | Current, step_time: float) -> Callable:
    """Makes ``key, images [b h w c] -> spikes [t b n]`` of an ``encoding`` section; ``step_time`` in ms.

    Raises:
        ConfigError: for spikes more frequent than steps or dead times allow.
    """

    def flat(spikes):
        return rearrange(spikes, "t b ... -> t b (...)")

    match config:
        case Frames():
            return lambda key, images: rearrange(images, "b t w c -> t b (w c)")
        case Poisson():
            try:
                make = HomogeneousPoissonEncoder(config.steps, step_time, config.frequency, refrac=config.refrac)
            except ValueError as error:
                raise ConfigError(f"task.encoding: {error}") from None
            return lambda key, images: flat(make(key, images))
        case Latency():
            make = LatencyEncoder(config.steps, step_time, tc_membrane=config.tc_membrane, thresh=config.thresh)
            return lambda key, images: flat(make(key, images))
        case Current():
            return lambda key, images: flat(repeat(images, "b h w c -> t b h w c", t=config.steps))
