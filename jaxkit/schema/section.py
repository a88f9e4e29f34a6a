"""What every section of a config shares, and the types they use."""

from functools import reduce
from operator import or_
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Strict, Tag

# YAML has lists, a frozen config has tuples: only the container is converted, never its items.
Floats = Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Strict(False)]
Strings = Annotated[tuple[str, ...], Strict(False)]

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# what is counted on the device is counted in int32
Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrZero = Annotated[int, Field(ge=0, lt=2**31)]
# epochs and the time to train them: more than a million is a typing error
Epochs = Annotated[float, Field(gt=0, le=1e6)]


class Section(BaseModel):
    """A mapping of the config: typed, frozen, closed (an unknown key is an error)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Misfit(ValueError):
    """Values that are right in themselves do not go together: ``{dotted path of the one to change: what is wrong}``.

    Paths start at the section that raises it.
    """

    def __init__(self, problems: dict[str, str]):
        super().__init__("; ".join(f"{path}: {problem}" for path, problem in problems.items()))
        self.problems = problems


def kind_of(value) -> str | None:
    """The kind of section that a mapping names; all ``tfds:<name>`` are one."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "tfds:<name>" if isinstance(name, str) and name.startswith("tfds:") else name


def one_of(kinds: dict[str, type[Section]]):
    """Makes the type of a section whose ``name`` chooses among ``kinds``; ``tfds:<name>`` is any name so prefixed."""
    if len(kinds) == 1:
        return next(iter(kinds.values()))
    return Annotated[reduce(or_, (Annotated[kind, Tag(name)] for name, kind in kinds.items())), Discriminator(kind_of)]
