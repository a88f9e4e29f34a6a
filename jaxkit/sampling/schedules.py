"""Mask schedules, from the time ``t`` in [0, 1] to the share of tokens that are masked, and temperatures of each step.

A mask schedule falls from 1 at ``t = 0`` to 0 at ``t = 1``. In training ``t`` is drawn uniformly; in sampling it is the
share of the steps that are done. All is float32: counts are the floors of products with it, as in the originals.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkit.errors import ConfigError
from jaxkit.spelling import nearest

LEAST_RATE = 1e-6


@dataclass(frozen=True)
class MaskSchedule:
    """A formula of ``t`` with its constants; equal ones hash equally."""

    formula: Callable[..., Array]
    constants: tuple[float, ...] = ()

    def __call__(self, t: Float[Array, "*n"] | Float[np.ndarray, "*n"] | float) -> Float[Array, "*n"]:
        """The share of tokens masked at the times ``t`` in [0, 1]."""
        return self.formula(jnp.asarray(t, jnp.float32), *self.constants)


def cosine() -> MaskSchedule:
    """``cos(π t / 2)``, whose mean is ``2 / π``; not clipped, so it ends a rounding error away from 0.

    At random times its rates have the density ``(2 / π) (1 - r²)^-½``, which Muse calls the arccos distribution.

    Source: Chang et al., "MaskGIT: Masked Generative Image Transformer", CVPR 2022, section 3.3; "Muse: Text-To-Image
    Generation via Masked Generative Transformers", 2023, section 2.4.
    """
    return MaskSchedule(_cosine)


def linear() -> MaskSchedule:
    """``1 - t``, at least 1e-6. Source: MaskGIT, section 3.3."""
    return power(1.0)


def square() -> MaskSchedule:
    """``1 - t²``, at least 1e-6. Source: MaskGIT, section 3.3."""
    return power(2.0)


def root() -> MaskSchedule:
    """``1 - √t``, at least 1e-6. Source: MaskGIT, section 3.3."""
    return power(0.5)


def power(exponent: float) -> MaskSchedule:
    """``1 - t^exponent``, at least 1e-6. Source: MaskGIT, section 3.3.

    Raises:
        ConfigError: for an exponent that is not above 0.
    """
    if not exponent > 0:
        raise ConfigError(f"mask schedule pow: exponent must be above 0, got {exponent!r}")
    return MaskSchedule(_power, (exponent,))


def sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> MaskSchedule:
    """``(σ(end/τ) - σ((start + t (end - start))/τ)) / (σ(end/τ) - σ(start/τ))`` in [1e-6, 1].

    Source: Jabri et al., "Scalable Adaptive Computation for Iterative Generation", ICML 2023, appendix B.

    Raises:
        ConfigError: for a temperature τ that is not above 0, or an end that is not above the start.
    """
    if not (tau > 0 and start < end):
        raise ConfigError(f"mask schedule sigmoid: needs start < end and tau > 0, got {start!r}, {end!r} and {tau!r}")
    return MaskSchedule(_sigmoid, (start, end, tau))


def log(tokens: float = 256.0) -> MaskSchedule:
    """``-log₂ t / log₂ tokens`` in [1e-6, 1], of grids of so many tokens. Source: MaskGIT's code."""
    return MaskSchedule(_log, (_more_than_one("log", tokens),))


def exp(tokens: float = 256.0) -> MaskSchedule:
    """``1 - 2^(-(1 - t) log₂ tokens)`` in [1e-6, 1], of grids of so many tokens. Source: MaskGIT's code."""
    return MaskSchedule(_exp, (_more_than_one("exp", tokens),))


def arccos() -> MaskSchedule:
    """``(2 / π) arccos t``: tokens are revealed slowly at first. Source: 1d-tokenizer's and Halton-MaskGIT's code."""
    return MaskSchedule(_arccos)


MASK_SCHEDULES: dict[str, Callable[..., MaskSchedule]] = {
    "cosine": cosine,
    "linear": linear,
    "pow": power,
    "sigmoid": sigmoid,
    "log": log,
    "exp": exp,
    "arccos": arccos,
    "square": square,
    "root": root,
}


def mask_schedule(name: str, constants: Mapping[str, float] = MappingProxyType({})) -> MaskSchedule:
    """Builds the schedule of this name, such as ``cosine``, ``sigmoid`` with ``{"tau": 0.5}``, or ``pow2.5``.

    Raises:
        ConfigError: for a name or a constant that is unknown, or a constant that is missing or out of range.
    """
    if short := re.fullmatch(r"pow(\d*\.?\d+)", name):
        name, constants = "pow", {"exponent": float(short[1]), **constants}
    if name not in MASK_SCHEDULES:
        known = ", ".join(MASK_SCHEDULES)
        raise ConfigError(f"{name!r} is no mask schedule{nearest(name, MASK_SCHEDULES)}; one of {known}")
    parameters = inspect.signature(MASK_SCHEDULES[name]).parameters
    for given in constants:
        if given not in parameters:
            known = f"its constants are {', '.join(parameters)}" if parameters else "it has no constants"
            raise ConfigError(f"mask schedule {name}: {given!r} is unknown{nearest(given, parameters)}; {known}")
    if name == "pow" and "exponent" not in constants:
        raise ConfigError("mask schedule pow: exponent is missing; write pow2 or {exponent: 2}")
    return MASK_SCHEDULES[name](**constants)


@dataclass(frozen=True)
class Annealing:
    """A temperature for every step; equal ones hash equally.

    Raises:
        ConfigError: for a temperature below 0.
    """

    formula: Callable[..., np.ndarray]
    constants: tuple[float, ...]

    def __post_init__(self):
        if not all(0 <= value < math.inf for value in self.constants):
            raise ConfigError(f"temperatures must be 0 or more, got {', '.join(map(repr, self.constants))}")

    def values(self, steps: int) -> Float[np.ndarray, " t"]:
        """The temperature of each of so many steps, float32."""
        return self.formula(steps, *self.constants).astype(np.float32)


def constant(temperature: float) -> Annealing:
    """The same temperature at every step."""
    return Annealing(_constant, (temperature,))


def linspace(start: float, end: float = 0.01) -> Annealing:
    """From ``start`` at the first step to ``end`` at the last, aMUSEd's way, whose single temperature ends at 0.01."""
    return Annealing(_linspace, (start, end))


def remaining(temperature: float) -> Annealing:
    """``temperature (1 - (s + 1) / T)`` at step ``s`` of ``T``: 0 at the last.

    Source: MaskGIT's code (its choice temperature, 4.5) and lucidrains' muse-maskgit-pytorch (of its tokens, 1).
    """
    return Annealing(_remaining, (temperature,))


def compounding(temperature: float) -> Annealing:
    """``temperature Π_{j <= s} (1 - (j + 1) / T)``: nearly 0 after a few steps.

    What open-muse's MaskGitTransformer does instead of :func:`remaining`, by overwriting its own argument; for parity
    with images sampled by it.
    """
    return Annealing(_compounding, (temperature,))


def _cosine(t):
    return jnp.cos(t * math.pi / 2)


def _power(t, exponent):
    return _clipped(1 - t if exponent == 1 else 1 - t**exponent)


def _sigmoid(t, start, end, tau):
    first, last = (1 / (1 + math.exp(-x / tau)) for x in (start, end))
    return _clipped((last - jax.nn.sigmoid((t * (end - start) + start) / tau)) / (last - first))


def _log(t, tokens):
    return _clipped(-jnp.log2(t) / math.log2(tokens))


def _exp(t, tokens):
    return _clipped(1 - jnp.exp2(-math.log2(tokens) * (1 - t)))


def _arccos(t):
    return jnp.arccos(t) / (math.pi / 2)


def _clipped(rate):
    return jnp.clip(rate, LEAST_RATE, 1.0)


def _more_than_one(name: str, tokens: float) -> float:
    if not tokens > 1:
        raise ConfigError(f"mask schedule {name}: tokens must be above 1, got {tokens!r}")
    return tokens


def _constant(steps, temperature):
    return np.full(steps, temperature)


def _linspace(steps, start, end):
    return np.linspace(start, end, steps)


def _remaining(steps, temperature):
    return temperature * (1 - np.arange(1, steps + 1) / steps)


def _compounding(steps, temperature):
    return temperature * np.cumprod(1 - np.arange(1, steps + 1) / steps)
