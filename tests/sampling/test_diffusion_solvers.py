import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkit.errors import ConfigError
from jaxkit.sampling.diffusion.noise import NoiseSchedule
from jaxkit.sampling.diffusion.solvers import Solver
from jaxkit.sampling.diffusion.text_to_image import guided, sample_latents, sample_trajectory

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        PNDMScheduler,
    )
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
    from diffusers.schedulers import scheduling_ddpm

# diffusers' schedulers have numpy read tensors as numpy 1 did
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SCHEDULERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}
# scheduler_config.json of the three, without the class
SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SD2 = SD | {"prediction_type": "v_prediction"}
SDXL = SD | {
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
SHAPE = (2, 3, 3, 4)
# Of the largest latent of each step. Coefficients here are worked out in float64, those of diffusers in float32; 1.1e-6
# at most was measured, and other processors order their sums otherwise.
TOLERANCE = 4e-6


def network(time, x):
    """A fixed random linear map that depends on the time, in either library: only sums and products."""
    mix = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32) * 0.2
    return x @ (torch.from_numpy(mix) if isinstance(x, torch.Tensor) else mix) * (1 - time * 5e-4)


def start(seed=1):
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def noises(calls):
    return np.random.default_rng(2).normal(size=(calls, *SHAPE)).astype(np.float32)


def theirs(scheduler, solver, monkeypatch):
    scheduler.set_timesteps(solver.steps)
    x = torch.from_numpy(start()) * scheduler.init_noise_sigma
    noise = torch.from_numpy(noises(len(scheduler.timesteps)))
    trajectory = []
    for index, time in enumerate(scheduler.timesteps):
        prediction = network(float(time), scheduler.scale_model_input(x, time))
        options = {"eta": solver.eta, "variance_noise": noise[index]} if solver.eta else {}
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, i=index, **__: noise[i])
        x = scheduler.step(prediction, time, x, **options).prev_sample
        trajectory.append(x.numpy())
    return np.stack(trajectory)


def ours(schedule, solver):
    predict = lambda x, time: network(time[0], x)  # noqa: E731
    calls = len(solver.plan(schedule).time)
    with jax.default_matmul_precision("highest"):
        return sample_trajectory(
            jax.random.key(0), predict, jnp.asarray(start()), schedule, solver, noise=jnp.asarray(noises(calls))
        )


def compare(config, solver, monkeypatch, tolerance=TOLERANCE):
    options = {"use_karras_sigmas": solver.karras, "final_sigmas_type": solver.final_sigma}
    options["lower_order_final"] = solver.lower_order_final
    extra = options if solver.method in ("euler", "dpmpp_2m") else {}
    scheduler = SCHEDULERS[solver.method].from_config(config | extra)
    expected = theirs(scheduler, solver, monkeypatch)
    schedule = NoiseSchedule.from_config(json.loads(scheduler.to_json_string()))
    # whole ones are equal; those of Karras come of logarithms in float32
    np.testing.assert_allclose(solver.plan(schedule).time, scheduler.timesteps.numpy(), rtol=5e-7)
    assert solver.start_scale(schedule) == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-5)
    found = np.asarray(ours(schedule, solver))
    # each step against its own size: those of euler begin 15 times as large
    size = np.abs(expected).max(axis=(1, 2, 3, 4), keepdims=True)
    assert np.max(np.abs(found - expected) / size) < tolerance


@pytest.mark.parametrize("method", SCHEDULERS)
@pytest.mark.parametrize(("config", "steps"), [(SD, 50), (SD2, 20), (SDXL, 4)])
def test_every_solver_follows_diffusers_step_by_step(method, config, steps, monkeypatch):
    compare(config, Solver(method=method, steps=steps), monkeypatch)


# diffusers has no PNDM of samples: see the test of predictions in any form
KINDS = [(m, k) for m in SCHEDULERS for k in ("epsilon", "v_prediction", "sample") if (m, k) != ("pndm", "sample")]


@pytest.mark.parametrize(("method", "prediction_type"), KINDS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_spacing_and_prediction_follows_diffusers(method, spacing, prediction_type, monkeypatch):
    config = SD | {"timestep_spacing": spacing, "prediction_type": prediction_type}
    compare(config, Solver(method=method, steps=7), monkeypatch)


@pytest.mark.parametrize(
    "solver",
    [
        Solver(method="euler", steps=12, karras=True),
        Solver(method="dpmpp_2m", steps=12, karras=True),
        Solver(method="dpmpp_2m", steps=9, final_sigma="sigma_min"),
        Solver(method="dpmpp_2m", steps=9, final_sigma="sigma_min", lower_order_final=False),
        Solver(method="dpmpp_2m", steps=17, final_sigma="sigma_min", karras=True),
        Solver(method="euler", steps=9, final_sigma="sigma_min"),
        Solver(method="ddim", steps=10, eta=1.0),
        Solver(method="ddim", steps=10, eta=0.3),
        Solver(method="dpmpp_2m", steps=1),
        Solver(method="pndm", steps=2),
    ],
    ids=str,
)
def test_options_of_solvers_follow_diffusers(solver, monkeypatch):
    compare(SD, solver, monkeypatch)


@pytest.mark.parametrize("method", ["ddim", "ddpm", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_sampling_from_no_signal_at_all_follows_diffusers(method, prediction_type, monkeypatch):
    config = SD | {
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
    # euler starts at σ = 4096 and subtracts nearly all of it in the first step: 2e-5 is left of float32's digits
    compare(config, Solver(method=method, steps=8), monkeypatch, 6e-5 if method == "euler" else TOLERANCE)


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_clipping_follows_diffusers(method, monkeypatch):
    compare(SD | {"clip_sample": True, "clip_sample_range": 0.5}, Solver(method=method, steps=6), monkeypatch)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
def test_ddpm_s_noise_follows_diffusers(variance_type, beta_schedule, monkeypatch):
    # a cosine's last ᾱ of 2e-9 divides epsilon by 5e-5: samples are taken instead
    config = SD | {"variance_type": variance_type, "beta_schedule": beta_schedule, "prediction_type": "sample"}
    compare(config, Solver(method="ddpm", steps=10), monkeypatch)


@pytest.mark.parametrize("method", SCHEDULERS)
def test_predictions_of_one_network_in_any_form_give_the_same_samples(method):
    solver = Solver(method=method, steps=10)
    epsilon, clean = (NoiseSchedule(**BETAS, prediction_type=kind) for kind in ("epsilon", "sample"))
    predict = lambda x, time: network(time[0], x)  # noqa: E731

    def predict_clean(x, time):
        kept = jnp.interp(time, jnp.arange(1000.0), clean.alphas_cumprod)[:, None, None, None]
        if method == "euler":  # between time steps it is the noise level that is interpolated
            level = jnp.interp(time, jnp.arange(1000.0), jnp.sqrt(1 / clean.alphas_cumprod - 1))
            kept = (1 / (1 + level**2))[:, None, None, None]
        return (x - jnp.sqrt(1 - kept) * predict(x, time)) / jnp.sqrt(kept)

    run = lambda network, schedule: sample_latents(  # noqa: E731
        jax.random.key(3), network, jnp.asarray(start()), schedule, solver
    )
    expected = run(predict, epsilon)
    # there and back between the forms in float32, near pure noise
    np.testing.assert_allclose(run(predict_clean, clean), expected, atol=1e-4 * np.abs(expected).max())


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 60),
    method=st.sampled_from(sorted(SCHEDULERS)),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
    karras=st.booleans(),
    kind=st.sampled_from(["epsilon", "v_prediction", "sample"]),
)
def test_a_network_that_knows_the_image_leads_every_solver_to_it(steps, method, spacing, karras, kind):
    schedule = NoiseSchedule(**BETAS, timestep_spacing=spacing, prediction_type=kind)
    solver = Solver(method=method, steps=steps, karras=karras and method in ("euler", "dpmpp_2m"))
    plan = solver.plan(schedule)
    assert all(np.isfinite(column).all() for column in plan)
    if method == "pndm" or (method == "ddim" and spacing == "trailing" and 1000 % steps):
        return  # PNDM extrapolates; DDIM's last step is as long as the others, rounded down, and may not reach the end
    # x_0 is q, in numpy: the solver's own state and the image it is told, whatever the state
    x, history = start() * solver.start_scale(schedule), np.zeros((3, *SHAPE))
    for row in zip(*plan, strict=True):
        _, _, q_sample, q_prediction, sample, first, prediction, weights, _, _ = row
        p = (1.0 - q_sample * x) / q_prediction
        known = np.concatenate([np.ones((1, *SHAPE)), history])
        x, history = sample * x + first * start() + prediction * p + np.tensordot(weights, known, 1), known[:-1]
    # the prediction divides by the least √(1 - ᾱ), 0.03: that loses two of float32's seven digits
    assert np.abs(x - 1).max() < 1e-3


def test_guidance_asks_without_the_text_first_and_rescales_as_diffusers_does():
    seen = []

    def network(x, time, conditions):
        seen.append(conditions["text"])
        return x * conditions["text"][:, :, :, None]

    text = jnp.asarray(np.random.default_rng(4).normal(size=(2, 3, 3)), jnp.float32)
    x, time = jnp.asarray(start()), jnp.zeros(2)
    plain = guided(network, {"text": text}, {"text": jnp.zeros((1, 3, 3))}, 7.5)(x, time)
    np.testing.assert_array_equal(seen[0], np.concatenate([np.zeros((2, 3, 3)), text]))
    conditional = x * text[..., None]
    np.testing.assert_allclose(plain, 7.5 * conditional, rtol=1e-6)
    rescaled = guided(network, {"text": text}, {"text": jnp.zeros((1, 3, 3))}, 7.5, 0.7)(x, time)
    expected = rescale_noise_cfg(*(torch.from_numpy(np.array(y)) for y in (plain, conditional)), guidance_rescale=0.7)
    np.testing.assert_allclose(rescaled, expected.numpy(), rtol=1e-5)
    with pytest.raises(ConfigError, match="guidance_rescale: must be 0 to 1"):
        guided(network, text, text, 2.0, 1.5)


def test_the_key_decides_the_noise_and_nothing_else_does():
    schedule, latents = NoiseSchedule(**BETAS), jnp.asarray(start())
    predict = lambda x, time: network(time[0], x)  # noqa: E731
    run = jax.jit(lambda key: sample_latents(key, predict, latents, schedule, Solver(method="ddpm", steps=5)))
    assert np.array_equal(run(jax.random.key(0)), run(jax.random.key(0)))
    assert not np.allclose(run(jax.random.key(0)), run(jax.random.key(1)))


def test_a_config_names_its_solver():
    karras = {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
    assert Solver.from_config(karras, 20) == Solver(method="dpmpp_2m", steps=20, karras=True)
    assert Solver.from_config(SD | {"_class_name": "PNDMScheduler"}) == Solver(method="pndm")
    with pytest.raises(ConfigError, match="did you mean 'EulerDiscreteScheduler'"):
        Solver.from_config({"_class_name": "EulerAncestralDiscreteScheduler"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: must be 1 or more"),
        ({"eta": 1.5}, "eta: must be 0 to 1"),
        ({"method": "euler", "eta": 0.5}, "eta: is for ddim"),
        ({"karras": True}, "karras and final_sigma are for"),
        ({"method": "dpmpp_2m", "lower_order_final": False}, "with final_sigma sigma_min"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Solver(**options)


@pytest.mark.parametrize(
    ("solver", "schedule", "message"),
    [
        (Solver(method="euler"), {"clip_sample": True}, "euler does not clip"),
        (Solver(method="pndm"), {"rescale_betas_zero_snr": True, "prediction_type": "sample"}, "take ddim"),
        (Solver(steps=1001), {}, "must be 1000 or less"),
        (Solver(steps=1000), {"steps_offset": 1}, "take less steps"),
    ],
)
def test_a_schedule_that_a_solver_cannot_follow_is_refused(solver, schedule, message):
    with pytest.raises(ConfigError, match=message):
        solver.plan(NoiseSchedule(**schedule))
