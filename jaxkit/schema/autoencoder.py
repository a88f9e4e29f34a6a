"""The ``task`` section of an autoencoder whose latents are near a normal distribution."""

from typing import ClassVar, Literal

from pydantic import model_validator

from jaxkit.schema.diffusion import AutoencoderKL
from jaxkit.schema.section import Misfit, NonNegative, Section


class Autoencoder(Section):
    """Trains the autoencoder of latent diffusion to give back its images."""

    METRICS: ClassVar[dict[str, str]] = {"mse": "min", "psnr": "max"}

    name: Literal["autoencoder"]
    model: AutoencoderKL
    l1: NonNegative = 1.0
    """Weight of the absolute differences."""
    l2: NonNegative = 0.0
    """Weight of the squared differences."""
    kl: NonNegative = 1.0e-6
    """Weight of the divergence of latents from the normal distribution."""

    @model_validator(mode="after")
    def _reconstructs(self):
        if self.l1 == self.l2 == 0:
            raise Misfit({"l1": "is 0, and so is l2: nothing would be reconstructed"})
        return self

    def misfits(self, data: Section) -> dict[str, str]:
        """Says what of this does not go with the ``data`` section, by key."""
        return (
            {}
            if data.normalize == "none"
            else {"name": f"{self.name} takes images in [0, 1]: leave data.normalize out"}
        )


SECTION = Autoencoder
