"""Solvers of the reverse process, each a table of coefficients: a step is a sum of what is known, times numbers.

The coefficients are worked out on the host in float64, so that a compiled step multiplies and adds, and no difference
of logarithms is ever taken in float32.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from jaxkit.errors import ConfigError
from jaxkit.sampling.diffusion.noise import NoiseSchedule
from jaxkit.sampling.diffusion.visits import karras_sigmas, sigma_table, times_of, visited
from jaxkit.spelling import nearest

Method = Literal["ddim", "ddpm", "pndm", "euler", "dpmpp_2m"]
FinalSigma = Literal["zero", "sigma_min"]
BY_SIGMA = ("euler", "dpmpp_2m")
CLASSES = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}
# below so many steps the last of DPM-Solver++ is of first order; diffusers' number
FEW = 15
# Adams-Bashforth of orders 1 to 4, the newest first
ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


class Plan(NamedTuple):
    """A step's coefficients, an entry a call of the network, float32.

    With ``p = network(input x, time)`` and ``q = clip(q_sample x + q_prediction p)`` the next ``x`` is
    ``sample x + first x_0 + prediction p + history · (q, q' , q'', q''') + noise n``, where ``x_0`` is the state before
    the first step, ``q'`` and so on are the newest earlier ones with ``keep``, and ``n`` is normal.
    """

    time: Float[np.ndarray, " t"]
    input: Float[np.ndarray, " t"]
    q_sample: Float[np.ndarray, " t"]
    q_prediction: Float[np.ndarray, " t"]
    sample: Float[np.ndarray, " t"]
    first: Float[np.ndarray, " t"]
    prediction: Float[np.ndarray, " t"]
    history: Float[np.ndarray, "t 4"]
    keep: Float[np.ndarray, " t"]
    noise: Float[np.ndarray, " t"]


@dataclass(frozen=True, kw_only=True)
class Solver:
    """How latents are sampled; equal ones hash equally.

    - ``ddim``: Song et al., "Denoising Diffusion Implicit Models", ICLR 2021, equation 12.
    - ``ddpm``: Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, equation 7.
    - ``pndm``: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", ICLR 2022: the linear
      multistep from the start, as in Stable Diffusion (``skip_prk_steps``), the second step taken twice.
    - ``euler``: Karras et al., "Elucidating the Design Space", NeurIPS 2022, algorithm 2 without churn.
    - ``dpmpp_2m``: Lu et al., "DPM-Solver++", 2022, algorithm 2, midpoint form.

    Args:
        method: of the above.
        steps: time steps; calls of the network, of which ``pndm`` makes one more.
        eta: of ``ddim``: the share of DDPM's noise, 0 to 1.
        karras: of ``euler`` and ``dpmpp_2m``: noise levels by Karras et al., equation 5, ρ = 7.
        final_sigma: of the same: where the last step ends.
        lower_order_final: of ``dpmpp_2m`` with ``sigma_min``: with less than 15 steps the last is of first order. With
            ``zero`` it always is.

    Raises:
        ConfigError: for options that are unknown, out of range or contradict each other.
    """

    method: Method = "ddim"
    steps: int = 50
    eta: float = 0.0
    karras: bool = False
    final_sigma: FinalSigma = "zero"
    lower_order_final: bool = True

    def __post_init__(self):
        for name, kinds in (("method", get_args(Method)), ("final_sigma", get_args(FinalSigma))):
            if (given := getattr(self, name)) not in kinds:
                known = ", ".join(kinds)
                raise ConfigError(f"solver.{name}: {given!r} is unknown{nearest(given, kinds)}; {known}")
        if operator.index(self.steps) < 1:
            raise ConfigError(f"solver.steps: must be 1 or more, got {self.steps!r}")
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"solver.eta: must be 0 to 1, got {self.eta!r}")
        if self.eta and self.method != "ddim":
            raise ConfigError(f"solver.eta: is for ddim, not for {self.method}; leave it out")
        if self.method not in BY_SIGMA and (self.karras or self.final_sigma != "zero"):
            raise ConfigError(f"solver: karras and final_sigma are for {' and '.join(BY_SIGMA)}, not for {self.method}")
        if not self.lower_order_final and (self.method != "dpmpp_2m" or self.final_sigma == "zero"):
            raise ConfigError("solver.lower_order_final: is for dpmpp_2m with final_sigma sigma_min; leave it out")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], steps: int = 50) -> "Solver":
        """Reads the solver that a scheduler_config.json is of.

        Raises:
            ConfigError: for the class of another solver.
        """
        name = config.get("_class_name")
        if name not in CLASSES:
            known = ", ".join(CLASSES)
            raise ConfigError(f"scheduler._class_name: {name!r} is not computed{nearest(str(name), CLASSES)}; {known}")
        method = CLASSES[name]
        if method not in BY_SIGMA:
            return cls(method=method, steps=steps)
        final = config.get("final_sigmas_type", "zero")
        low = config.get("lower_order_final", True) or method != "dpmpp_2m" or final == "zero"
        karras = bool(config.get("use_karras_sigmas"))
        return cls(method=method, steps=steps, karras=karras, final_sigma=final, lower_order_final=low)

    def plan(self, schedule: NoiseSchedule) -> Plan:
        """Works out the coefficients of every step.

        Raises:
            ConfigError: where the solver cannot follow the schedule.
        """
        if schedule.clip_sample and self.method not in ("ddim", "ddpm"):
            raise ConfigError(
                f"scheduler.clip_sample: {self.method} does not clip; take ddim or ddpm, or set it to false"
            )
        if schedule.rescale_betas_zero_snr and self.method == "pndm":
            raise ConfigError("solver.method: pndm divides by the signal, 0 with rescale_betas_zero_snr; take ddim")
        rows = {"ddim": _ddim, "ddpm": _ddpm, "pndm": _pndm, "euler": _euler, "dpmpp_2m": _dpmpp_2m}
        columns = zip(*rows[self.method](self, schedule), strict=True)
        return Plan(*(np.asarray(column, np.float32) for column in columns))

    def start_scale(self, schedule: NoiseSchedule) -> float:
        """What normal noise is multiplied by to start from: 1, and of ``euler`` about the largest sigma."""
        if self.method != "euler":
            return 1.0
        largest = float(self.sigmas(schedule)[1].max())
        return (largest**2 + 1) ** 0.5 if schedule.timestep_spacing == "leading" else largest

    def sigmas(self, schedule: NoiseSchedule) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t1"]]:
        """The time steps of ``euler`` and ``dpmpp_2m``, and their noise levels with the last step's end."""
        table = sigma_table(schedule)
        times = visited(schedule, self.steps, self.method)
        levels = np.interp(times, np.arange(len(table)), table)
        if self.karras:
            # Euler's go between the levels that it visits, DPM-Solver++'s between all
            ends = levels if self.method == "euler" else table[::-1]
            levels = karras_sigmas(ends[0], ends[-1], self.steps)
            times = times_of(levels, table)
            if self.method == "dpmpp_2m" and schedule.beta_schedule != "squaredcos_cap_v2":
                times = times.round()
        if self.method == "dpmpp_2m":
            times = np.trunc(times)
        return times, np.append(levels, 0.0 if self.final_sigma == "zero" else table[0])


def _conversion(schedule: NoiseSchedule, kept: float) -> tuple[float, float, float, float]:
    """What ``x`` and the prediction are multiplied by to give ``x_0``, and then to give ``ε``."""
    signal, spread = kept**0.5, (1 - kept) ** 0.5
    match schedule.prediction_type:
        case "epsilon":
            return 1 / signal, -spread / signal, 0.0, 1.0
        case "sample":
            return 0.0, 1.0, 1 / spread, -signal / spread
    return signal, -spread, spread, signal


def _kept(schedule: NoiseSchedule, time: float) -> float:
    last = 1.0 if schedule.set_alpha_to_one else schedule.alphas_cumprod[0]
    return float(schedule.alphas_cumprod[int(time)] if time >= 0 else last)


def _ddim(solver: Solver, schedule: NoiseSchedule) -> list[Plan]:
    rows = []
    for time in visited(schedule, solver.steps, "ddim"):
        now, then = _kept(schedule, time), _kept(schedule, time - schedule.num_train_timesteps // solver.steps)
        x_sample, x_prediction, e_sample, e_prediction = _conversion(schedule, now)
        variance = solver.eta**2 * (1 - then) / (1 - now) * (1 - now / then)
        along = max(1 - then - variance, 0.0) ** 0.5
        history = (then**0.5, 0.0, 0.0, 0.0)
        sizes = (along * e_sample, 0.0, along * e_prediction, history, 1.0, max(variance, 0.0) ** 0.5)
        rows.append(Plan(time, 1.0, x_sample, x_prediction, *sizes))
    return rows


def _ddpm(solver: Solver, schedule: NoiseSchedule) -> list[Plan]:
    times = visited(schedule, solver.steps, "ddpm")
    rows = []
    for time, after in zip(times, [*times[1:], -1], strict=True):
        now, then = _kept(schedule, time), (_kept(schedule, after) if after >= 0 else 1.0)
        x_sample, x_prediction, _, _ = _conversion(schedule, now)
        beta = 1 - now / then
        variance = beta if schedule.variance_type == "fixed_large" else max((1 - then) / (1 - now) * beta, 1e-20)
        history = (then**0.5 * beta / (1 - now), 0.0, 0.0, 0.0)
        sample = (now / then) ** 0.5 * (1 - then) / (1 - now)
        spread = variance**0.5 if time > 0 else 0.0
        rows.append(Plan(time, 1.0, x_sample, x_prediction, sample, 0.0, 0.0, history, 1.0, spread))
    return rows


def _pndm(solver: Solver, schedule: NoiseSchedule) -> list[Plan]:
    stride = schedule.num_train_timesteps // solver.steps
    times = visited(schedule, solver.steps, "pndm")
    times = np.concatenate([times[:1], times[1:2], times[1:]])
    rows = []
    for index, time in enumerate(times):
        # the second call mends the first step, with its own slope and the first's
        again = index == 1
        start, end = (time + stride, time) if again else (time, time - stride)
        now, then = _kept(schedule, start), _kept(schedule, end)
        slope = -(then - now) / (now * (1 - then) ** 0.5 + (now * (1 - now) * then) ** 0.5)
        sample, factor, quantity = (then / now) ** 0.5, slope, (0.0, 1.0)
        if schedule.prediction_type == "v_prediction":
            sample, factor = sample + slope * (1 - now) ** 0.5, slope * now**0.5
        elif schedule.prediction_type == "sample":
            quantity = _conversion(schedule, _kept(schedule, time))[2:]
        weights = (0.5, 0.5) if again else ADAMS[min(max(index - 1, 0), 3)]
        history = tuple(np.pad(np.multiply(weights, factor), (0, 4 - len(weights))))
        sizes = (0.0, sample) if again else (sample, 0.0)
        rows.append(Plan(time, 1.0, *quantity, *sizes, 0.0, history, float(not again), 0.0))
    return rows


def _euler(solver: Solver, schedule: NoiseSchedule) -> list[Plan]:
    times, sigmas = solver.sigmas(schedule)
    rows = []
    for time, now, then in zip(times, sigmas[:-1], sigmas[1:], strict=True):
        scale = (now**2 + 1) ** -0.5
        x_sample, x_prediction = {
            "epsilon": (1.0, -now),
            "sample": (0.0, 1.0),
            "v_prediction": (scale**2, -now * scale),
        }[schedule.prediction_type]
        history = (1 - then / now, 0.0, 0.0, 0.0)
        rows.append(Plan(time, scale, x_sample, x_prediction, then / now, 0.0, 0.0, history, 1.0, 0.0))
    return rows


def _dpmpp_2m(solver: Solver, schedule: NoiseSchedule) -> list[Plan]:
    times, sigmas = solver.sigmas(schedule)
    first_order_last = solver.final_sigma == "zero" or (solver.lower_order_final and solver.steps < FEW)
    rows = []
    for index, time in enumerate(times):
        now, then = sigmas[index : index + 2]
        # a step h of the logarithm of signal over noise: exp(-h) = then / now
        shrink, signal = then / now, (then**2 + 1) ** -0.5
        x_sample, x_prediction, _, _ = _conversion(schedule, 1 / (now**2 + 1))
        whole, bend = signal * (1 - shrink), 0.0
        if index > 0 and not (first_order_last and index == solver.steps - 1) and then != now:
            bend = 0.5 * whole * np.log(now / then) / np.log(sigmas[index - 1] / now)
        sample = shrink * signal * (now**2 + 1) ** 0.5
        history = (whole + bend, -bend, 0.0, 0.0)
        rows.append(Plan(time, 1.0, x_sample, x_prediction, sample, 0.0, 0.0, history, 1.0, 0.0))
    return rows
