"""Synapses: the current that spikes become, and which of its past a delay reads.

A synapse has no parameters. Its state is the past of a few quantities (:mod:`jaxkit.spiking.history`), named as in the
original (inferno), of which the current is a sum.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from jaxkit.spiking.delays import INTERPOLATIONS, Interpolation


class Term(NamedTuple):
    """A part of a synapse's current: ``factor`` times a quantity of its past."""

    ring: str
    factor: float
    mode: Interpolation
    time_constant: float = 1.0
    """ms, of ``expdecay``"""


@dataclass(frozen=True, kw_only=True)
class Synapse:
    """What all synapses have.

    Args:
        spike_charge: charge of a spike, pC; not 0. Currents are in nA.
        interp_tol: ms by which a delay may miss a step and be taken for it.
        current_overbound: the current, nA, that delays outside [0, maximum] read; None: what the nearest end reads.
        spike_overbound: the same of spikes.

    Raises:
        ValueError: for a charge of 0, a tolerance below 0, a time constant that is not positive, an unknown mode.
    """

    spike_charge: float
    interp_tol: float = 0.0
    current_overbound: float | None = 0.0
    spike_overbound: bool | None = False

    quantities: ClassVar[tuple[str, ...]]
    """Those whose past is kept."""
    injectable: ClassVar[bool] = False
    """Whether currents may be given beside spikes."""

    def __post_init__(self):
        if self.spike_charge == 0 or not math.isfinite(self.spike_charge):
            raise ValueError(f"spike_charge is {self.spike_charge} pC; it must be a number other than 0")
        if not self.interp_tol >= 0:
            raise ValueError(f"interp_tol is {self.interp_tol} ms; it must be at least 0")

    @property
    def spike_interpolation(self) -> Interpolation:
        """How delays read spikes."""
        return self.spike_interp_mode

    def terms(self, step_time: float) -> tuple[Term, ...]:
        """The parts of the current, nA."""
        raise NotImplementedError

    def step(
        self, past: Mapping[str, Shaped[Array, "b ..."]], inputs: tuple[Shaped[Array, "b ..."], ...], step_time: float
    ) -> dict[str, Shaped[Array, "b ..."]]:
        """The quantities' next values, from the latest ones, the spikes ``inputs[0]`` and currents injected, nA."""
        raise NotImplementedError


def binary(spikes: Shaped[Array, "*n"]) -> Shaped[Array, "*n"]:
    """1 where there is anything but 0, as the original takes it; the gradient passes straight through."""
    if not jnp.issubdtype(spikes.dtype, jnp.floating):
        return spikes != 0
    return spikes + lax.stop_gradient((spikes != 0).astype(spikes.dtype) - spikes)


INSTANTANEOUS = tuple(mode for mode in INTERPOLATIONS if mode != "expdecay")


def _check_mode(name: str, mode: str, modes: tuple[str, ...] = ("previous", "nearest")) -> None:
    if mode not in modes:
        raise ValueError(f"{name} is {mode!r}; it can be {', '.join(modes)}")


@dataclass(frozen=True, kw_only=True)
class DeltaCurrent(Synapse):
    """Turns every spike into a current of one step: ``I = Q / step_time`` where the input is not 0.

    Graded inputs count as whole spikes, as in the original; :class:`DeltaPlusCurrent` keeps them.
    """

    interp_mode: Interpolation = "previous"
    quantities: ClassVar = ("spike",)

    def __post_init__(self):
        super().__post_init__()
        _check_mode("interp_mode", self.interp_mode, INSTANTANEOUS)

    @property
    def spike_interpolation(self) -> Interpolation:
        return self.interp_mode

    def terms(self, step_time):
        return (Term("spike", self.spike_charge / step_time, self.interp_mode),)

    def step(self, past, inputs, step_time):
        return {"spike": binary(inputs[0])}


@dataclass(frozen=True, kw_only=True)
class DeltaPlusCurrent(Synapse):
    """Turns input into a current of one step, ``I = Q / step_time x + injected``; graded input stays graded."""

    interp_mode: Interpolation = "previous"
    quantities: ClassVar = ("spike", "current")
    injectable: ClassVar = True

    def __post_init__(self):
        super().__post_init__()
        _check_mode("interp_mode", self.interp_mode, INSTANTANEOUS)

    @property
    def spike_interpolation(self) -> Interpolation:
        return self.interp_mode

    def terms(self, step_time):
        return (Term("current", 1.0, self.interp_mode),)

    def step(self, past, inputs, step_time):
        spikes, *injected = inputs
        current = self.spike_charge / step_time * _real(spikes, past["current"])
        return {"spike": spikes != 0, "current": sum(injected, current)}


@dataclass(frozen=True, kw_only=True)
class SingleExponentialCurrent(Synapse):
    """Adds ``Q / tau`` at every spike to a current that decays: ``I <- I exp(-step_time / tau) + Q / tau x``.

    Args:
        time_constant: tau, ms.
        spike_interp_mode: how delays read spikes; currents are read with their decay.
    """

    time_constant: float
    spike_interp_mode: Literal["previous", "nearest"] = "previous"
    quantities: ClassVar = ("spike", "current")

    def __post_init__(self):
        super().__post_init__()
        if not self.time_constant > 0:
            raise ValueError(f"time_constant is {self.time_constant} ms; it must be positive")
        _check_mode("spike_interp_mode", self.spike_interp_mode)

    def terms(self, step_time):
        return (Term("current", 1.0, "expdecay", self.time_constant),)

    def step(self, past, inputs, step_time):
        decayed = past["current"] * math.exp(-step_time / self.time_constant)
        x = _real(inputs[0], decayed)
        return {"spike": inputs[0] != 0, "current": decayed + self.spike_charge / self.time_constant * x}


@dataclass(frozen=True, kw_only=True)
class DoubleExponentialCurrent(Synapse):
    """Subtracts a fast from a slow exponential; both rise by ``Q / (tau_d - tau_r)`` at every spike.

    Args:
        tc_decay: tau_d, ms; longer than ``tc_rise``.
        tc_rise: tau_r, ms.
        spike_interp_mode: how delays read spikes; currents are read with their decay.
    """

    tc_decay: float
    tc_rise: float
    spike_interp_mode: Literal["previous", "nearest"] = "previous"
    quantities: ClassVar = ("spike", "pos_current", "neg_current")

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.tc_rise < self.tc_decay:
            raise ValueError(f"tc_rise {self.tc_rise} ms and tc_decay {self.tc_decay} ms: 0 < tc_rise < tc_decay")
        _check_mode("spike_interp_mode", self.spike_interp_mode)

    def terms(self, step_time):
        return (
            Term("pos_current", 1.0, "expdecay", self.tc_decay),
            Term("neg_current", -1.0, "expdecay", self.tc_rise),
        )

    def step(self, past, inputs, step_time):
        charge = self.spike_charge / (self.tc_decay - self.tc_rise)

        def moved(name: str, time_constant: float) -> Float[Array, "b ..."]:
            return past[name] * math.exp(-step_time / time_constant) + charge * _real(inputs[0], past[name])

        return {
            "spike": inputs[0] != 0,
            "pos_current": moved("pos_current", self.tc_decay),
            "neg_current": moved("neg_current", self.tc_rise),
        }


def _real(x: Shaped[Array, "*n"], like: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return x.astype(like.dtype)
