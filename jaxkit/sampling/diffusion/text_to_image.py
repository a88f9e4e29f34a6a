"""Samples latents: one compiled loop for every solver, and guidance by text."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxkit.errors import ConfigError
from jaxkit.sampling.diffusion.noise import NoiseSchedule
from jaxkit.sampling.diffusion.solvers import Plan, Solver


def sample_latents(
    key: PRNGKeyArray,
    predict: Callable,
    latents: Float[Array, "b h w c"],
    schedule: NoiseSchedule,
    solver: Solver,
    *,
    noise: Float[Array, "t b h w c"] | None = None,
) -> Float[Array, "b h w c"]:
    """Takes normal noise to latents, float32.

    Args:
        key: of the noise of ``ddpm``, and of ``ddim`` with ``eta``.
        predict: ``x [b ...], timesteps [b] -> [b ...]``, float32; of ``euler`` the time steps may not be whole.
        latents: normal noise, of deviation 1.
        schedule: that the network was trained with.
        solver: how; it decides the program, so under ``jax.jit`` it is closed over or static.
        noise: of every call, in place of the key's, to repeat what another program drew.

    Raises:
        ConfigError: where the solver cannot follow the schedule.
    """
    return sample_trajectory(key, predict, latents, schedule, solver, noise=noise)[-1]


def sample_trajectory(
    key: PRNGKeyArray,
    predict: Callable,
    latents: Float[Array, "b h w c"],
    schedule: NoiseSchedule,
    solver: Solver,
    *,
    noise: Float[Array, "t b h w c"] | None = None,
) -> Float[Array, "t b h w c"]:
    """Samples as :func:`sample_latents` does, and gives what each call led to; those of ``euler`` are ``x_0 + σ ε``."""
    plan = solver.plan(schedule)
    start = latents.astype(jnp.float32) * solver.start_scale(schedule)
    stochastic = bool(plan.noise.any())
    clip = schedule.clip_sample_range if schedule.clip_sample else None

    def step(carry, at):
        x, history = carry
        index, row, given = at
        p = predict(row.input * x, jnp.full(len(x), row.time)).astype(jnp.float32)
        q = row.q_sample * x + row.q_prediction * p
        q = q if clip is None else jnp.clip(q, -clip, clip)
        known = jnp.concatenate([q[None], history])
        x = row.sample * x + row.first * start + row.prediction * p + jnp.tensordot(row.history, known, 1)
        if stochastic:
            drawn = jax.random.normal(jax.random.fold_in(key, index), x.shape) if given is None else given
            x = x + row.noise * drawn
        history = jnp.where(row.keep > 0, known[:-1], history)
        return (x, history), x

    history = jnp.zeros((3, *start.shape), jnp.float32)
    rows = Plan(*map(jnp.asarray, plan))
    return lax.scan(step, (start, history), (jnp.arange(len(plan.time)), rows, noise))[1]


def guided(
    network: Callable, conditions: Any, empty: Any, scale: float | Float[Array, ""], rescale: float = 0.0
) -> Callable:
    """Makes a ``predict`` of :func:`sample_latents` with classifier-free guidance, ``u + g (c - u)``.

    The network is called once a step, for twice as many: without the conditions first, then with them.

    Source: Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022; ``rescale``: Lin et al., "Common Diffusion Noise
    Schedules and Sample Steps are Flawed", WACV 2024, equations 15 and 16.

    Args:
        network: ``x [2b ...], timesteps [2b], conditions -> [2b ...]``.
        conditions: any tree of arrays ``[b ...]``.
        empty: the same tree of arrays ``[b ...]`` or ``[1 ...]``, of no condition or of what is to be avoided.
        scale: ``g``.
        rescale: ``φ``, the share of the result whose deviation is brought back to that of ``c``; 0.7 is the paper's.

    Raises:
        ConfigError: for a share outside [0, 1].
    """
    if not 0 <= rescale <= 1:
        raise ConfigError(f"guidance_rescale: must be 0 to 1, got {rescale!r}")
    both = jax.tree.map(lambda no, yes: jnp.concatenate([jnp.broadcast_to(no, yes.shape), yes]), empty, conditions)

    def predict(x: Float[Array, "b h w c"], timesteps: Float[Array, " b"]) -> Float[Array, "b h w c"]:
        twice = jnp.concatenate([x, x]), jnp.concatenate([timesteps, timesteps])
        without, with_text = jnp.split(network(*twice, both).astype(jnp.float32), 2)
        steered = without + scale * (with_text - without)
        if rescale == 0:
            return steered
        axes = tuple(range(1, x.ndim))
        deviation = lambda y: jnp.std(y, axes, keepdims=True, ddof=1)  # noqa: E731
        return steered * (1 - rescale + rescale * deviation(with_text) / deviation(steered))

    return predict
