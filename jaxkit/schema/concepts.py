"""The ``data`` sections of textual inversion: a few pictures of each of several concepts, held in memory."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from jaxkit.schema.data import Data, Digit
from jaxkit.schema.section import Count, CountOrZero, Misfit, Strings

Side = Annotated[int, Field(ge=8, multiple_of=8, lt=2**31)]
"""Pixels, which an autoencoder divides by 8."""


def _color(value: Any) -> Any:
    """Of two kinds of colour each would say why it is not the other."""
    if isinstance(value, str) and re.fullmatch("#?[0-9a-fA-F]{6}", value):
        return value
    numbers = isinstance(value, list | tuple) and all(isinstance(part, float | int) for part in value)
    if numbers and len(value) == 3 and min(value) >= 0 and max(value) <= 1:
        return value
    raise ValueError(f"must be a colour, as '#ffffff' in quotes or red, green and blue in [0, 1], got {value!r}")


Color = Annotated[str | Annotated[tuple[float, float, float], Field(strict=False)], BeforeValidator(_color)]


class ConceptData(Data):
    """What they share: an example is one picture of every concept."""

    eval_batch_size: Count = 4
    """Of pictures as large as these many more would not be held."""
    repeats: Count = 100
    """An epoch is each picture so many times; of the concept of most pictures, where they differ."""
    augment: Literal["none"] = "none"
    normalize: Literal["none"] = "none"


class Concepts(ConceptData):
    """A folder of pictures for each concept, cut to squares of one size."""

    name: Literal["concepts"]
    roots: Annotated[Strings, Field(min_length=1)]
    recursive: bool = False
    """Whether folders within are read too."""
    image_size: Side = 512
    fit: Literal["squash", "center", "random", "pad"] = "center"
    """``squash`` changes the aspect, ``pad`` surrounds with the background; others crop the largest square."""
    crops: Count = 1
    """Of ``random``: how many of each picture, drawn once for this ``crop_seed``."""
    crop_seed: CountOrZero = 0
    background: Color = "#ffffff"
    """What is seen through transparent pixels."""
    captions: bool = False
    """Whether the text of a picture is in the .txt of its name; ``{}`` in it stands for the word."""
    masks: bool = False
    """Whether ``<name>_mask.png`` or ``<name>-masklabel.png`` says what counts of a picture: white does, black not."""
    on_corrupt: Literal["stop", "skip"] = "stop"
    """An unreadable picture ends the run, or is left out."""

    @property
    def concepts(self) -> int:
        """Counts them."""
        return len(self.roots)

    @model_validator(mode="after")
    def _fits(self):
        if self.crops > 1 and self.fit != "random":
            raise Misfit({"crops": f"{self.crops} crops of fit: {self.fit} would be the same; set fit: random"})
        return self


class DigitConcepts(ConceptData):
    """The first training images of some of scikit-learn's handwritten digits, as ``digits`` splits them, in grey."""

    name: Literal["digit_concepts"]
    digits: Annotated[tuple[Digit, ...], Field(strict=False, min_length=1)]
    pictures: Count = 8
    """Of each."""
    image_size: Side = 16
    """Bilinear."""

    @property
    def concepts(self) -> int:
        """Counts them."""
        return len(self.digits)
