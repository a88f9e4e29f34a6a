"""The ``task`` section of latent diffusion from texts: UNet and text encoder are trained, the autoencoder is frozen."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from jaxkit.schema.diffusion import AutoencoderSource, Sampler
from jaxkit.schema.maskgit import Score
from jaxkit.schema.section import Fraction, Positive, Section, Strings

Keys = dict[str, Any]


class TextToImage(Section):
    """Stable Diffusion from scratch.

    ``unet``, ``text_encoder`` and ``scheduler`` have the keys of diffusers' and transformers' config.json files; sizes
    that follow from the data and from one another are filled in.
    """

    METRICS: ClassVar[dict[str, str]] = {"loss": "min"}

    name: Literal["text_to_image"]
    autoencoder: AutoencoderSource
    unet: Keys
    text_encoder: Keys
    scheduler: Keys = Field(default={"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
    dropout: Fraction = 0.1
    """Of texts that become empty, for guidance."""
    snr_gamma: Positive | None = None
    """Weighs time steps as Hang et al. do; 5 is theirs. None: all alike."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes again, to save memory."""
    sampler: Sampler = Sampler()
    prompts: Annotated[Strings, Field(min_length=1)] = ("",)
    """Of the samples drawn in training."""
    score: Score | None = None

    def misfits(self, data: Section) -> dict[str, str]:
        """Says what of this does not go with the ``data`` section, by key."""
        if data.normalize != "none":
            return {"name": f"{self.name} takes images in [0, 1]: leave data.normalize out"}
        if getattr(data, "captions", None) is None:
            return {"name": f"{self.name} needs texts: give data.captions"}
        return {}


SECTION = TextToImage
