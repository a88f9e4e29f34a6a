"""The ``task`` section of a student taught by frozen teachers."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Strict

from jaxkit.schema.losses import DISTILL_LOSSES
from jaxkit.schema.model import Model, Pretrained
from jaxkit.schema.section import Section, one_of


def _listed(value):
    if value in ([], ()):
        raise ValueError("name at least one teacher")
    return value if isinstance(value, (list, tuple)) else [value]


class Distill(Section):
    """Knowledge distillation."""

    METRICS: ClassVar[dict[str, str]] = {"top1": "max", "top5": "max", "loss": "min", "agreement": "max"}

    name: Literal["distill"]
    student: Model
    teacher: Annotated[tuple[Pretrained, ...], Strict(False), BeforeValidator(_listed)]
    """One teacher, or a list whose logits are averaged."""
    loss: one_of(DISTILL_LOSSES)


SECTION = Distill
