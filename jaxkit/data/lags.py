"""A task that only delays can solve: two channels each spike once, and the time between the two spikes is the class."""

import numpy as np

from jaxkit.data import ArrayExamples, Source
from jaxkit.schema.data import Lags


def open_lags(config: Lags) -> Source:
    """Makes images [t 2 1] whose rows are steps of time: channel 0 spikes at a random step, channel 1 later.

    Class ``k`` has its second spike ``(k + 1) gap`` steps after the first. A neuron that forgets faster than ``gap``
    steps never sees both, and a readout that adds up spikes over all time cannot tell when they came: without delays
    all classes look the same. Train and test have each start equally often in every class.
    """
    starts = config.steps - config.classes * config.gap - config.tail
    images = np.zeros((config.classes, starts, config.steps, 2, 1), np.uint8)
    for label in range(config.classes):
        for start in range(starts):
            images[label, start, start, 0] = 255
            images[label, start, start + (label + 1) * config.gap, 1] = 255
    labels = np.repeat(np.arange(config.classes, dtype=np.int32), starts)
    flat = images.reshape(-1, config.steps, 2, 1)
    rng = np.random.default_rng(0)
    held_out = np.isin(np.arange(len(flat)) % starts, rng.permutation(starts)[: max(1, starts // 4)])
    return Source(
        train=ArrayExamples(flat[~held_out], labels[~held_out]),
        test=ArrayExamples(flat[held_out], labels[held_out]),
        num_classes=config.classes,
        image_shape=flat.shape[1:],
        fingerprint=f"lags {config.classes} x {config.gap} in {config.steps} steps, tail {config.tail}",
    )
