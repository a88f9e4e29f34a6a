"""The sections that name a model and where its weights come from."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from jaxkit.models import MODELS, WITH_COMPAT, WITH_DROPOUT, WITH_TRANSFORM_INPUT
from jaxkit.schema.data import Normalize
from jaxkit.schema.section import Count, Misfit, Section, Strings


class Model(Section):
    """A classifier by name."""

    name: str
    num_classes: Count | None = None
    """None: as many as the data has."""
    initialization: Literal["flax", "kaiming", "torch"] = "torch"
    """``torch``: its layers' own defaults, uniform in ± 1/sqrt(fan-in). ``flax``: linen's, truncated LeCun normal.
    ``kaiming``: convolutions normal of variance 2/fan-out, as torchvision and RepDistiller train residual networks."""
    dropout_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    compat: Literal["paper", "reference"] | None = None
    """``reference`` (what None means): as the published weights were trained. ``paper``: without the deviations."""
    transform_input: bool = False
    """Takes images of ``data.normalize: imagenet`` to the [-1, 1] that torchvision's published weights expect."""
    pretrained: str | None = None
    """File or folder with weights of either framework to start from, its head only if it has as many classes. Read when
    a run begins, and not again."""

    @field_validator("name")
    @classmethod
    def _known(cls, name):
        if name not in MODELS:
            raise ValueError(f"no model is named {name!r}; the models are {', '.join(MODELS)}")
        return name

    @model_validator(mode="after")
    def _has_its_switches(self):
        if self.dropout_rate is not None and self.name not in WITH_DROPOUT:
            raise ValueError(f"{self.name} has no dropout; the models that do are {', '.join(WITH_DROPOUT)}")
        if self.compat is not None and self.name not in WITH_COMPAT:
            raise ValueError(f"{self.name} is as in its paper; the models that differ are {', '.join(WITH_COMPAT)}")
        if self.transform_input and self.name not in WITH_TRANSFORM_INPUT:
            raise ValueError(
                f"{self.name} has no transform_input; the models that do are {', '.join(WITH_TRANSFORM_INPUT)}"
            )
        return self


class Pretrained(Section):
    """Where a frozen model comes from: a run's workdir, one of its checkpoints, or a config to be trained first."""

    KINDS: ClassVar[tuple[type[Section], ...]] = (Model,)
    """What the run must have trained, and what to call it."""
    WANTED: ClassVar[str] = "classifier"
    NORMALIZED: ClassVar[bool] = True
    """Whether the run may have normalised its images."""
    PUBLISHED: ClassVar[bool] = False
    """Whether the weights may be those of ``model.pretrained``, and no run's."""

    workdir: str | None = None
    """The best checkpoint of this run."""
    checkpoint: str | None = None
    """One step of a run, such as ``runs/teacher/checkpoints/500``."""
    config: str | None = None
    """Trained once, then reused: its workdir is ``cache/<name>-<hash of the config>``."""
    overrides: Strings = ()
    """Overrides of ``config``, such as ``train.seed=1``."""
    cache: str = "runs/teachers"
    model: Model | None = None
    """Filled in from the config of the run."""
    pinned: str | None = None
    """Filled in in the ``config.yaml`` of a workdir: the checkpoint that was read. It is then read again."""

    @property
    def run(self) -> str | None:
        """The run, or the config of one, that the weights come from."""
        return self.config or self.workdir or self.checkpoint

    @property
    def published(self) -> str | None:
        """The file or folder of weights that no run has trained."""
        return None if self.model is None else self.model.pretrained

    @model_validator(mode="after")
    def _one_source(self):
        sources = {"workdir": self.workdir, "checkpoint": self.checkpoint, "config": self.config}
        if self.PUBLISHED:
            sources["model.pretrained"] = self.published
        elif self.published is not None:
            raise ValueError("the weights are the run's: leave model.pretrained out")
        if sum(source is not None for source in sources.values()) != 1:
            *names, last = sources
            raise ValueError(f"give {', '.join(names)} or {last}: one of them")
        if self.overrides and self.config is None:
            raise ValueError("overrides are those of a config, and none is given")
        return self


class Judge(Pretrained):
    """A classifier of images in [0, 1], as tokenizers have them; or one with published weights.

    These are in the file of ``model.pretrained``, of as many classes as ``model.num_classes`` says; its images are
    resized to the side that its network was made for, in three channels.
    """

    NORMALIZED: ClassVar[bool] = False
    PUBLISHED: ClassVar[bool] = True

    normalize: Normalize | None = None
    """Of what published weights see. For torchvision's, ImageNet's mean and std; None: [0, 1]."""

    @model_validator(mode="after")
    def _says_what_is_published(self):
        if self.published is not None and self.model.num_classes is None:
            raise Misfit({"model.num_classes": "is missing: how many the published weights have"})
        if self.normalize is not None and self.published is None:
            raise Misfit({"normalize": "is of published weights; a run has its own data.normalize"})
        return self
