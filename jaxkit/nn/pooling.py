"""Pooling with torch's borders: maps rounded up, windows that count their padding, adaptive windows."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxkit.errors import ShapeError


def max_pool(
    x: Float[Array, "b h w c"], size: int, stride: int, padding: int = 0, ceil: bool = False
) -> Float[Array, "b h2 w2 c"]:
    """Takes the maximum of every window of ``size`` x ``size``, ``stride`` apart, after ``padding`` on each side.

    With ``ceil`` a last window that begins within the map but leaves it counts as well (torch's ``ceil_mode``).
    Raises ShapeError where no window fits into the map.
    """
    pads = [(padding, padding + _excess(n, size, stride, padding, ceil)) for n in x.shape[1:3]]
    return nn.max_pool(x, (size, size), strides=(stride, stride), padding=pads)


def average_pool(
    x: Float[Array, "b h w c"], size: int, stride: int, padding: int = 0, ceil: bool = False
) -> Float[Array, "b h2 w2 c"]:
    """Takes the mean of every window of ``size`` x ``size``, ``stride`` apart, after ``padding`` zeros on each side.

    The zeros count. With ``ceil`` a last window that leaves the padded map counts what lies within it alone.
    Raises ShapeError where no window fits into the map.
    """
    excess = [_excess(n, size, stride, padding, ceil) for n in x.shape[1:3]]
    padded = jnp.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    if not any(excess):
        return nn.avg_pool(padded, (size, size), strides=(stride, stride))
    pads = [(0, n) for n in excess]
    y = nn.avg_pool(padded, (size, size), strides=(stride, stride), padding=pads, count_include_pad=False)
    # linen counts the values of each window in float32.
    return y.astype(x.dtype)


def adaptive_average_pool(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b {side} {side} c"]:
    """Takes the means of ``side`` x ``side`` windows that cover the map; a smaller map's values are repeated."""
    for axis in (1, 2):
        n = x.shape[axis]
        if n == side:
            continue
        spans = [slice(i * n // side, math.ceil((i + 1) * n / side)) for i in range(side)]
        rows = [jax.lax.slice_in_dim(x, span.start, span.stop, axis=axis).mean(axis, keepdims=True) for span in spans]
        x = jnp.concatenate(rows, axis)
    return x


def _excess(n: int, size: int, stride: int, padding: int, ceil: bool) -> int:
    """How far the last window reaches beyond the padded map of ``n`` values."""
    room = n + 2 * padding - size
    windows = (math.ceil(room / stride) if ceil else room // stride) + 1
    if windows < 1:
        raise ShapeError(f"no window of {size} fits into a map of {n} values with {padding} more on each side")
    # Torch leaves out a window that would begin in the padding behind the map.
    if ceil and (windows - 1) * stride >= n + padding:
        windows -= 1
    return max(0, (windows - 1) * stride - room)
