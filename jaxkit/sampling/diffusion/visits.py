"""Which time steps a solver visits, and the noise levels between them."""

import numpy as np
from jaxtyping import Float

from jaxkit.errors import ConfigError
from jaxkit.sampling.diffusion.noise import NoiseSchedule

RHO = 7.0
# in place of no signal at all, of which the noise level would be infinite; diffusers' number
LEAST_KEPT = 2.0**-24


def visited(schedule: NoiseSchedule, steps: int, method: str) -> Float[np.ndarray, " t"]:
    """Lists time steps, the noisiest first, as diffusers' scheduler of the method does.

    They are whole but for ``euler`` with ``linspace``. ``dpmpp_2m`` divides the time by one step more and leaves the
    last out.

    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", WACV 2024, table 2.

    Raises:
        ConfigError: for more steps than the schedule has.
    """
    total = schedule.num_train_timesteps
    count = steps + 1 if method == "dpmpp_2m" else steps
    most = total - count + steps
    if steps > most:
        raise ConfigError(f"solver.steps: must be {most} or less with {method} and {total} time steps, got {steps}")
    match schedule.timestep_spacing:
        case "linspace":
            times = np.linspace(0, total - 1, count)
            times = (times if method == "euler" else times.round())[::-1]
        case "leading":
            times = (np.arange(count) * (total // count))[::-1] + schedule.steps_offset
        case "trailing":
            times = np.arange(total, 0, -total / steps).round()[:steps] - 1
    times = times[:steps].astype(np.float64)
    if times[0] >= total:
        raise ConfigError(
            f"solver.steps: {steps} of them with steps_offset {schedule.steps_offset} begin at {times[0]:.0f}, beyond "
            f"the {total} time steps; take less steps"
        )
    return times


def sigma_table(schedule: NoiseSchedule) -> Float[np.ndarray, " t"]:
    """The noise level ``σ = √((1 - ᾱ) / ᾱ)`` of every time step, float64."""
    kept = schedule.alphas_cumprod.astype(np.float64)
    if schedule.rescale_betas_zero_snr:
        kept[-1] = LEAST_KEPT
    return np.sqrt((1 - kept) / kept)


def karras_sigmas(largest: float, least: float, steps: int) -> Float[np.ndarray, " t"]:
    """Noise levels whose ``1/ρ``-th powers are evenly spaced.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, eq. 5.
    """
    return np.linspace(largest ** (1 / RHO), least ** (1 / RHO), steps) ** RHO


def times_of(sigmas: Float[np.ndarray, " t"], table: Float[np.ndarray, " n"]) -> Float[np.ndarray, " t"]:
    """The time steps, not whole, that have these noise levels, by their logarithms."""
    return np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))
