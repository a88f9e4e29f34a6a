"""The ``optimizer`` section: update rule, schedule, clipping, accumulation, averaging."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxkit.schema.section import Count, Floats, Integers, NonNegative, Positive, Section, Strings, one_of

Beta = Annotated[float, Field(ge=0, lt=1)]


class Schedule(Section):
    """Learning rate over updates: a linear warm-up, then what the name says."""

    name: Literal["constant"] = "constant"


class Warmup(Schedule):
    """A linear warm-up, given in updates or in epochs."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_epochs: NonNegative = 0.0

    @model_validator(mode="after")
    def _one_unit(self):
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("give warmup_steps or warmup_epochs, not both")
        return self


class ConstantWithWarmup(Warmup):
    """Linear from 0, then flat."""

    name: Literal["constant_with_warmup"]


class Linear(Warmup):
    """Linear from 0, then linear down to 0 at the last update."""

    name: Literal["linear"]


class Cosine(Warmup):
    """``(1 + cos(2 pi cycles progress)) / 2`` after the warm-up."""

    name: Literal["cosine"]
    cycles: Positive = 0.5


class CosineWithRestarts(Warmup):
    """Half a cosine, repeated ``cycles`` times, each from the full rate."""

    name: Literal["cosine_with_restarts"]
    cycles: Count = 1


class Polynomial(Warmup):
    """``(1 - progress) ** power`` from the full rate to ``end``."""

    name: Literal["polynomial"]
    power: Positive = 1.0
    end: NonNegative = 1e-7


class Multistep(Warmup):
    """Multiplied by ``gamma`` at each milestone; the warm-up's first update already has ``rate / warm-up updates``."""

    name: Literal["multistep"]
    milestones: Integers = ()
    """Updates after which the rate drops."""
    milestone_epochs: Floats = ()
    gamma: Positive = 0.1

    @model_validator(mode="after")
    def _milestones_rise(self):
        if bool(self.milestones) == bool(self.milestone_epochs):
            raise ValueError("give milestones (in updates) or milestone_epochs: one of them")
        marks = self.milestones or self.milestone_epochs
        if min(marks) <= 0 or any(b <= a for a, b in pairwise(marks)):
            raise ValueError(f"milestones must be positive and rising, got {list(marks)}")
        return self


SCHEDULES = {
    "constant": Schedule,
    "constant_with_warmup": ConstantWithWarmup,
    "linear": Linear,
    "cosine": Cosine,
    "cosine_with_restarts": CosineWithRestarts,
    "polynomial": Polynomial,
    "multistep": Multistep,
}


class Ema(Section):
    """Exponential moving average of the parameters, used in evaluation.

    With ``warmup`` the decay at update t = 0, 1, ... is ``min(decay, (1 + t) / (10 + t))``, except that the first
    update copies the parameters, as diffusers' ``EMAModel`` does: early averages do not hang on the initial parameters.
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    warmup: bool = True


class Optimizer(Section):
    """What every update rule shares."""

    learning_rate: Positive
    weight_decay: NonNegative = 0.0
    no_decay: Strings = ()
    """Regular expressions searched in parameter paths such as ``stage1_block0/norm1/scale``: no decay where found."""
    clip_norm: Positive | None = None
    """Largest global norm of the gradient."""
    clip_value: Positive | None = None
    """Largest absolute value of a gradient's entries."""
    accumulate: Count = 1
    """Pieces a batch is cut into, one after the other on the device; the update is that of the whole batch."""
    schedule: one_of(SCHEDULES) = Schedule()
    ema: Ema | None = None


class Sgd(Optimizer):
    """Stochastic gradient descent as torch's: weight decay is added to the gradient, before momentum."""

    name: Literal["sgd"]
    momentum: Beta = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self):
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015) as torch's: weight decay is added to the gradient."""

    name: Literal["adam"]
    b1: Beta = 0.9
    b2: Beta = 0.999
    eps: Positive = 1e-8


class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, 2019): decoupled weight decay, scaled by the learning rate."""

    name: Literal["adamw"]
    b1: Beta = 0.9
    b2: Beta = 0.999
    eps: Positive = 1e-8


class Lion(Optimizer):
    """Lion (Chen et al., 2023): the sign of an interpolated momentum, decoupled weight decay."""

    name: Literal["lion"]
    b1: Beta = 0.9
    b2: Beta = 0.99


OPTIMIZERS = {"sgd": Sgd, "adam": Adam, "adamw": AdamW, "lion": Lion}
