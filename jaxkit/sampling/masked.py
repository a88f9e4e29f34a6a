"""Decodes masked tokens: one compiled loop for every method, schedule, guidance and editing task."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxkit.sampling.choices import COLDEST, LEAST, draw_tokens, gumbel, keep_top_k, keep_top_p, lowest
from jaxkit.sampling.guidance import guide
from jaxkit.sampling.halton import halton_ranks
from jaxkit.sampling.sampler import CONFIDENT, Plan, Sampler


class Noise(NamedTuple):
    """The noise of each step that is taken, in place of the key's; None: the key's.

    ``gumbels`` are added to the logits to draw tokens, or ``tokens`` are what was drawn; ``uniforms`` are what decides
    which are masked again: made Gumbel noise on the confidence, or ordered by themselves where the choice is random.
    """

    gumbels: Float[Array, "t b h w k"] | None = None
    tokens: Int[Array, "t b h w"] | None = None
    uniforms: Float[Array, "t b h w"] | None = None


class Trajectory(NamedTuple):
    """What each step made of the picture, with nothing masked, and which of its tokens it then masked again."""

    tokens: Int[Array, "t b h w"]
    masked: Bool[Array, "t b h w"]


def sample_tokens(
    key: PRNGKeyArray,
    logits: Callable,
    tokens: Int[Array, "b h w"],
    sampler: Sampler,
    *,
    codebook_size: int,
    mask_token: int,
    start: int = 0,
    total: Int[Array, " b"] | int | None = None,
    noise: Noise = Noise(),  # noqa: B008 (immutable)
) -> Int[Array, "b h w"]:
    """Decodes the masked tokens in ``sampler.steps`` calls of the network. Tokens that are given never change.

    Source: Chang et al., "MaskGIT: Masked Generative Image Transformer", CVPR 2022, section 3.2; the methods of
    :class:`~jaxkit.sampling.sampler.Sampler`.

    Args:
        key: the same key gives the same tokens.
        logits: ``tokens [b h w], step [] -> [b h w k]``; with guidance ``(conditional, unconditional)``, such as
            :func:`~jaxkit.sampling.guidance.both_at_once` gives. ``k`` may be more than ``codebook_size``.
        tokens: ``mask_token`` where they are to be found: everywhere, in a part (inpainting), around (outpainting).
        sampler: how; it decides the program, so under ``jax.jit`` it is closed over or static.
        codebook_size: tokens drawn are below it.
        mask_token: what the network takes for masked; not a token of the codebook.
        start: the first step to take, of :meth:`Sampler.start`; not 0 where an image is taken up half-masked.
        total: how many tokens the schedule's rates are of, for each sample; None: those masked in ``tokens``. Of an
            image that was masked by :func:`~jaxkit.sampling.editing.noise_tokens`, ``h * w``.
        noise: to repeat what another program drew.

    Raises:
        ValueError: for a mask token within the codebook, a start beyond the steps, guidance without two logits or the
            other way round, or logits of fewer tokens than the codebook has.
    """
    return _decode(key, logits, tokens, sampler, codebook_size, mask_token, start, total, noise)[0]


def sample_trajectory(
    key: PRNGKeyArray,
    logits: Callable,
    tokens: Int[Array, "b h w"],
    sampler: Sampler,
    *,
    codebook_size: int,
    mask_token: int,
    start: int = 0,
    total: Int[Array, " b"] | int | None = None,
    noise: Noise = Noise(),  # noqa: B008 (immutable)
) -> Trajectory:
    """Decodes as :func:`sample_tokens` does, and tells what each step saw; the last step's tokens are its result."""
    return _decode(key, logits, tokens, sampler, codebook_size, mask_token, start, total, noise)[1]


def _decode(key, logits, tokens, sampler, codebook_size, mask_token, start, total, noise):
    if 0 <= mask_token < codebook_size:
        raise ValueError(f"mask_token {mask_token} is a token of the codebook, which has {codebook_size}")
    if not 0 <= start < sampler.steps:
        raise ValueError(f"start is {start}; it must be one of the sampler's {sampler.steps} steps")
    editable = tokens == mask_token
    masked_at_first = jnp.sum(editable, (1, 2))
    total = masked_at_first if total is None else jnp.broadcast_to(total, masked_at_first.shape)
    ranks = _halton(key, sampler, tokens.shape) if sampler.method == "halton" else None
    if sampler.method == "random_replace":
        tokens = jnp.where(
            editable, _random_tokens(jax.random.fold_in(key, sampler.steps), tokens, codebook_size), tokens
        )

    def step(carry, now):
        tokens, masked = carry
        plan, noise = now
        key_token, key_choice, key_replace = jax.random.split(jax.random.fold_in(key, plan.step), 3)
        scores = _scores(logits(tokens, plan.step), sampler, plan, codebook_size)
        drawn = _draw(key_token, scores, sampler, plan, noise) if noise.tokens is None else noise.tokens
        filled = jnp.where(masked, drawn, tokens)

        uniforms = jax.random.uniform(key_choice, tokens.shape) if noise.uniforms is None else noise.uniforms
        priority = _priority(sampler, plan, scores, filled, uniforms, ranks)
        candidates = masked if sampler.method in (*CONFIDENT, "halton") else editable
        count = sampler.masked_counts(plan.rate, jnp.sum(masked, (1, 2)), total)
        count = jnp.where(plan.step == sampler.steps - 1, 0, count)
        # logits that are NaN sort after the infinity of known tokens, which must not change even so
        again = lowest(jnp.where(candidates, priority, jnp.inf), count) & candidates

        if sampler.method == "random_replace":
            noised = jnp.where(again, _random_tokens(key_replace, tokens, codebook_size), filled)
            return (noised, editable), Trajectory(filled, again)
        return (jnp.where(again, mask_token, filled), again), Trajectory(filled, again)

    (tokens, _), trajectory = lax.scan(step, (tokens, editable), (sampler.plan(start), noise))
    return tokens, trajectory


def _scores(given: Any, sampler: Sampler, plan: Plan, codebook_size: int) -> Float[Array, "b h w k"]:
    """The logits of the codebook, guided, in float32."""
    pair = isinstance(given, tuple)
    if pair != (sampler.guidance is not None):
        has = "two logits, (conditional, unconditional)" if pair else "one array of logits"
        raise ValueError(f"the network gives {has}, but the sampler's guidance is {sampler.guidance}")
    both = [x[..., :codebook_size].astype(jnp.float32) for x in (given if pair else (given,))]
    if both[0].shape[-1] < codebook_size:
        raise ValueError(f"the network has logits of {both[0].shape[-1]} tokens; the codebook has {codebook_size}")
    return guide(*both, plan.guidance) if pair else both[0]


def _draw(key, scores, sampler: Sampler, plan: Plan, noise: Noise) -> Int[Array, "b h w"]:
    scores = scores / jnp.maximum(plan.token_temperature, COLDEST)
    if sampler.top_k is not None:
        scores = keep_top_k(scores, sampler.top_k)
    if sampler.top_p is not None:
        scores = keep_top_p(scores, sampler.top_p)
    if noise.gumbels is not None:
        return jnp.argmax(scores + noise.gumbels, -1).astype(jnp.int32)
    return draw_tokens(key, scores)


def _priority(sampler: Sampler, plan: Plan, scores, filled, uniforms, ranks) -> Float[Array, "b h w"]:
    """What decides which tokens are masked again: the lowest."""
    if sampler.method == "halton":
        return -ranks.astype(jnp.float32)
    if sampler.method not in CONFIDENT:
        return uniforms
    # the network's own probabilities: those of temperature 1, of all tokens
    log_p = jnp.take_along_axis(jax.nn.log_softmax(scores), filled[..., None], -1, mode="clip")[..., 0]
    return jnp.maximum(log_p, jnp.log(LEAST)) + plan.choice_temperature * gumbel(uniforms)


def _halton(key, sampler: Sampler, shape: tuple[int, int, int]) -> Int[Array, "b h w"]:
    b, h, w = shape
    offset = jnp.zeros((b, 1, 1), jnp.int32)
    if sampler.rolled:
        offset = jax.random.randint(jax.random.fold_in(key, sampler.steps), offset.shape, 0, h * w)
    return (jnp.asarray(halton_ranks(h, w)) - offset) % (h * w)


def _random_tokens(key, tokens, codebook_size: int) -> Int[Array, "b h w"]:
    return jax.random.randint(key, tokens.shape, 0, codebook_size, tokens.dtype)
