"""The ``task`` section of a classifier trained on labels."""

from typing import ClassVar, Literal

from pydantic import model_validator

from jaxkit.models import AUXILIARY
from jaxkit.schema.losses import CLASSIFY_LOSSES, CrossEntropy
from jaxkit.schema.model import Model
from jaxkit.schema.section import Misfit, NonNegative, Section, one_of


class Classify(Section):
    """Image classification."""

    METRICS: ClassVar[dict[str, str]] = {"top1": "max", "top5": "max", "loss": "min"}

    name: Literal["classify"]
    model: Model
    loss: one_of(CLASSIFY_LOSSES) = CrossEntropy(name="cross_entropy")
    aux_weight: NonNegative | None = None
    """What the loss of each auxiliary head counts. None: torchvision's, 0.3 for GoogLeNet and 0.4 for Inception."""

    @model_validator(mode="after")
    def _has_auxiliary_heads(self):
        if self.aux_weight is not None and self.model.name not in AUXILIARY:
            problem = f"{self.model.name} has no auxiliary heads; the models that do are {', '.join(AUXILIARY)}"
            raise Misfit({"aux_weight": problem})
        return self


SECTION = Classify
