"""How masked tokens are decoded: the options of a sampler, and samplers as they were published."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkit.errors import ConfigError
from jaxkit.sampling.guidance import Guidance
from jaxkit.sampling.schedules import Annealing, MaskSchedule, arccos, constant, cosine, linspace, remaining
from jaxkit.spelling import nearest

Method = Literal["maskgit", "lucidrains", "halton", "predict_all", "random_replace"]
CONFIDENT = ("maskgit", "lucidrains")


class Plan(NamedTuple):
    """What differs from step to step, an entry a step."""

    step: Int[np.ndarray, " t"]
    rate: Float[Array, " t"]
    token_temperature: Float[np.ndarray, " t"]
    choice_temperature: Float[np.ndarray, " t"]
    guidance: Float[np.ndarray, " t"]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The options of :func:`jaxkit.sampling.masked.sample_tokens`; equal ones hash equally.

    Each step draws every masked token, then masks some again:

    - ``maskgit``: those of least ``log p + choice temperature x Gumbel noise``, at least one less than before. Equals
      diffusers' AmusedScheduler and open-muse's ``generate2``.
    - ``lucidrains``: likewise without noise unless asked for, and by the schedule over ``T - 1`` steps from all masked
      to one.
    - ``halton``: those that come last in the Halton order; probabilities do not matter.
    - ``predict_all``: as many as in ``maskgit``, at random among all that were not given, known ones too.
    - ``random_replace``: there is no mask token; every token that was not given is drawn anew from noised ones, then
      some are replaced at random by random tokens. For networks trained with such noise.

    Args:
        method: of the above.
        steps: calls of the network.
        schedule: the share still masked after each step.
        token_temperature: what logits are divided by before tokens are drawn; at 0 the likeliest is taken.
        choice_temperature: of the noise on the confidence, of ``maskgit`` (None: from 2 to 0, aMUSEd's) and
            ``lucidrains`` (None: 0).
        guidance: None: the network is asked without guidance.
        top_k: tokens are drawn from the so many likeliest; below 1: from such a share of the codebook.
        top_p: tokens are drawn from the likeliest that have this probability together.
        rolled: of ``halton``: each sample starts elsewhere in the order, at random.

    Raises:
        ConfigError: for options that are unknown, out of range or contradict each other.
    """

    method: Method = "maskgit"
    steps: int = 12
    schedule: MaskSchedule = cosine()  # noqa: RUF009 (frozen itself)
    token_temperature: Annealing = constant(1.0)  # noqa: RUF009
    choice_temperature: Annealing | None = None
    guidance: Guidance | None = None
    top_k: int | float | None = None
    top_p: float | None = None
    rolled: bool = False

    def __post_init__(self):
        methods = get_args(Method)
        if self.method not in methods:
            known = ", ".join(methods)
            raise ConfigError(f"sampler.method: {self.method!r} is unknown{nearest(self.method, methods)}; {known}")
        if operator.index(self.steps) < 1:
            raise ConfigError(f"sampler.steps: must be 1 or more, got {self.steps!r}")
        if self.top_k is not None and not (0 < self.top_k < 1 or (self.top_k >= 1 and self.top_k == int(self.top_k))):
            raise ConfigError(f"sampler.top_k: must be a count, or a share between 0 and 1, got {self.top_k!r}")
        if self.top_p is not None and not 0 < self.top_p < 1:
            raise ConfigError(f"sampler.top_p: must be between 0 and 1, got {self.top_p!r}")
        if self.choice_temperature is not None and self.method not in CONFIDENT:
            raise ConfigError(f"sampler.choice_temperature: {self.method} does not choose by confidence; leave it out")
        if self.rolled and self.method != "halton":
            raise ConfigError(f"sampler.rolled: is for the order of halton, not for {self.method}")

    def plan(self, start: int = 0) -> Plan:
        """Lists the steps from ``start`` on."""
        done = np.arange(1, self.steps + 1)
        whole = max(1, self.steps - 1) if self.method == "lucidrains" else self.steps
        choice = self.choice_temperature or (linspace(2.0, 0.0) if self.method == "maskgit" else constant(0.0))
        scales = np.ones(self.steps, np.float32) if self.guidance is None else self.guidance.scales(self.steps)
        plan = Plan(
            step=np.arange(self.steps, dtype=np.int32),
            rate=self.schedule(np.minimum(done / whole, 1).astype(np.float32)),
            token_temperature=self.token_temperature.values(self.steps),
            choice_temperature=choice.values(self.steps),
            guidance=scales,
        )
        return Plan(*(values[start:] for values in plan))

    def start(self, strength: float) -> int:
        """The step at which an image is taken up again so that ``⌊steps x strength⌋`` are left.

        Raises:
            ConfigError: for a strength above 1, or one so small that no step is left.
        """
        left = int(self.steps * strength)
        if not (strength <= 1 and left >= 1):
            least = 1 / self.steps
            raise ConfigError(f"strength: must be {least:.3g} (one of {self.steps} steps) to 1, got {strength!r}")
        return self.steps - left

    def masked_counts(
        self, rate: Float[Array, ""], masked: Int[Array, " b"], total: Int[Array, " b"]
    ) -> Int[Array, " b"]:
        """How many tokens of each sample are masked again, of ``masked`` that were and ``total`` at the beginning."""
        share = total * rate
        match self.method:
            case "lucidrains":
                count = jnp.maximum(1, jnp.floor(share))
            case "halton":
                count = jnp.clip(total - jnp.floor(total * (1 - rate)), 0, masked - 1)
            case "random_replace":
                count = jnp.maximum(1, jnp.round(share))
            case _:
                count = jnp.maximum(1, jnp.minimum(masked - 1, jnp.floor(share)))
        return jnp.clip(count.astype(jnp.int32), 0, masked)


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    # diffusers' AmusedPipeline
    "amused": lambda: Sampler(guidance=Guidance(strength=10.0)),
    # Google's MaskGIT on ImageNet
    "maskgit": lambda: Sampler(steps=8, choice_temperature=remaining(4.5)),
    # Muse's base model: 24 steps, guidance growing linearly
    "muse": lambda: Sampler(
        steps=24, choice_temperature=remaining(4.5), guidance=Guidance(strength=10.0, schedule="linear")
    ),
    # muse-maskgit-pytorch
    "lucidrains": lambda: Sampler(method="lucidrains", steps=18, token_temperature=remaining(1.0), top_k=0.1),
    # Halton-MaskGIT
    "halton": lambda: Sampler(
        method="halton", steps=32, schedule=arccos(), guidance=Guidance(strength=2.0, convention="weight")
    ),
}
"""Samplers as published; ``dataclasses.replace`` changes one."""
