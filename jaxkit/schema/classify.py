"""The ``task`` section of a classifier trained on labels."""

from typing import ClassVar, Literal

from jaxkit.schema.losses import CLASSIFY_LOSSES, CrossEntropy
from jaxkit.schema.model import Model
from jaxkit.schema.section import Section, one_of


class Classify(Section):
    """Image classification."""

    METRICS: ClassVar[dict[str, str]] = {"top1": "max", "top5": "max", "loss": "min"}

    name: Literal["classify"]
    model: Model
    loss: one_of(CLASSIFY_LOSSES) = CrossEntropy(name="cross_entropy")


SECTION = Classify
