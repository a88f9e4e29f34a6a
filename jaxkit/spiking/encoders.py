"""Encoders: intensities in [0, 1] -> spikes, the whole train at once or step by step.

An encoder is a value, its randomness a key. Both forms are one: ``encoder(key, x)`` scans ``encoder.step``, so a train
made online, within the simulation of what it drives, is that of ``encoder(key, x)`` bit for bit.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkit.spiking.checks import require_whole


class Renewal(NamedTuple):
    """Poisson processes with dead time, between two steps."""

    key: PRNGKeyArray
    refractory: Float[Array, "*n"]
    """Steps left of the dead time."""
    hazard: Float[Array, "*n"]
    """How much of it is left to the next spike, outside of dead time."""


class Countdown(NamedTuple):
    """Whole intervals, between two steps."""

    key: PRNGKeyArray
    remaining: Int[Array, "*n"]
    """Steps to the next spike; below 1 where an interval is to be drawn."""


@dataclass(frozen=True)
class Encoder(ABC):
    """Turns intensities, of any shape such as [b h w c], into ``steps`` steps of spikes.

    Intensities are floats; outside [0, 1] they are clipped, and no gradient reaches them.

    Args:
        steps: length of the train.
        step_time: ms

    Raises:
        ValueError: if either is not positive, or another argument not in its range.
    """

    steps: int
    step_time: float

    def __post_init__(self):
        require_whole(self, "steps", axes=0)
        _require(self.step_time > 0, "step_time", self.step_time, "positive (ms)")

    def __call__(self, key: PRNGKeyArray, x: Float[Array, "*n"]) -> Float[Array, "{self.steps} ..."]:
        """Generates a train of zeros and ones, in the dtype of ``x``."""
        carry = self.initialize_carry(key, x)
        return lax.scan(lambda carry, _: self.step(carry, x), carry, length=self.steps)[1]

    @abstractmethod
    def initialize_carry(self, key: PRNGKeyArray, x: Float[Array, "*n"]) -> Any:
        """Draws the state before the first step."""

    @abstractmethod
    def step(self, carry: Any, x: Float[Array, "*n"]) -> tuple[Any, Float[Array, "*n"]]:
        """Generates the spikes of one step; ``x`` may differ from step to step."""


@dataclass(frozen=True)
class RateEncoder(Encoder):
    """An encoder whose spikes come at ``frequency * x`` Hz.

    Args:
        steps, step_time: of :class:`Encoder`.
        frequency: Hz, of the intensity 1.
    """

    frequency: float

    def __post_init__(self):
        super().__post_init__()
        _require(self.frequency >= 0, "frequency", self.frequency, "0 Hz or more")

    def _rate(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Spikes per step, in float32."""
        return _unit(x) * (self.frequency * self.step_time / 1000)


@dataclass(frozen=True)
class HomogeneousPoissonEncoder(RateEncoder):
    """A Poisson process with dead time: an interval is the refractory period and an exponential draw.

    A spike falls into the step that its time, a real number, lies in. The train is cut out of a process without
    beginning, so its rate holds from the first step on. Online, the intensities may change with every step.

    Args:
        steps, step_time, frequency: of :class:`RateEncoder`.
        refrac: shortest interval between spikes in ms, rounded up to whole steps; None: one step, as a step can hold
            one spike at most.
        compensate: shorten the exponential part by the refractory period, so that the mean rate is ``frequency * x``;
            otherwise it is ``1 / (1 / (frequency * x) + refrac)``.

    Raises:
        ValueError: if ``compensate`` cannot: ``frequency`` spikes a second leave no room for ``refrac`` between them.
    """

    refrac: float | None = field(default=None, kw_only=True)
    compensate: bool = field(default=True, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        _require(self.refrac is None or self.refrac >= 0, "refrac", self.refrac, "0 ms or more")
        dead_time = self._refractory * self.step_time
        if self.compensate and self.frequency * dead_time >= 1000:
            raise ValueError(
                f"frequency {self.frequency:g} Hz cannot be reached with a refrac of {dead_time:g} ms, which allows "
                f"for less than {1000 / dead_time:g} Hz; lower one of them, or set compensate=False"
            )

    @property
    def _refractory(self) -> int:
        """Steps."""
        # rounded first: 2.1 / 0.3 is a little more than 7
        return 1 if self.refrac is None else max(1, math.ceil(round(self.refrac / self.step_time, 6)))

    def _hazard(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Spikes per step outside of dead time."""
        rate = self._rate(x)
        return rate / (1 - self._refractory * rate) if self.compensate else rate

    def initialize_carry(self, key: PRNGKeyArray, x: Float[Array, "*n"]) -> Renewal:
        """Draws a moment of a process that has always been running."""
        key, key_dead, key_hazard = jax.random.split(key, 3)
        lost = self._refractory * self._hazard(x)
        dead = jnp.maximum(lost / (1 + lost), 1e-12)  # the share of time that is dead
        refractory = self._refractory * jnp.maximum(0, 1 - jax.random.uniform(key_dead, x.shape) / dead)
        return Renewal(key, refractory, jax.random.exponential(key_hazard, x.shape))

    def step(self, carry: Renewal, x: Float[Array, "*n"]) -> tuple[Renewal, Float[Array, "*n"]]:
        """Generates the spikes for which the hazard since the last, outside of dead time, suffices."""
        key, key_draw = jax.random.split(carry.key)
        hazard = self._hazard(x)
        passed = hazard * jnp.maximum(0, 1 - carry.refractory)
        spikes = carry.hazard < passed
        moment = carry.refractory + carry.hazard / jnp.where(spikes, hazard, 1)
        return Renewal(
            key,
            jnp.maximum(0, jnp.where(spikes, moment + self._refractory, carry.refractory) - 1),
            jnp.where(spikes, jax.random.exponential(key_draw, x.shape), carry.hazard - passed),
        ), spikes.astype(x.dtype)


@dataclass(frozen=True)
class HomogeneousPoissonApproxEncoder(RateEncoder):
    """An independent coin a step: spikes with probability ``frequency * x * step_time``, at most 1.

    The intensities may change with every step, online, and so may describe an inhomogeneous process.
    """

    def initialize_carry(self, key: PRNGKeyArray, x: Float[Array, "*n"]) -> PRNGKeyArray:
        """The key is all there is to remember."""
        return key

    def step(self, carry: PRNGKeyArray, x: Float[Array, "*n"]) -> tuple[PRNGKeyArray, Float[Array, "*n"]]:
        """Tosses one coin an intensity."""
        carry, key = jax.random.split(carry)
        return carry, (jax.random.uniform(key, x.shape) < self._rate(x)).astype(x.dtype)


@dataclass(frozen=True)
class PoissonIntervalEncoder(RateEncoder):
    """Intervals between spikes are Poisson numbers of steps, of mean ``1 / (frequency * x)``, and 1 at least.

    So BindsNET generates spikes (Hazan et al., "BindsNET: A Machine Learning-Oriented Spiking Neural Networks Library
    in Python", 2018). No Poisson process: at low rates the trains are nearly regular. The first spike ends an interval
    that begins with the train. Online, a change of intensity takes effect from the next interval on.
    """

    def initialize_carry(self, key: PRNGKeyArray, x: Float[Array, "*n"]) -> Countdown:
        """All intervals are still to be drawn."""
        return Countdown(key, jnp.zeros(x.shape, jnp.int32))

    def step(self, carry: Countdown, x: Float[Array, "*n"]) -> tuple[Countdown, Float[Array, "*n"]]:
        """Draws the intervals that begin with this step; generates the spikes of those that end with it."""
        key, key_draw = jax.random.split(carry.key)
        rate = self._rate(x)
        # no train is 2^30 steps long, and int32 holds it
        mean = jnp.minimum(1 / jnp.where(rate > 0, rate, 1), 2.0**30)
        interval = jnp.where(rate > 0, jnp.maximum(jax.random.poisson(key_draw, mean, dtype=jnp.int32), 1), 0)
        remaining = jnp.where(carry.remaining < 1, interval, carry.remaining) - 1
        return Countdown(key, remaining), (remaining == 0).astype(x.dtype)


@dataclass(frozen=True)
class RegularEncoder(RateEncoder):
    """Evenly spaced spikes: in any ``n`` steps ``frequency * x * n * step_time`` of them, rounded up or down.

    Each intensity begins at a random phase, lest equal ones spike all at once. Rates above one spike a step are cut.
    """

    def initialize_carry(self, key: PRNGKeyArray, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Draws the phases, in cycles."""
        return jax.random.uniform(key, x.shape)

    def step(self, carry: Float[Array, "*n"], x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        """Generates the spikes of the cycles that end."""
        phase = carry + jnp.minimum(self._rate(x), 1)
        spikes = jnp.floor(phase)
        return phase - spikes, spikes.astype(x.dtype)


@dataclass(frozen=True)
class LatencyEncoder(Encoder):
    """One spike each, the earlier the more intense: when a leaky integrator of ``x`` reaches a threshold.

    From 0, ``tc_membrane dV/dt = x - V`` reaches ``thresh`` after ``tc_membrane log(x / (x - thresh))`` ms; the spike
    falls into the step which that moment lies in. Intensities up to ``thresh`` never reach it and stay silent, as do
    those too slow for ``steps``. The key decides nothing. Online, the intensities must stay the same.

    Source: Thorpe, Delorme & Van Rullen, "Spike-based strategies for rapid processing", 2001, for spikes whose time
    says how strong; the formula is that of the tutorials of Neftci, Mostafa & Zenke, "Surrogate Gradient Learning in
    Spiking Neural Networks", 2019.

    Args:
        steps, step_time: of :class:`Encoder`.
        tc_membrane: ms
        thresh: of the integrator, in (0, 1).
    """

    tc_membrane: float = field(default=20.0, kw_only=True)
    thresh: float = field(default=0.2, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        _require(self.tc_membrane > 0, "tc_membrane", self.tc_membrane, "positive (ms)")
        _require(0 < self.thresh < 1, "thresh", self.thresh, "between 0 and 1")

    def initialize_carry(self, key: PRNGKeyArray, x: Float[Array, "*n"]) -> Int[Array, ""]:
        """Counts the steps from 0."""
        return jnp.zeros((), jnp.int32)

    def step(self, carry: Int[Array, ""], x: Float[Array, "*n"]) -> tuple[Int[Array, ""], Float[Array, "*n"]]:
        """Generates the spikes of the integrators that reach the threshold in this step."""
        x_unit = _unit(x)
        above = x_unit > self.thresh
        moment = -self.tc_membrane * jnp.log1p(-self.thresh / jnp.where(above, x_unit, 1))
        spikes = above & (jnp.floor(moment / self.step_time) == carry)
        return carry + 1, spikes.astype(x.dtype)


def _unit(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Intensities as float32 within [0, 1], without gradient.

    Raises:
        ValueError: for whole numbers.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"intensities are floats in [0, 1], not {x.dtype}: divide images of 0 to 255 by 255")
    return jnp.clip(lax.stop_gradient(x).astype(jnp.float32), 0, 1)


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {value}")
