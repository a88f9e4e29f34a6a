"""From files to batches: sources, decoding, the order of training, augmentation on the device."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from jaxkit.errors import UserError


class DataError(UserError, ValueError):
    """The data is not what the config promises; the message says what, where, and what to do."""


@runtime_checkable
class Examples(Protocol):
    """Random access: ``examples[i]`` is ``{"image": uint8 [h w c], "label": int32}``; float32 in [0, 1] from arrays."""

    def __len__(self) -> int:
        """Counts the examples."""

    def __getitem__(self, index: int) -> dict:
        """Reads one example; called from several threads at once."""


class Rows:
    """Some examples of a split."""

    def __init__(self, examples: Examples, places: range):
        self.examples, self.places = examples, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict:
        return self.examples[self.places[index]]


class Concept(NamedTuple):
    """The pictures of one concept, in memory; square, of one size."""

    pictures: UInt8[np.ndarray, "n r r 3"]
    masks: Float32[np.ndarray, "n r r"] | None
    """How much each pixel counts, in [0, 1]. None: all alike."""
    captions: tuple[str, ...] | None
    """One a picture."""
    names: tuple[str, ...]
    """Of the pictures, for messages."""


class Source(NamedTuple):
    """A training and a test split of labelled images, and what a model and a resumed run must know of them."""

    train: Examples
    test: Examples
    num_classes: int
    image_shape: tuple[int, int, int]
    fingerprint: str
    """Identity of the data: the same string, the same examples in the same places."""
    corrupt: Callable[[], dict[str, str]] = dict
    """The files skipped so far because they cannot be read, with the reason."""
    captions: Callable[[str], dict[str, np.ndarray]] | None = None
    """``text -> what the text adds to an example``, such as ``input_ids [t]``; ids are less than its ``vocabulary``.
    None: there are no captions."""
    concepts: tuple[Concept, ...] | None = None
    """What ``picture [c]`` of an example counts in, one number a concept. None: examples are images themselves."""


class ArrayExamples:
    """Images and labels that lie in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images = images
        self.labels = labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "label": self.labels[index]}
