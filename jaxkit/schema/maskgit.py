"""The ``task`` section of a transformer that predicts the masked tokens of an image."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from jaxkit.schema.adapters import ADAPTERS
from jaxkit.schema.model import Judge
from jaxkit.schema.section import Count, Fraction, Misfit, NonNegative, Positive, Section, Strings, one_of
from jaxkit.schema.text import TextEncoder
from jaxkit.schema.tokenizer import TokenizerSource

Rate = Annotated[float, Field(ge=0, lt=1)]
Ratios = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(strict=False, min_length=1)]
Pair = Annotated[tuple[NonNegative, NonNegative], Field(strict=False)]


class MaskGitTransformer(Section):
    """open-muse's transformer; Google's sizes for ImageNet are 24 layers of 768, 16 heads."""

    name: Literal["maskgit_transformer"]
    hidden_size: Count = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    intermediate_size: Count = 3072
    hidden_dropout: Rate = 0.1
    attention_dropout: Rate = 0.1
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    layer_norm_eps: Positive = 1e-5
    use_normformer: bool = True
    use_encoder_layernorm: bool = True
    use_mlm_layer: bool = True
    use_mlm_layernorm: bool = True
    use_bias: bool = False
    initializer_range: Positive = 0.02
    use_conv_in_out: bool = False
    patch_size: Count = 1
    """With ``use_conv_in_out``: tokens of a patch's side that the layers see as one."""
    use_codebook_size_for_output: bool = False
    encoder_hidden_size: Count | None = None
    """Width of a text's states. None: ``hidden_size``, which captions without an encoder have."""
    project_encoder_hidden_states: bool = False
    vocab_size: Count | None = None
    """Codes, classes and the mask token. None: as many as there are."""
    max_position_embeddings: Count | None = None
    """Places that are told apart. None: the tokens of an image, and its class."""
    remat: bool = False
    """Computes activations again in the backward pass, for memory."""
    attention: Literal["xla", "cudnn"] | None = None
    """Kernel of the attention; ``cudnn`` is flash attention, on GPUs, in half precision."""
    pretrained: str | None = None
    """Folder with weights of either framework to start from. Read when a run begins, and not again."""


class UViT(Section):
    """MaskGiT-UViT, aMUSEd's network: of texts with pooled states, and of micro-conditions."""

    name: Literal["uvit"]
    hidden_size: Count = 1024
    num_hidden_layers: Count = 22
    num_attention_heads: Count = 16
    intermediate_size: Count = 2816
    in_channels: Count = 768
    block_out_channels: Annotated[tuple[Count, ...], Field(strict=False, min_length=1, max_length=1)] = (768,)
    num_res_blocks: Count = 3
    block_num_heads: Count = 12
    encoder_hidden_size: Count = 768
    cond_embed_dim: Count = 768
    force_down_up_sample: bool = False
    """Half the grid between the blocks, for 512 pixels."""
    hidden_dropout: Rate = 0.0
    attention_dropout: Rate = 0.0
    use_bias: bool = False
    vocab_size: Count | None = None
    remat: bool = False
    attention: Literal["xla", "cudnn"] | None = None
    pretrained: str | None = None


MODELS = {"maskgit_transformer": MaskGitTransformer, "uvit": UViT}


class Unconditional(Section):
    """Images of any kind."""

    name: Literal["none"]


class Labels(Section):
    """The class of each image, as a token before its own."""

    name: Literal["class"]
    dropout: Fraction = 0.0
    """Probability of an image to lose its class, which guidance needs."""
    parity: Literal["open-muse"] | None = None
    """``open-muse``: the probability of an image to keep it, by mistake."""


class Text(Section):
    """The caption of each image, of data that has some."""

    name: Literal["text"]
    encoder: TextEncoder | None = None
    """A frozen one. None: embeddings of the captions' tokens, and of their places, are learned with the network."""
    dropout: Fraction = 0.0
    """Probability of an image to have the empty caption in the place of its own."""
    parity: Literal["open-muse"] | None = None
    """``open-muse``: the probability of an image to keep it, by mistake."""
    prompts: Strings = ()
    """What is drawn at every evaluation, in turn; none: images of the empty caption."""


CONDITIONS = {"none": Unconditional, "class": Labels, "text": Text}


class MaskSchedule(Section):
    """The share of masked tokens of a time in [0, 1]."""

    name: str = "cosine"
    """cosine, linear, pow2 (any exponent), sigmoid, log, exp, arccos, square, root."""
    constants: dict[str, float] = Field(default_factory=dict)
    """Of ``sigmoid`` (start, end, tau), ``log`` and ``exp`` (tokens), ``pow`` (exponent)."""


class Masking(Section):
    """How tokens are masked in training, and what the loss is of."""

    schedule: MaskSchedule = MaskSchedule()
    min_rate: Fraction = 0.0
    rectangle_probability: Fraction = 0.0
    """Of a batch to have a rectangle masked in each image, and not places at random."""
    noise: Literal["mask", "random_replace"] = "mask"
    predict_all: bool = False
    """The loss is of tokens not masked too, which weigh less."""
    eval_ratios: Ratios | None = None
    """Shares to choose from in evaluation, in the place of the schedule's."""
    metric_ratios: Ratios | None = None
    """Shares at each of which evaluation has a loss and an accuracy of every image too, such as ``loss_ratio_0.5``; a
    call of the network each."""


class SoftCode(Section):
    """Targets that are distributions over near codes, in the place of single ones."""

    temperature: Positive = 1.0
    stochastic: bool = False
    """Whether the tokens seen are drawn from them too."""


class Guidance(Section):
    """How far samples are driven from those without a condition."""

    strength: NonNegative
    schedule: Literal["constant", "linear", "cosine", "power_cosine"] = "constant"
    power: Positive | None = None
    convention: Literal["scale", "weight"] = "scale"
    adapter: NonNegative | None = None
    """How far from those of the network without its adapter, StyleDrop's λ_A; ``strength`` is then λ_B as a weight, or
    1 + λ_B as a scale. None: guidance is of the network with its adapter alone."""


class Sampler(Section):
    """How samples are decoded."""

    method: Literal["maskgit", "lucidrains", "halton", "predict_all", "random_replace"] = "maskgit"
    steps: Count = 12
    schedule: MaskSchedule = MaskSchedule()
    token_temperature: NonNegative | Pair = 1.0
    """A number, or the first and the last step's."""
    choice_temperature: NonNegative | Pair | None = None
    """Of ``maskgit`` and ``lucidrains``. A number t falls to 0 as t (1 - step / steps), Google's way."""
    guidance: Guidance | None = None
    top_k: Positive | None = None
    top_p: Positive | None = None
    rolled: bool = False


class Score(Section):
    """What samples are judged by at the end of a run."""

    classifier: Judge
    """Its features give FID, its classes the accuracy of class-conditional samples."""
    samples: Count = 1000
    feature: str = "pre_logits"


class MaskGit(Section):
    """Masked generative transformers: MaskGIT, Muse."""

    METRICS: ClassVar[dict[str, str]] = {"loss": "min", "token_accuracy": "max"}

    name: Literal["maskgit"]
    tokenizer: TokenizerSource
    encode_chunk: Count | None = None
    """Images that the tokenizer encodes, or decodes, at once. None: all."""
    model: one_of(MODELS)
    adapter: one_of(ADAPTERS) | None = None
    """What is trained, alone, beside a network that stays as ``model.pretrained`` has it. None: the network."""
    condition: one_of(CONDITIONS) = Unconditional(name="none")
    masking: Masking = Masking()
    label_smoothing: Fraction = 0.0
    soft_code: SoftCode | None = None
    sampler: Sampler = Sampler()
    score: Score | None = None

    @model_validator(mode="after")
    def _goes_together(self):
        if self.sampler.guidance is not None and getattr(self.condition, "dropout", 0.0) == 0.0:
            problem = "needs images that have lost their condition: set task.condition.dropout"
            raise Misfit({"sampler.guidance": problem})
        encoder = getattr(self.condition, "encoder", None)
        if self.condition.name == "text" and encoder is None and self.model.pretrained is not None:
            raise Misfit({"model.pretrained": "is of a network with a text encoder; give task.condition.encoder"})
        if self.model.name == "uvit" and (encoder is None or encoder.kind != "clip_projection"):
            raise Misfit({"model": "uvit needs task.condition: {name: text, encoder: {kind: clip_projection}}"})
        if self.adapter is not None and self.model.pretrained is None:
            raise Misfit({"model.pretrained": "is missing: an adapter is trained beside weights that are there"})
        if self.adapter is not None and self.adapter.name == "styledrop" and self.model.name != "uvit":
            raise Misfit({"adapter": f"styledrop is of uvit, and the model is {self.model.name}; lora is of both"})
        if self.adapter is None and getattr(self.sampler.guidance, "adapter", None) is not None:
            raise Misfit({"sampler.guidance.adapter": "is of a network with task.adapter, and there is none"})
        if self.soft_code is not None and self.encode_chunk is not None:
            raise Misfit({"encode_chunk": "is of single codes; soft_code takes the distances of a whole batch"})
        if self.soft_code is not None and self.label_smoothing:
            raise Misfit({"label_smoothing": "is of hard targets; soft_code has soft ones"})
        if (self.sampler.method == "random_replace") != (self.masking.noise == "random_replace"):
            problem = f"{self.sampler.method} does not go with masking.noise {self.masking.noise}"
            raise Misfit({"sampler.method": problem})
        return self

    def misfits(self, data: Section) -> dict[str, str]:
        """Says what of this does not go with the ``data`` section, by key."""
        return (
            {}
            if data.normalize == "none"
            else {"name": f"{self.name} takes images in [0, 1]: leave data.normalize out"}
        )


SECTION = MaskGit
