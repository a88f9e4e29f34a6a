"""What the tasks over latents share: the autoencoder, and how images are sampled."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from jaxkit.schema.model import Pretrained
from jaxkit.schema.section import Count, Fraction, Misfit, NonNegative, Positive, Section

Counts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]


class AutoencoderKL(Section):
    """Stable Diffusion's autoencoder, ``2 ** (levels - 1)`` pixels a latent's side."""

    name: Literal["autoencoder_kl"] = "autoencoder_kl"
    in_channels: Count = 3
    block_out_channels: Counts = (128, 256, 512, 512)
    layers_per_block: Count = 2
    latent_channels: Count = 4
    norm_num_groups: Count = 32
    mid_block_add_attention: bool = True
    scaling_factor: Positive = 0.18215
    """Diffusion works on latents times this, of deviation about 1: the reciprocal of ``latent_deviation``."""
    pretrained: str | None = None
    """Folder of an AutoencoderKL, such as a pipeline's ``vae``, to start from. Read when a run begins, not again."""

    @model_validator(mode="after")
    def _divides(self):
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise Misfit({"norm_num_groups": f"{self.norm_num_groups} do not divide {channels} channels"})
        return self


class AutoencoderSource(Pretrained):
    """Where a frozen autoencoder comes from: a run of the task ``autoencoder``, as teachers come from theirs."""

    KINDS: ClassVar[tuple[type[Section], ...]] = (AutoencoderKL,)
    WANTED: ClassVar[str] = "autoencoder"

    cache: str = "runs/autoencoders"
    model: AutoencoderKL | None = None


class Sampler(Section):
    """How latents are sampled, and how far the text drives them."""

    method: Literal["ddim", "ddpm", "pndm", "euler", "dpmpp_2m"] = "ddim"
    steps: Count = 25
    eta: Fraction = 0.0
    """Of ``ddim``: the share of DDPM's noise."""
    karras: bool = False
    """Of ``euler`` and ``dpmpp_2m``: noise levels by Karras et al."""
    guidance_scale: NonNegative = 7.5
    """``g`` of ``u + g (c - u)``; 1 is without guidance, and takes half the time."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    guidance_rescale: Fraction = 0.0
    """Share of the result whose deviation is brought back to that with the text; 0.7 is of zero terminal SNR."""
