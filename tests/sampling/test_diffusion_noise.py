import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit.errors import ConfigError
from jaxkit.sampling.diffusion.noise import NoiseSchedule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

SHAPE = (6, 2, 2, 4)
TIMES = jnp.asarray([0, 1, 250, 500, 998, 999])
SCHEDULES = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": tuple(np.linspace(0.001, 0.01, 1000).tolist())},
]


def arrays(count):
    return [jnp.asarray(np.random.default_rng(seed).normal(size=SHAPE), jnp.float32) for seed in range(count)]


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("config", SCHEDULES, ids=str)
def test_the_forward_process_is_that_of_diffusers(config, zero_snr):
    config = config | {"rescale_betas_zero_snr": zero_snr, "prediction_type": "v_prediction"}
    theirs, schedule = DDPMScheduler(**config), NoiseSchedule(**config)
    # diffusers has its betas from float32 arithmetic, and takes ᾱ apart into betas and together again: 12 roundings
    np.testing.assert_allclose(schedule.alphas_cumprod, theirs.alphas_cumprod, atol=7.5e-7)
    latents, noise = arrays(2)
    given = [torch.from_numpy(np.array(x)) for x in (latents, noise, TIMES)]
    # the root of ᾱ = 1e-6 has half its digits; 1 - ᾱ = 4e-5 has three
    np.testing.assert_allclose(schedule.add_noise(latents, noise, TIMES), theirs.add_noise(*given), atol=3e-5)
    np.testing.assert_allclose(schedule.target(latents, noise, TIMES), theirs.get_velocity(*given), atol=3e-5)
    np.testing.assert_allclose(schedule.snr(TIMES), compute_snr(theirs, given[2].long()), rtol=4e-3, atol=3e-7)


def test_nothing_is_left_of_the_image_at_zero_terminal_snr():
    schedule = NoiseSchedule(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    latents, noise = arrays(2)
    last = jnp.full(len(latents), 999)
    assert schedule.alphas_cumprod[-1] == 0
    np.testing.assert_array_equal(schedule.add_noise(latents, noise, last), noise)
    np.testing.assert_array_equal(schedule.target(latents, noise, last), -latents)
    np.testing.assert_array_equal(schedule.snr(last), 0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_right_prediction_gives_back_the_image_and_the_noise(kind, zero_snr):
    if kind == "epsilon" and zero_snr:
        with pytest.raises(ConfigError, match="set prediction_type to v_prediction or sample"):
            NoiseSchedule(prediction_type=kind, rescale_betas_zero_snr=True)
        return
    schedule = NoiseSchedule(prediction_type=kind, rescale_betas_zero_snr=zero_snr)
    latents, noise = arrays(2)
    noisy = schedule.add_noise(latents, noise, TIMES)
    prediction = schedule.target(latents, noise, TIMES)
    # divided by √ᾱ = 0.006 at the last time step or √(1 - ᾱ) = 0.01 at the first
    np.testing.assert_allclose(schedule.clean(prediction, noisy, TIMES), latents, atol=1e-4)
    np.testing.assert_allclose(schedule.noise(prediction, noisy, TIMES), noise, atol=1e-4)


def test_absent_keys_are_those_of_the_class():
    of = lambda name: NoiseSchedule.from_config({"_class_name": name})  # noqa: E731
    assert of("DDPMScheduler").clip_sample
    assert not of("PNDMScheduler").set_alpha_to_one
    assert of("EulerDiscreteScheduler").timestep_spacing == "linspace"
    assert NoiseSchedule.from_config({"variance_type": None}).variance_type == "fixed_small"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_strat": 0.1}, "beta_strat: unknown, did you mean 'beta_start'"),
        ({"beta_schedule": "scaled"}, "beta_schedule.*'scaled_linear'"),
        ({"prediction_type": "v"}, "prediction_type"),
        ({"thresholding": True}, "thresholding: True is not computed; only False is"),
        ({"skip_prk_steps": False}, "skip_prk_steps: False is not computed"),
        ({"beta_start": "much"}, "beta_start: .*number"),
        ({"beta_end": 1.5}, "every beta must be between 0 and 1"),
        ({"trained_betas": [0.1, 0.2]}, "2 of them for 1000"),
        ({"num_train_timesteps": 1}, "2 or more"),
        ({"steps_offset": -1}, "steps_offset"),
        ({"clip_sample_range": 0.0}, "above 0"),
        ({"variance_type": "learned"}, "variance_type"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(config, message):
    with pytest.raises(ConfigError, match=message):
        NoiseSchedule.from_config(config)
