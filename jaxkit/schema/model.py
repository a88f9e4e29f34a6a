"""The sections that name a model and where its weights come from."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from jaxkit.models import MODELS, WITH_DROPOUT
from jaxkit.schema.section import Count, Section


class Model(Section):
    """A classifier by name."""

    name: str
    num_classes: Count | None = None
    """None: as many as the data has."""
    init: Literal["flax", "torch"] = "torch"
    """``torch``: its layers' own defaults, uniform in ± 1/sqrt(fan-in). ``flax``: linen's, truncated LeCun normal."""
    dropout_rate: Annotated[float, Field(ge=0, lt=1)] | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name):
        if name not in MODELS:
            raise ValueError(f"no model is named {name!r}; the models are {', '.join(MODELS)}")
        return name

    @model_validator(mode="after")
    def _has_dropout(self):
        if self.dropout_rate is not None and self.name not in WITH_DROPOUT:
            raise ValueError(f"{self.name} has no dropout; the models that do are {', '.join(WITH_DROPOUT)}")
        return self
