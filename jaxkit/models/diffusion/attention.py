"""Attention under the names of other libraries: dense projections of the whole width, and three ways to attend."""

from collections.abc import Callable
from typing import Literal

import jax
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from jaxkit.errors import ConfigError, ShapeError

Implementation = Literal["xla", "cudnn", "chunked"]
# queries at a time of 'chunked': one map of 32 x 32
_CHUNK = 1024
# the widest head that cuDNN's kernel takes on every GPU
_CUDNN_HEAD = 128


def attend(
    query: Float[Array, "b t n d"],
    key: Float[Array, "b s n d"],
    value: Float[Array, "b s n d"],
    implementation: Implementation | None = None,
    causal: bool = False,
) -> Float[Array, "b t n d"]:
    """Averages the values by ``softmax(query keyᵀ / sqrt(d))``; with ``causal`` over positions up to the query's own.

    Products are summed, and the softmax is computed, in float32. ``cudnn`` never stores the weights, but has no heads
    of another width than a multiple of 8 up to 128: these go to ``xla``. ``chunked`` computes the weights of 1024
    queries at a time, twice where gradients are asked for, so that memory is linear in the sequence; it is not causal.
    None leaves the choice to JAX.

    Raises ConfigError for ``cudnn`` in float32, and ``chunked`` with ``causal``.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.2.1; Rabe and Staats, "Self-attention
    Does Not Need O(n²) Memory", 2021.
    """
    if implementation == "chunked":
        if causal:
            raise ConfigError("attention 'chunked' is not causal: take 'xla'")
        return _in_chunks(query, key, value)
    if implementation == "cudnn":
        if query.dtype.itemsize != 2:
            raise ConfigError(f"attention 'cudnn' cannot compute in {query.dtype}: take bfloat16, or attention 'xla'")
        if query.shape[-1] > _CUDNN_HEAD or query.shape[-1] % 8:
            implementation = "xla"
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation=implementation)


def _in_chunks(query, key, value) -> Float[Array, "b t n d"]:
    total = query.shape[1]
    size = max(n for n in range(1, min(total, _CHUNK) + 1) if total % n == 0)
    chunks = rearrange(query, "b (c t) n d -> c b t n d", t=size)
    # each chunk's weights are computed again for the gradients, or the map would keep them all
    attended = jax.lax.map(jax.checkpoint(lambda chunk: jax.nn.dot_product_attention(chunk, key, value)), chunks)
    return rearrange(attended, "c b t n d -> b (c t) n d")


class FlatAttention(nn.Module):
    """Attends with several heads, from kernels [i n*d] that the caller names: the parameters of other libraries.

    ``names`` are those of query, key, value and output; ``project`` builds the first three layers, ``out`` the last.

    Raises ShapeError if the heads do not divide the width.
    """

    num_heads: int
    names: tuple[str, str, str, str]
    project: Callable
    out: Callable
    implementation: Implementation | None = None
    causal: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"], context: Float[Array, "b s e"] | None = None) -> Float[Array, "b t c"]:
        width = x.shape[-1]
        if width % self.num_heads:
            raise ShapeError(f"{self.num_heads} heads do not divide a width of {width}")
        *names, out = self.names
        context = x if context is None else context
        query, key, value = (
            rearrange(self.project(width, name=name)(y), "b t (n d) -> b t n d", n=self.num_heads)
            for name, y in zip(names, (x, context, context), strict=True)
        )
        y = attend(query, key, value, self.implementation, self.causal)
        return self.out(width, name=out)(rearrange(y, "b t n d -> b t (n d)"))
