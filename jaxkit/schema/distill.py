"""The ``task`` section of a student taught by frozen teachers."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, Strict

from jaxkit.schema.losses import DISTILL_LOSSES
from jaxkit.schema.model import Model, Pretrained
from jaxkit.schema.section import Section, one_of


def _listed(value):
    return value if isinstance(value, (list, tuple)) else [value]


class Distill(Section):
    """Knowledge distillation."""

    METRICS: ClassVar[dict[str, str]] = {"top1": "max", "top5": "max", "loss": "min", "agreement": "max"}

    name: Literal["distill"]
    student: Model
    teacher: Annotated[tuple[Pretrained, ...], Strict(False), Field(min_length=1), BeforeValidator(_listed)]
    """One teacher, or a list whose logits are averaged."""
    loss: one_of(DISTILL_LOSSES)


SECTION = Distill
