"""Recordings of event cameras and silicon cochleas, from files the user has -> dense frames over time."""

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxkit.data import DataError, Source


class Events(NamedTuple):
    """What happened when and where."""

    times: Float[np.ndarray, " n"]
    """ms, from the beginning of the recording"""
    addresses: Int[np.ndarray, "n a"]
    """Where in ``shape``, one column an axis."""
    shape: tuple[int, ...]
    """Of the sensor: (h, w, 2), the polarity last, 1 for brighter; or (units,)."""


@dataclass(frozen=True)
class Binning:
    """How events become frames.

    Args:
        step_time: ms, of a frame.
        duration: ms, of all frames; what comes later is left out, and missing time is silent.
        downsample: how many neighbours along each axis of the sensor are put together; 1 for an axis not named.

    Raises:
        ValueError: if a number is not positive.
    """

    step_time: float
    duration: float
    downsample: tuple[int, ...] = ()

    def __post_init__(self):
        if min(self.step_time, self.duration, *self.downsample) <= 0:
            raise ValueError(f"step_time, duration and downsample must be positive, got {self}")

    @property
    def steps(self) -> int:
        """How many frames there are; the last may be longer than the duration."""
        # rounded first: 2.1 / 0.3 is a little more than 7
        return int(np.ceil(round(self.duration / self.step_time, 6)))

    def shape(self, sensor: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a frame.

        Raises :class:`DataError` if ``downsample`` does not divide the sensor.
        """
        factors = self.downsample + (1,) * (len(sensor) - len(self.downsample))
        if len(factors) > len(sensor) or any(size % factor for size, factor in zip(sensor, factors, strict=True)):
            raise DataError(f"downsample {self.downsample} does not divide a sensor of shape {sensor}")
        return tuple(size // factor for size, factor in zip(sensor, factors, strict=True))


def bin_events(events: Events, binning: Binning) -> Float[np.ndarray, "{binning.steps} ..."]:
    """Counts the events of each step and place: frames [t *shape].

    An event at ``k * step_time`` belongs to frame ``k``. Counts may exceed 1; ``np.minimum(frames, 1)`` are spikes.

    Raises:
        DataError: if ``binning.downsample`` does not divide the sensor.
    """
    shape = (binning.steps, *binning.shape(events.shape))
    # times in ms are rounded: 0.3 ms / 0.1 ms would be frame 2
    frame = np.floor(events.times / binning.step_time + 1e-6)
    inside = (frame >= 0) & (frame < binning.steps)
    factors = np.array(events.shape) // shape[1:]
    index = (frame[inside].astype(np.int64), *(events.addresses[inside] // factors).T)
    counts = np.bincount(np.ravel_multi_index(index, shape), minlength=int(np.prod(shape)))
    return counts.reshape(shape).astype(np.float32)


class EventExamples:
    """Reads and bins recordings on access: ``{"image": float32 [t *n], "label": int32}``.

    Args:
        read: index -> events; called from several threads at once.
        labels: of all recordings.
        binning: how events become frames.
    """

    def __init__(self, read: Callable[[int], Events], labels: Int[np.ndarray, " n"] | list[int], binning: Binning):
        self.read, self.labels, self.binning = read, np.asarray(labels, np.int32), binning

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"image": bin_events(self.read(index), self.binning), "label": self.labels[index]}


def make_source(
    name: str, train: EventExamples, test: EventExamples, num_classes: int, sensor: tuple[int, ...], files: list[Path]
) -> Source:
    """Puts two splits together; ``image_shape`` is that of all frames [t *n]. ``files`` tell the data from other data.

    Raises :class:`DataError` if a split is empty, or the binning does not fit the sensor.
    """
    for split, examples in (("train", train), ("test", test)):
        if not len(examples):
            raise DataError(f"{name} has no recordings to {split} on")
    binning = train.binning
    digest = hashlib.sha256(repr(binning).encode())
    for path in files:
        digest.update(os.fsencode(f"{path.name}\0{path.stat().st_size}\n"))
    for examples in (train, test):
        digest.update(examples.labels.tobytes())
    fingerprint = f"{name} {len(train)} + {len(test)} recordings, sha256 {digest.hexdigest()[:16]}"
    return Source(train, test, num_classes, (binning.steps, *binning.shape(sensor)), fingerprint)


class Images:
    """Frames [t *n] as images [t n 1], whose rows are steps of time."""

    def __init__(self, examples: EventExamples):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict:
        example = self.examples[index]
        return {**example, "image": example["image"].reshape(len(example["image"]), -1, 1)}


def as_images(source: Source) -> Source:
    """The same recordings in the shape the training loop takes, [t n 1]."""
    t, *frame = source.image_shape
    return source._replace(train=Images(source.train), test=Images(source.test), image_shape=(t, math.prod(frame), 1))


def read_bytes(path: Path) -> bytes:
    """Reads a whole file.

    Raises :class:`DataError` if it cannot be opened.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}") from error


def check_addresses(path: Path, addresses: Int[np.ndarray, "n a"], shape: tuple[int, ...]) -> None:
    """Raises :class:`DataError` if an event lies outside the sensor."""
    outside = ((addresses < 0) | (addresses >= np.array(shape))).any(1)
    if outside.any():
        first = int(np.argmax(outside))
        raise DataError(
            f"{path}: event {first} of {len(addresses)} lies at {addresses[first].tolist()}, outside a sensor of shape "
            f"{shape}; the file is damaged or of another sensor"
        )
