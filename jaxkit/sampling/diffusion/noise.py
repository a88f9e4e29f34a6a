"""The forward process of diffusion: how much noise each time step has, and what a network predicts of it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from pydantic import TypeAdapter, ValidationError

from jaxkit.errors import ConfigError
from jaxkit.spelling import nearest

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["leading", "trailing", "linspace"]
Variance = Literal["fixed_small", "fixed_small_log", "fixed_large"]

# what a scheduler_config.json may also say, with the values that are computed here
_FIXED = {
    "thresholding": (False,),
    "algorithm_type": ("dpmsolver++",),
    "solver_type": ("midpoint",),
    "solver_order": (2,),
    "skip_prk_steps": (True,),
    "euler_at_final": (False,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "lambda_min_clipped": (float("-inf"),),
}
# read by Solver.from_config, or without a meaning once the above are as they are
_ELSEWHERE = ("use_karras_sigmas", "lower_order_final", "final_sigmas_type")
_SILENT = (
    *("_class_name", "_diffusers_version", "_name_or_path", "sample_max_value", "dynamic_thresholding_ratio"),
    *("flow_shift", "time_shift_type"),
    # of UniPC, which is none of the solvers here: another samples from what it was trained with
    *("predict_x0", "solver_p", "disable_corrector", "use_timestep_scaling"),
    # of LCM, as well
    *("original_inference_steps", "timestep_scaling"),
)
_CLIPPING = ("DDIMScheduler", "DDPMScheduler")
_LEADING = (*_CLIPPING, "PNDMScheduler")


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The forward process ``x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε``, by the keys of diffusers' scheduler_config.json.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020; ``v``: Salimans & Ho, "Progressive
    Distillation", ICLR 2022; zero terminal SNR: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are
    Flawed", WACV 2024, algorithm 1.

    Args:
        num_train_timesteps: time steps, ``T``.
        beta_start: of ``linear`` and ``scaled_linear``.
        beta_end: of the same.
        beta_schedule: ``β`` grows linearly, its root does, or ``ᾱ`` falls as a squared cosine.
        trained_betas: ``T`` betas in place of these.
        prediction_type: what the network predicts.
        rescale_betas_zero_snr: nothing is left of the image at the last time step.
        steps_offset: of ``leading``: added to the time steps.
        timestep_spacing: which time steps a solver visits.
        set_alpha_to_one: DDIM and PNDM end at ``ᾱ = 1``, and not at ``ᾱ_0``.
        clip_sample: DDIM and DDPM clip ``x_0`` to ``± clip_sample_range``.
        clip_sample_range: the bound.
        variance_type: of DDPM's noise.

    Raises:
        ConfigError: for values that are unknown, out of range or contradict each other.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: PredictionType = "epsilon"
    rescale_betas_zero_snr: bool = False
    steps_offset: int = 0
    timestep_spacing: Spacing = "leading"
    set_alpha_to_one: bool = True
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    variance_type: Variance = "fixed_small"

    def __post_init__(self):
        kinds = {
            "beta_schedule": BetaSchedule,
            "prediction_type": PredictionType,
            "timestep_spacing": Spacing,
            "variance_type": Variance,
        }
        for name, kind in kinds.items():
            given, known = getattr(self, name), get_args(kind)
            if given not in known:
                listed = ", ".join(known)
                raise ConfigError(f"scheduler.{name}: {given!r} is not computed{nearest(given, known)}; {listed}")
        if self.num_train_timesteps < 2:
            raise ConfigError(f"scheduler.num_train_timesteps: must be 2 or more, got {self.num_train_timesteps}")
        if not 0 <= self.steps_offset < self.num_train_timesteps:
            raise ConfigError(f"scheduler.steps_offset: must be 0 to the time steps, got {self.steps_offset}")
        if not self.clip_sample_range > 0:
            raise ConfigError(f"scheduler.clip_sample_range: must be above 0, got {self.clip_sample_range}")
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            count = len(self.trained_betas)
            raise ConfigError(f"scheduler.trained_betas: {count} of them for {self.num_train_timesteps} time steps")
        if not np.all((self._betas > 0) & (self._betas < 1)):
            raise ConfigError("scheduler: every beta must be between 0 and 1; see beta_start, beta_end, trained_betas")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ConfigError(
                "scheduler.rescale_betas_zero_snr: at the last time step there is only noise, of which epsilon says "
                "nothing; set prediction_type to v_prediction or sample"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """Reads a scheduler_config.json, of whichever scheduler; absent keys are as in the class that it names.

        Raises:
            ConfigError: for a key that is unknown, or a value that is not computed.
        """
        name = config.get("_class_name", "DDIMScheduler")
        known = [field.name for field in fields(cls)]
        values = {
            "clip_sample": name in _CLIPPING,
            "timestep_spacing": "leading" if name in _LEADING else "linspace",
            "set_alpha_to_one": name != "PNDMScheduler",
        }
        for key, value in config.items():
            if key in known:
                values[key] = value
            elif key in _SILENT + _ELSEWHERE:
                continue
            elif key not in _FIXED:
                raise ConfigError(f"scheduler.{key}: unknown{nearest(key, (*known, *_FIXED))}")
            elif value not in _FIXED[key]:
                raise ConfigError(f"scheduler.{key}: {value!r} is not computed; only {_FIXED[key][0]!r} is")
        if values.get("variance_type", "") is None:
            del values["variance_type"]
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"scheduler.{where}: {first['msg']}, got {first['input']!r}") from error

    @property
    def _betas(self) -> Float[np.ndarray, " t"]:
        if self.trained_betas is not None:
            return np.asarray(self.trained_betas, np.float32)
        count = self.num_train_timesteps
        match self.beta_schedule:
            case "linear":
                betas = np.linspace(self.beta_start, self.beta_end, count)
            case "scaled_linear":
                # squared after rounding, as in diffusers
                betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, count).astype(np.float32) ** 2
            case "squaredcos_cap_v2":
                kept = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
                betas = np.minimum(1 - kept[1:] / kept[:-1], 0.999)
        return betas.astype(np.float32)

    @cached_property
    def alphas_cumprod(self) -> Float[np.ndarray, " t"]:
        """``ᾱ`` of each time step, float32, from betas of float32, as networks were trained with."""
        kept = np.cumprod(1 - self._betas, dtype=np.float64).astype(np.float32)
        if self.rescale_betas_zero_snr:
            roots = np.sqrt(kept)
            kept = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
        return kept

    def signal_and_noise(
        self, timesteps: Int[Array, " b"], rank: int
    ) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
        """``√ᾱ_t`` and ``√(1 - ᾱ_t)``, float32, to be multiplied with arrays of so many axes."""
        kept = jnp.asarray(self.alphas_cumprod)[timesteps].reshape(-1, *[1] * (rank - 1))
        return jnp.sqrt(kept), jnp.sqrt(1 - kept)

    def snr(self, timesteps: Int[Array, " b"]) -> Float[Array, " b"]:
        """``ᾱ_t / (1 - ᾱ_t)``; 0 at the last time step of zero terminal SNR."""
        kept = jnp.asarray(self.alphas_cumprod)[timesteps]
        return kept / (1 - kept)

    def add_noise(
        self, latents: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], timesteps: Int[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """Takes latents to their time steps: ``x_t``, float32. It is the training's own, whatever solver samples."""
        signal, spread = self.signal_and_noise(timesteps, latents.ndim)
        return signal * latents + spread * noise

    def target(
        self, latents: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], timesteps: Int[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """What the network is to predict: ``ε``, ``v = √ᾱ_t ε - √(1 - ᾱ_t) x_0``, or ``x_0``."""
        match self.prediction_type:
            case "epsilon":
                return noise
            case "sample":
                return latents
        signal, spread = self.signal_and_noise(timesteps, latents.ndim)
        return signal * noise - spread * latents

    def clean(
        self, prediction: Float[Array, "b h w c"], noisy: Float[Array, "b h w c"], timesteps: Int[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """``x_0`` by a prediction at ``x_t``."""
        signal, spread = self.signal_and_noise(timesteps, noisy.ndim)
        match self.prediction_type:
            case "epsilon":
                return (noisy - spread * prediction) / signal
            case "sample":
                return prediction
        return signal * noisy - spread * prediction

    def noise(
        self, prediction: Float[Array, "b h w c"], noisy: Float[Array, "b h w c"], timesteps: Int[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """``ε`` by a prediction at ``x_t``."""
        signal, spread = self.signal_and_noise(timesteps, noisy.ndim)
        match self.prediction_type:
            case "epsilon":
                return prediction
            case "sample":
                return (noisy - signal * prediction) / spread
        return signal * prediction + spread * noisy
