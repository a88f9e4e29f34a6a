"""What transformers are stacked from besides attention: norms, modulation, feed-forward layers, embeddings."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxkit.errors import ConfigError, ShapeError

exact_gelu = partial(nn.gelu, approximate=False)


def layer_norm(
    norm_type: str, *, epsilon: float, use_bias: bool, affine: bool = True, dtype: Dtype = jnp.float32
) -> Callable[..., nn.Module]:
    """Chooses ``layernorm`` or ``rmsnorm``: a function ``(name) -> module`` over the last axis.

    Means and variances are float32, the output is ``dtype``. The variance is that of the centred values, as in torch.
    An RMS norm has no bias; without ``affine`` neither has a parameter. Raises ConfigError for another name.

    Source: Ba et al., "Layer Normalization", 2016; Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    match norm_type:
        case "layernorm":
            bias = use_bias and affine
            norm = partial(nn.LayerNorm, use_bias=bias, use_fast_variance=False)
        case "rmsnorm":
            norm = nn.RMSNorm
        case _:
            raise ConfigError(f"no norm is named {norm_type!r}; there are 'layernorm' and 'rmsnorm'")
    return partial(norm, epsilon=epsilon, use_scale=affine, dtype=dtype)


class GlobalResponseNorm(nn.Module):
    """Scales each channel by its share of the map's energy: ``x + gamma x n + beta``, ``n = ‖x‖ / mean_c ‖x‖``.

    Source: Woo et al., "ConvNeXt V2", CVPR 2023, section 3.2.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        gamma = self.param("gamma", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        beta = self.param("beta", nn.initializers.zeros, (x.shape[-1],), jnp.float32)

        y = x.astype(jnp.float32)
        energy = jnp.sum(jnp.square(y), axis=(1, 2), keepdims=True)
        # a channel of zeros, as of a padded map, has norm 0 and no slope
        norm = jnp.where(energy > 0, jnp.sqrt(jnp.where(energy > 0, energy, 1)), 0)
        share = norm / (norm.mean(-1, keepdims=True) + 1e-6)
        return (gamma * (y * share) + beta + y).astype(self.dtype)


class Modulation(nn.Module):
    """Scales and shifts ``x`` by what a dense layer, zero at first, makes of the condition: ``x (1 + s) + t``.

    Source: Peebles and Xie, "Scalable Diffusion Models with Transformers", ICCV 2023, section 3.2 (adaLN).
    """

    use_bias: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n d"], condition: Float[Array, "b c"]) -> Float[Array, "b *n d"]:
        mapper = nn.Dense(
            2 * x.shape[-1], self.use_bias, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="mapper"
        )
        maps = jnp.expand_dims(mapper(nn.silu(condition)), tuple(range(1, x.ndim - 1)))
        scale, shift = jnp.split(maps, 2, axis=-1)
        return x * (1 + scale) + shift


class FeedForward(nn.Module):
    """Widens, activates, narrows: ``wo(dropout(norm(activation(wi_0 x) * wi_1 x)))``.

    ``dense`` builds the layers. Without ``gated`` there is no ``wi_1``; ``norm`` is left out where it is None.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020 (GEGLU); Shleifer et al., "NormFormer", 2021 (the norm).
    """

    features: int
    dense: Callable
    norm: Callable | None = None
    gated: bool = True
    activation: Callable = exact_gelu
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool = False) -> Float[Array, "b n d"]:
        y = self.activation(self.dense(self.features, name="wi_0")(x))
        if self.gated:
            y = y * self.dense(self.features, name="wi_1")(x)
        if self.norm is not None:
            y = self.norm(name="mid_mlp_layer_norm")(y)
        y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
        return self.dense(x.shape[-1], name="wo")(y)


class PositionEmbedding(nn.Module):
    """Adds a learned vector to each position of a sequence, by its place in it.

    Raises ShapeError for a sequence of more than ``max_positions``.
    """

    max_positions: int
    embedding_init: Callable = nn.initializers.normal(0.02)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        n, width = x.shape[1:]
        if n > self.max_positions:
            raise ShapeError(f"a sequence of {n} tokens, but there are {self.max_positions} position embeddings")
        embedding = self.param("embedding", self.embedding_init, (self.max_positions, width), jnp.float32)
        return x + embedding[:n].astype(self.dtype)


def sinusoidal_embedding(x: Float[Array, "b m"], size: int) -> Float[Array, "b m*{size}"]:
    """Writes each number x as ``[cos(x f), sin(x f)]`` for size / 2 frequencies ``f = 10000^(-2 i / size)``.

    Raises ConfigError for an odd size. Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5.
    """
    if size % 2:
        raise ConfigError(f"a sinusoidal embedding has a cosine and a sine of each frequency: {size} is odd")
    half = size // 2
    # step by step in float32, as torch computes it: at x = 1000 a rounding of f shows in the fourth decimal
    frequencies = np.exp(np.float32(-np.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half))
    angles = x[..., None].astype(jnp.float32) * frequencies
    return rearrange(jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1), "b m d -> b (m d)")
