"""What sampling chooses by: tokens by their logits, positions by their priority."""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

LEAST = 1e-20
COLDEST = 1e-10


def gumbel(uniforms: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Turns uniform noise into Gumbel noise, ``-log(-log u)``, finite where ``u`` is 0 or 1.

    Source: diffusers' AmusedScheduler, clips included.
    """
    return -jnp.log(jnp.maximum(-jnp.log(jnp.maximum(uniforms, LEAST)), LEAST))


def draw_tokens(key: PRNGKeyArray, logits: Float[Array, "b h w k"]) -> Int[Array, "b h w"]:
    """Draws from ``softmax(logits)``: a block of about ``√k`` tokens first, by its whole probability, then one in it.

    The distribution is that of drawing at once, for ``2 √k`` random numbers a token in place of ``k``: with thousands
    of codes these would cost more than all else in sampling.
    """
    key_block, key_inside = jax.random.split(key)
    size = math.isqrt(logits.shape[-1] - 1) + 1
    padding = ((0, 0), (0, 0), (0, 0), (0, -logits.shape[-1] % size))
    padded = jnp.pad(logits, padding, constant_values=-jnp.inf)
    blocks = rearrange(padded, "b h w (m s) -> b h w m s", s=size)
    block = jax.random.categorical(key_block, jax.nn.logsumexp(blocks, -1))
    inside = jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :]
    return (block * size + jax.random.categorical(key_inside, inside)).astype(jnp.int32)


def keep_top_k(logits: Float[Array, "*b k"], top_k: int | float) -> Float[Array, "*b k"]:
    """Sets all but the ``top_k`` largest logits to -inf; a number below 1 is a share of all, rounded up."""
    size = logits.shape[-1]
    # of 0.1 of 10, 1 is meant, not the 2 that a last digit too many would round up to
    count = min(math.ceil(top_k * size - 1e-6) if top_k < 1 else int(top_k), size)
    least = jax.lax.top_k(logits, count)[0][..., -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "*b k"], top_p: float) -> Float[Array, "*b k"]:
    """Sets to -inf all logits but the largest that together have a probability of ``top_p`` or more.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020, section 3.1.
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    p = jax.nn.softmax(ordered, axis=-1)
    inside = jnp.cumsum(p, -1) - p < top_p
    least = jnp.min(jnp.where(inside, ordered, jnp.inf), -1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)


def lowest(priority: Float[Array, "b h w"], count: Int[Array, " b"]) -> Bool[Array, "b h w"]:
    """Marks the ``count`` positions of lowest priority in each row of the batch; of equal ones the first."""
    _, h, w = priority.shape
    flat = rearrange(priority, "b h w -> b (h w)")
    ranks = jnp.argsort(jnp.argsort(flat, -1), -1)
    return rearrange(ranks < count[:, None], "b (h w) -> b h w", h=h, w=w)
