"""The ``task`` section of textual inversion: new words for a Stable Diffusion that stays as it is."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from jaxkit.schema.diffusion import Sampler
from jaxkit.schema.model import Judge
from jaxkit.schema.section import Count, CountOrZero, Fraction, Misfit, Positive, Section, Strings


class Word(Section):
    """A new word, and what its vectors are before training."""

    placeholder_token: str
    """Lower case, such as ``<cat-toy>``."""
    initializer_token: str | None = None
    """A word or phrase that the model knows: its tokens' vectors, in turn. None: drawn as the table's are."""
    init_from: str | None = None
    """A file of learned vectors, of any dialect, to go on from; of several words, the one of this name."""

    @model_validator(mode="after")
    def _one_beginning(self):
        if self.initializer_token is not None and self.init_from is not None:
            raise Misfit({"init_from": "and initializer_token are two beginnings: give one of them"})
        return self


class Norm(Section):
    """What the vectors' lengths are held to after every update."""

    kind: Literal["median", "decay", "std"]
    """``median``: of the table, kept. ``decay``: drawn to ``target``. ``std``: drawn to the table's spread."""
    target: Positive = 0.4
    """Of ``decay``."""
    rate: Fraction = 0.05
    """Of ``decay``: the share of the way that an update goes; the original's is 100 times its learning rate."""


class ConceptScore(Section):
    """What samples of the new words are judged by at the end: whether a classifier sees what they stand for."""

    classifier: Judge
    labels: Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
    """The class of each word."""
    prompt: str = "{}"
    """In which ``{}`` is the word."""
    samples: Count = 200
    """Of each word."""


class TextualInversion(Section):
    """Trains the vectors of new words, and nothing else."""

    METRICS: ClassVar[dict[str, str]] = {"loss": "min"}

    name: Literal["textual_inversion"]
    pipeline: str
    """A folder of Stable Diffusion 1, 2 or XL, or a name of the model hub, owner/name."""
    variant: str | None = None
    """What stands in the names of the weight files, such as fp16."""
    revision: str | None = None
    """A branch, tag or commit of the hub's."""
    backend: Literal["diffusers", "native"] = "diffusers"
    """``diffusers``: the Flax classes of diffusers and transformers. ``native``: jaxkit's own, exact to torch."""
    words: Annotated[tuple[Word, ...], Field(strict=False, min_length=1)]
    """One for each concept of the data; all are trained at once, each by its own pictures alone."""
    vectors: Count = 1
    """Of each word."""
    templates: Literal["object", "style", "style_original", "captions"] | Strings = "object"
    """Texts in which ``{}`` is the word. ``captions``: beside the pictures. ``style_original``: two lines twice."""
    flip: Fraction = 0.5
    """Probability of a mirrored picture; 0 for what is not symmetric, such as letters."""
    snr_gamma: Positive | None = None
    """Weighs time steps as Hang et al. do; 5 is theirs. None: all alike."""
    norm: Norm | None = None
    pooling: Literal["config", "eos"] = "config"
    """Where Stable Diffusion XL's pooled text is taken: as torch does, which is at the new word; or at the end."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes again, to save memory: gradient checkpointing. Of ``native``."""
    attention: Literal["xla", "cudnn", "chunked"] | None = None
    """How attention is computed. None: as the backend does of itself."""
    eval_draws: Count = 4
    """Time steps at which the loss of each picture is evaluated, always with the same noise."""
    sampler: Sampler = Sampler()
    validation_prompts: Annotated[Strings, Field(min_length=1)] = ("{}",)
    """Of the samples drawn in training; ``{}`` is each word in turn."""
    validation_images: CountOrZero | None = None
    """Samples drawn at each evaluation. None: one of each prompt and word, but 4 at least."""
    score: ConceptScore | None = None

    @model_validator(mode="after")
    def _goes_together(self):
        if self.backend == "diffusers" and self.remat != "none":
            raise Misfit({"remat": "is of the backend native; diffusers has none"})
        if self.score is not None and len(self.score.labels) != len(self.words):
            raise Misfit({"score.labels": f"are {len(self.score.labels)} for {len(self.words)} words"})
        if self.score is not None and "{}" not in self.score.prompt:
            raise Misfit({"score.prompt": f"{self.score.prompt!r} has no place for the word; write {{}} in it"})
        if self.templates == ():
            raise Misfit({"templates": "are none; give texts with {}, or object, style, captions"})
        return self

    def misfits(self, data: Section) -> dict[str, str]:
        """Says what of this does not go with the ``data`` section, by key."""
        concepts = getattr(data, "concepts", None)
        if concepts is None:
            return {"name": f"{self.name} learns from pictures of concepts: give data.name concepts"}
        if concepts != len(self.words):
            return {"words": f"are {len(self.words)}, but the data has the pictures of {concepts}"}
        return {}


SECTION = TextualInversion
