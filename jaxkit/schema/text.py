"""The section of a frozen text encoder."""

from typing import Literal

from jaxkit.schema.section import Section


class TextEncoder(Section):
    """What ``input_ids`` are encoded by: a folder of transformers, on disk."""

    kind: Literal["clip", "clip_projection", "t5"]
    """``clip_projection`` has a pooled embedding too, aMUSEd's ``cond_embeds``."""
    folder: str
    penultimate: bool = False
    """The states before the last layer, as aMUSEd and Stable Diffusion XL take them."""
    mask_padding: bool = False
    """Whether nothing attends to padding; in open-muse and aMUSEd it is attended to."""
