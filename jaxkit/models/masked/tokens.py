"""Grids of tokens as sequences, row by row, and maps as maps of patches."""

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from jaxkit.errors import ShapeError


def flatten_tokens(tokens: Int[Array, "b h w"], prefix: Int[Array, " b"] | None = None) -> Int[Array, "b n"]:
    """Lists each grid's tokens row by row, after a prefix token where there is one."""
    sequence = rearrange(tokens, "b h w -> b (h w)")
    return sequence if prefix is None else jnp.concatenate([prefix[:, None], sequence], axis=1)


def patches(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 c2"]:
    """Joins the values of each patch of ``size`` x ``size`` into one vector, channel by channel (PixelUnshuffle).

    Raises ShapeError if the patches do not tile the map.
    """
    height, width = x.shape[1:3]
    if height % size or width % size:
        raise ShapeError(f"patches of {size} x {size} do not tile a map of {height} x {width}")
    return rearrange(x, "b (h p) (w q) c -> b h w (c p q)", p=size, q=size)


def unpatched(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 c2"]:
    """Undoes :func:`patches` (PixelShuffle)."""
    return rearrange(x, "b h w (c p q) -> b (h p) (w q) c", p=size, q=size)
