"""The transformer of Stable Diffusion's UNet: a map attends to itself and to the text, pixel by pixel."""

from collections.abc import Callable

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from jaxkit.nn.transformer import exact_gelu


class GatedGelu(nn.Module):
    """``value gelu(gate)`` of one dense layer's two halves (Shazeer, "GLU Variants Improve Transformer", 2020)."""

    features: int
    dense: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n {self.features}"]:
        value, gate = jnp.split(self.dense(2 * self.features, name="proj")(x), 2, axis=-1)
        return value * exact_gelu(gate)


class FeedForward(nn.Module):
    """Four times as wide and back."""

    dense: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        return self.dense(width, name="net_2")(GatedGelu(4 * width, self.dense, name="net_0")(x))


class TransformerBlock(nn.Module):
    """Attention to itself, or with ``only_cross_attention`` to the text, then to the text, then a feed-forward layer.

    Each is normed before, and added. ``attention`` and ``norm`` build the layers.
    """

    attention: Callable
    dense: Callable
    norm: Callable
    only_cross_attention: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], context: Float[Array, "b t e"]) -> Float[Array, "b n d"]:
        y = self.norm(name="norm1")(x)
        x = x + self.attention(name="attn1")(y, context if self.only_cross_attention else None)
        x = x + self.attention(name="attn2")(self.norm(name="norm2")(x), context)
        return x + FeedForward(self.dense, name="ff")(self.norm(name="norm3")(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over a map's pixels, between two projections, added to the map.

    ``block``, ``norm`` and ``project`` build the layers.

    Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, appendix E.2.1.
    """

    block: Callable
    depth: int
    norm: Callable
    project: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], context: Float[Array, "b t e"]) -> Float[Array, "b h w c"]:
        height, channels = x.shape[1], x.shape[-1]
        y = self.project(channels, name="proj_in")(self.norm(name="norm")(x))
        y = rearrange(y, "b h w c -> b (h w) c")
        for i in range(self.depth):
            y = self.block(name=f"transformer_blocks_{i}")(y, context)
        y = rearrange(y, "b (h w) c -> b h w c", h=height)
        return x + self.project(channels, name="proj_out")(y)
