"""The ``task`` section of a tokenizer of images: an autoencoder around a codebook."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from jaxkit.schema.model import Judge, Pretrained
from jaxkit.schema.section import Count, CountOrZero, Fraction, Misfit, NonNegative, Positive, Section, Strings, one_of

Counts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]


class Codebook(Section):
    """What every tokenizer has beside its network: how its codebook learns, and weights to start from."""

    codebook_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Codes are moving averages of their latents, such as 0.99. None: they are learned by the loss."""
    revive_below: Fraction = 0.0
    """A code used less than this share of the average is put where a latent of the batch lies."""
    pretrained: str | None = None
    """Folder with weights of either framework to start from. Read when a run begins, and not again."""

    @model_validator(mode="after")
    def _goes_together(self):
        if self.revive_below and self.codebook_decay is None:
            raise Misfit({"revive_below": "is of a codebook of moving averages: give codebook_decay too"})
        return self


class VQGAN(Codebook):
    """Taming's tokenizer, ``2 ** (levels - 1)`` pixels a token's side."""

    name: Literal["vqgan"]
    resolution: Count
    """Side of the images, which says on which levels a side is one of ``attn_resolutions``."""
    num_channels: Count = 3
    hidden_channels: Count = 128
    channel_mult: Counts = (1, 1, 2, 2, 4)
    num_res_blocks: Count = 2
    attn_resolutions: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    no_attn_mid_block: bool = False
    z_channels: Count = 256
    num_embeddings: Count = 1024
    quantized_embed_dim: Count = 256
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    norm_num_groups: Count = 32


class MoVQ(VQGAN):
    """The same with a decoder whose norms are modulated by the codes."""

    name: Literal["movq"]


class MaskGitVQGAN(Codebook):
    """Google's tokenizer; channels are multiples of 32."""

    name: Literal["maskgit_vqgan"]
    num_channels: Count = 3
    hidden_channels: Count = 128
    channel_mult: Counts = (1, 1, 2, 2, 4)
    num_res_blocks: Count = 2
    z_channels: Count = 256
    num_embeddings: Count = 1024
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class PaellaVQ(Codebook):
    """Paella's tokenizer, of images of three channels."""

    name: Literal["paella_vq"]
    levels: Count = 2
    bottleneck_blocks: Count = 12
    c_hidden: Count = 384
    c_latent: Count = 4
    codebook_size: Count = 8192


MODELS = {"vqgan": VQGAN, "movq": MoVQ, "maskgit_vqgan": MaskGitVQGAN, "paella_vq": PaellaVQ}


class TokenizerSource(Pretrained):
    """Where a frozen tokenizer comes from: a run of the task ``tokenizer``, as teachers come from theirs; or a folder.

    Weights of open-muse, diffusers or Google are those of ``model.pretrained``, of a model whose sizes are given.
    """

    KINDS: ClassVar[tuple[type[Section], ...]] = tuple(MODELS.values())
    WANTED: ClassVar[str] = "tokenizer"
    PUBLISHED: ClassVar[bool] = True

    cache: str = "runs/tokenizers"
    model: one_of(MODELS) | None = None


class Entropy(Section):
    """Makes latents sure of their code and all codes used alike."""

    weight: Positive = 0.1
    temperature: Positive = 0.01


class Perceptual(Section):
    """The squared distance of a frozen classifier's features, each position's of length 1."""

    classifier: Judge
    features: Strings
    """Such as stage1, stage2."""
    weight: Positive = 1.0


class Adversarial(Section):
    """A discriminator of patches, and what its opinion counts."""

    loss: Literal["hinge", "non_saturating"] = "hinge"
    weight: Positive = 0.1
    adaptive: bool = True
    """Times the ratio of both losses' gradients at the decoder's last layer (VQGAN, equation 7)."""
    start: CountOrZero = 0
    """Updates of the tokenizer before it counts, and before the discriminator learns; those of a run that it goes on
    from are among them, also with a fresh schedule. Counted in the pieces of ``optimizer.accumulate``."""
    r1: NonNegative = 0.0
    """Weight of the squared gradient of real images' logits."""
    channels: Count = 64
    layers: Count = 3


class Tokenizer(Section):
    """Trains a tokenizer to give back its images."""

    METRICS: ClassVar[dict[str, str]] = {"mse": "min", "l1": "min", "psnr": "max"}

    name: Literal["tokenizer"]
    model: one_of(MODELS)
    l1: NonNegative = 1.0
    """Weight of the absolute differences."""
    l2: NonNegative = 0.0
    """Weight of the squared differences."""
    commitment: NonNegative = 0.25
    """Weight that draws latents to their codes; of a learned codebook's own term it is 1."""
    parity: Literal["paper", "open-muse"] = "paper"
    """``open-muse``: the weight of ``commitment`` is on the codebook's term, by mistake."""
    entropy: Entropy | None = None
    perceptual: Perceptual | None = None
    adversarial: Adversarial | None = None

    @model_validator(mode="after")
    def _goes_together(self):
        if self.l1 == self.l2 == 0:
            raise Misfit({"l1": "is 0, and so is l2: nothing would be reconstructed"})
        if self.parity == "open-muse" and self.model.codebook_decay is not None:
            raise Misfit({"parity": "is about a learned codebook; with moving averages there is no such term"})
        return self

    def misfits(self, data: Section) -> dict[str, str]:
        """Says what of this does not go with the ``data`` section, by key."""
        return (
            {}
            if data.normalize == "none"
            else {"name": f"{self.name} takes images in [0, 1]: leave data.normalize out"}
        )


SECTION = Tokenizer
