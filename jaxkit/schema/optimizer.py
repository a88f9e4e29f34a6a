"""The ``optimizer`` section: update rule, schedule, clipping, accumulation, averaging."""

import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, Strict, field_validator, model_validator

from jaxkit.schema.section import (
    Count,
    CountOrZero,
    Epochs,
    Misfit,
    NonNegative,
    Positive,
    Section,
    Strings,
    one_of,
)

Beta = Annotated[float, Field(ge=0, lt=1)]


class Schedule(Section):
    """Learning rate over updates: a linear warm-up, then what the name says."""

    name: Literal["constant"] = "constant"

    def warmup_updates(self, steps_per_epoch: float | int | None) -> int | None:
        """Length of the warm-up; None if it is given in epochs and the length of one is not known yet."""
        return 0

    def milestone_updates(self, steps_per_epoch: float | int | None) -> tuple[int, ...] | None:
        """Updates after which the rate drops; None as for the warm-up."""
        return ()


class Warmup(Schedule):
    """A linear warm-up, given in updates or in epochs."""

    warmup_steps: CountOrZero = 0
    warmup_epochs: Annotated[float, Field(ge=0, le=1e6)] = 0.0

    @model_validator(mode="after")
    def _one_unit(self):
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("give warmup_steps or warmup_epochs, not both")
        return self

    def warmup_updates(self, steps_per_epoch):
        if not self.warmup_epochs:
            return self.warmup_steps
        return None if steps_per_epoch is None else round(self.warmup_epochs * steps_per_epoch)


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
    milestones: Annotated[tuple[Count, ...], Strict(False)] = ()
    """Updates after which the rate drops."""
    milestone_epochs: Annotated[tuple[Epochs, ...], Strict(False)] = ()
    gamma: Positive = 0.1

    @model_validator(mode="after")
    def _milestones_rise(self):
        if bool(self.milestones) == bool(self.milestone_epochs):
            raise ValueError("give milestones (in updates) or milestone_epochs: one of them")
        marks = self.milestones or self.milestone_epochs
        if any(b <= a for a, b in pairwise(marks)):
            raise ValueError(f"milestones must rise, got {list(marks)}")
        return self

    def milestone_updates(self, steps_per_epoch):
        if not self.milestone_epochs:
            return self.milestones
        return (
            None
            if steps_per_epoch is None
            else tuple(round(epoch * steps_per_epoch) for epoch in self.milestone_epochs)
        )


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
    scale_learning_rate: bool = False
    """Whether it is of one example, and is multiplied by ``data.batch_size``: diffusers' ``scale_lr``."""
    weight_decay: NonNegative = 0.0
    no_decay: Strings = ()
    """Regular expressions searched in parameter paths such as ``stage1_block0/norm1/scale``: no decay where found."""
    rate_scale: dict[str, Positive] = Field(default_factory=dict)
    """Factors on the learning rate of the parameters whose path a regular expression is found in; several multiply."""
    clip_norm: Positive | None = None
    """Largest global norm of the gradient."""
    clip_value: Positive | None = None
    """Largest absolute value of a gradient's entries."""
    accumulate: Count = 1
    """Pieces a batch is cut into, one after the other on the device; the update is that of the whole batch."""
    schedule: one_of(SCHEDULES) = Schedule()
    ema: Ema | None = None

    @field_validator("no_decay", "rate_scale")
    @classmethod
    def _are_patterns(cls, patterns):
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns

    @model_validator(mode="after")
    def _fits_together(self):
        problems = self.misfits()
        if self.no_decay and not self.weight_decay:
            problems["no_decay"] = "no_decay needs a weight_decay above 0"
        if problems:
            raise Misfit(problems)
        return self

    def misfits(self, steps: int | None = None, steps_per_epoch: float | int | None = None) -> dict[str, str]:
        """Says what of the schedule does not fit a run of ``steps`` updates, by key; None is what is not known yet."""
        schedule, problems = self.schedule, {}
        warmup = schedule.warmup_updates(steps_per_epoch)
        milestones = schedule.milestone_updates(steps_per_epoch)
        if steps is not None and warmup is not None and warmup >= steps:
            problems["schedule"] = f"a warm-up of {warmup} updates leaves none of the run's {steps}"
        if warmup is not None and milestones and milestones[0] < warmup:
            problems["schedule"] = (
                f"the milestone at update {milestones[0]} lies within the warm-up of {warmup} updates"
            )
        if isinstance(schedule, Polynomial) and schedule.end >= self.learning_rate:
            problems["schedule.end"] = f"{schedule.end:g} must lie below the learning rate, {self.learning_rate:g}"
        if isinstance(schedule, CosineWithRestarts) and steps is not None and schedule.cycles * steps >= 2**31:
            problems["schedule.cycles"] = f"{schedule.cycles} cycles of {steps} updates cannot be counted in 32 bits"
        return problems


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


class AdamW8bit(Optimizer):
    """AdamW with moments of a byte each (Dettmers et al., 2022), for parameters of 4096 entries and more."""

    name: Literal["adamw_8bit"]
    b1: Beta = 0.9
    b2: Beta = 0.999
    eps: Positive = 1e-8


OPTIMIZERS = {"sgd": Sgd, "adam": Adam, "adamw": AdamW, "adamw_8bit": AdamW8bit, "lion": Lion}
