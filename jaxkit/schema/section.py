"""What every section of a config shares, and the types they use."""

from functools import reduce
from operator import or_
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Strict, Tag

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


def _kind(value) -> str | None:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "tfds:<name>" if isinstance(name, str) and name.startswith("tfds:") else name


def one_of(kinds: dict[str, type[Section]]):
    """Makes the type of a section whose ``name`` chooses among ``kinds``; ``tfds:<name>`` is any name so prefixed."""
    if len(kinds) == 1:
        return next(iter(kinds.values()))
    return Annotated[reduce(or_, (Annotated[kind, Tag(name)] for name, kind in kinds.items())), Discriminator(_kind)]
