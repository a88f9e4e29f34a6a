"""PaellaVQ: a shallow convolutional autoencoder of 4 or 8 pixels a token, with open-muse's config names.

Source: Rampas et al., "A Novel Sampling Scheme for Text- and Image-Conditional Image Synthesis in Quantized Latent
Spaces", 2022, its code.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32, Int32

from jaxkit.models.tokenizers.tokenizer import Tokenizer
from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.norms import BatchNorm
from jaxkit.nn.quantizer import VectorQuantizer


class MixingBlock(nn.Module):
    """A depthwise 3x3 convolution over repeated borders and a perceptron, each behind a norm and beside a shortcut.

    The six ``gammas`` scale and shift what each normalises, and scale what it adds.
    """

    conv: Callable
    dense: Callable
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        gammas = self.param("gammas", nn.initializers.zeros, (6,), jnp.float32).astype(self.dtype)
        norm = nn.LayerNorm(1e-6, self.dtype, use_scale=False, use_bias=False, use_fast_variance=False)

        y = norm(x) * (1 + gammas[0]) + gammas[1]
        y = jnp.pad(y, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
        x = x + self.conv(channels, (3, 3), groups=channels, name="depthwise")(y) * gammas[2]

        y = norm(x) * (1 + gammas[3]) + gammas[4]
        y = nn.gelu(self.dense(4 * channels, name="wi")(y), approximate=False)
        return x + self.dense(channels, name="wo")(y) * gammas[5]


class Encoder(nn.Module):
    """A block a level with 4x4 convolutions between them, and a norm of every latent channel.

    Modules are numbered as in Paella's sequence, so that conversion is a rename.
    """

    channels: tuple[int, ...]
    c_latent: int
    block: Callable
    conv: Callable
    axis_name: str | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h2 w2 {self.c_latent}"]:
        x = rearrange(x, "b (h y) (w x) c -> b h w (c y x)", y=2, x=2)
        x = self.conv(self.channels[0], (1, 1), name="in_block")(x)
        x = self.block(name="down0")(x)
        for level, channels in enumerate(self.channels[1:], start=1):
            x = self.conv(channels, (4, 4), strides=2, padding=1, name=f"down{2 * level - 1}")(x)
            x = self.block(name=f"down{2 * level}")(x)
        last = 2 * len(self.channels) - 1
        x = self.conv(self.c_latent, (1, 1), use_bias=False, name=f"down{last}_conv")(x)
        norm = BatchNorm(not train, dtype=self.dtype, axis_name=self.axis_name, name=f"down{last}_norm")
        return norm(x)


class Decoder(nn.Module):
    """``bottleneck_blocks`` at the last level and one at every other, with transposed convolutions between them."""

    channels: tuple[int, ...]
    bottleneck_blocks: int
    block: Callable
    conv: Callable
    dtype: Dtype

    @nn.compact
    def __call__(self, z: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 3"]:
        enlarge = partial(nn.ConvTranspose, kernel_size=(4, 4), strides=(2, 2), transpose_kernel=True, dtype=self.dtype)
        x = self.conv(self.channels[-1], (1, 1), name="up_in")(z)
        for i in range(self.bottleneck_blocks):
            x = self.block(name=f"up{i + 1}")(x)
        first = self.bottleneck_blocks + 1
        for i, channels in enumerate(reversed(self.channels[:-1])):
            x = enlarge(channels, name=f"up{first + 2 * i}")(x)
            x = self.block(name=f"up{first + 2 * i + 1}")(x)
        x = self.conv(12, (1, 1), name="out_block")(x)
        return rearrange(x, "b h w (c y x) -> b (h y) (w x) c", y=2, x=2)


class PaellaVQ(Tokenizer):
    """Paella's tokenizer of RGB images, ``2 ** levels`` pixels a token.

    Between ``encode`` and ``decode`` codes are divided by ``scale_factor``; tokens know nothing of it.
    The latents' norm has batch statistics: in training the collection ``batch_stats`` moves.
    """

    levels: int = 2
    bottleneck_blocks: int = 12
    c_hidden: int = 384
    c_latent: int = 4
    codebook_size: int = 8192
    scale_factor: float = 0.3764
    last_layer = ("decoder", "out_block", "kernel")

    def setup(self):
        conv, dense = partial(Conv, dtype=self.dtype), partial(Dense, dtype=self.dtype)
        block = partial(MixingBlock, conv, dense, self.dtype)
        channels = tuple(self.c_hidden // 2**i for i in reversed(range(self.levels)))
        self.encoder = Encoder(channels, self.c_latent, block, conv, self.axis_name, self.dtype)
        self.decoder = Decoder(channels, self.bottleneck_blocks, block, conv, self.dtype)
        self.quantize = VectorQuantizer(
            self.codebook_size, self.c_latent, self.codebook_decay, self.revive_below, self.axis_name
        )

    @property
    def reduction(self) -> int:
        """Pixels along a token's side."""
        return 2**self.levels

    def latents(self, x: Float[Array, "b h w 3"], train: bool = False) -> Float32[Array, "b h2 w2 d"]:
        """Encodes images to the vectors that are quantized."""
        return self.encoder(x, train).astype(jnp.float32)

    def reconstruct(self, z_q: Float[Array, "b h2 w2 d"], train: bool = False) -> Float32[Array, "b h w 3"]:
        """Decodes codes to images; nothing in it differs in training."""
        return self.decoder(z_q).astype(jnp.float32)

    def encode(self, x: Float[Array, "b h w 3"]) -> tuple[Float32[Array, "b h2 w2 d"], Int32[Array, "b h2 w2"]]:
        """Encodes images to codes over ``scale_factor``, and tokens. Raises ShapeError as every tokenizer does."""
        z_q, tokens = super().encode(x)
        return z_q / self.scale_factor, tokens

    def decode(self, z_q: Float[Array, "b h2 w2 d"]) -> Float32[Array, "b h w 3"]:
        """Decodes codes, as ``encode`` gives them, to images; values may leave [0, 1]."""
        return super().decode(z_q * self.scale_factor)
