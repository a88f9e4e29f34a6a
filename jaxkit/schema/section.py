"""What every section of a config shares, and the types they use."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

# YAML has lists, a frozen config has tuples: only the container is converted, never its items.
Floats = Annotated[tuple[float, ...], Strict(False)]
Integers = Annotated[tuple[int, ...], Strict(False)]
Strings = Annotated[tuple[str, ...], Strict(False)]

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A mapping of the config: typed, frozen, closed (an unknown key is an error)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
