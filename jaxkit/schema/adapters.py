"""The sections of adapters: what is trained beside a network that stays as it is."""

from typing import Annotated, Literal

from pydantic import Field

from jaxkit.schema.section import Count, Positive, Section

Target = Literal["attention", "query_key_value", "feed_forward"]


class LoRA(Section):
    """Changes of kernels that are products of two narrow matrices (Hu et al., ICLR 2022)."""

    name: Literal["lora"]
    rank: Count = 8
    alpha: Positive | None = None
    """The products are scaled by ``alpha / rank``. None: by 1."""
    targets: Annotated[tuple[Target, ...], Field(strict=False, min_length=1)] = ("attention", "feed_forward")
    """The layers; ``attention`` is ``query_key_value`` and the layer after them."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the adapters' inputs."""

    @property
    def scale(self) -> float:
        """What the products are scaled by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class StyleDrop(Section):
    """A bottleneck behind each layer's attention to the text (Sohn et al., NeurIPS 2023), of ``uvit``."""

    name: Literal["styledrop"]
    size: Count = 4
    """Of the bottleneck."""
    shared: bool = True
    """Whether all layers have one bottleneck in common, which each shifts by two vectors of its own."""


ADAPTERS = {"lora": LoRA, "styledrop": StyleDrop}
