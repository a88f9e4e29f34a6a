"""The tokenizer of MaskGIT: a VQGAN without attention, with open-muse's config names.

Source: Chang et al., "MaskGIT: Masked Generative Image Transformer", CVPR 2022, appendix; Google's code.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from jaxkit.models.tokenizers.tokenizer import Tokenizer
from jaxkit.models.tokenizers.vqgan import enlarge
from jaxkit.nn.layers import Conv
from jaxkit.nn.pooling import average_pool
from jaxkit.nn.quantizer import VectorQuantizer


class ResnetBlock(nn.Module):
    """Twice norm, SiLU and a 3x3 convolution without bias, and a shortcut.

    Where the channels change, ``nin_shortcut`` reads the block's own output, not its input: Google's weights were
    trained so, and no information of the input passes there but through the convolutions.
    """

    channels: int
    norm: Callable
    conv: Callable
    dropout: float
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w {self.channels}"]:
        conv = partial(self.conv, self.channels, use_bias=False)
        y = nn.silu(self.norm(name="norm1")(x))
        y = conv((3, 3), padding=1, name="conv1")(y)
        y = nn.silu(self.norm(name="norm2")(y))
        y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
        y = conv((3, 3), padding=1, name="conv2")(y)

        shortcut = x if x.shape == y.shape else conv((1, 1), name="nin_shortcut")(y)
        return y + shortcut


class Encoder(nn.Module):
    """Levels of residual blocks with means over 2x2 between them; as many blocks again; a 1x1 convolution.

    ``channels`` are those of the first convolution, then of every level; ``block``, ``norm`` and ``conv`` build.
    """

    channels: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    block: Callable
    norm: Callable
    conv: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h2 w2 {self.z_channels}"]:
        first, *levels = self.channels
        x = self.conv(first, (3, 3), padding=1, use_bias=False, name="conv_in")(x)
        for level, channels in enumerate(levels):
            for i in range(self.num_res_blocks):
                x = self.block(channels, train=train, name=f"level{level}_block{i}")(x)
            if level < len(levels) - 1:
                x = average_pool(x, 2, 2)
        for i in range(self.num_res_blocks):
            x = self.block(levels[-1], train=train, name=f"mid_block{i}")(x)
        x = nn.silu(self.norm(name="norm_out")(x))
        return self.conv(self.z_channels, (1, 1), name="conv_out")(x)


class Decoder(nn.Module):
    """The encoder backwards, with repeated pixels and a 3x3 convolution between the levels."""

    channels: tuple[int, ...]
    num_res_blocks: int
    num_channels: int
    block: Callable
    norm: Callable
    conv: Callable

    @nn.compact
    def __call__(self, z: Float[Array, "b h w d"], train: bool = False) -> Float[Array, "b h2 w2 {self.num_channels}"]:
        x = self.conv(self.channels[-1], (3, 3), padding=1, name="conv_in")(z)
        for i in range(self.num_res_blocks):
            x = self.block(self.channels[-1], train=train, name=f"mid_block{i}")(x)
        for level in reversed(range(len(self.channels))):
            for i in range(self.num_res_blocks):
                x = self.block(self.channels[level], train=train, name=f"level{level}_block{i}")(x)
            if level > 0:
                x = self.conv(self.channels[level], (3, 3), padding=1, name=f"level{level}_upsample")(enlarge(x, 2))
        x = nn.silu(self.norm(name="norm_out")(x))
        return self.conv(self.num_channels, (3, 3), padding=1, name="conv_out")(x)


class MaskGitVQGAN(Tokenizer):
    """Google's tokenizer of 1024 codes, 16 pixels a side; channels are multiples of 32, for the norms' groups.

    The codes have the encoder's ``z_channels``: no convolutions stand between the two.
    """

    num_channels: int = 3
    hidden_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 256
    num_embeddings: int = 1024
    dropout: float = 0.0
    last_layer = ("decoder", "conv_out", "kernel")

    def setup(self):
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(nn.GroupNorm, 32, epsilon=1e-6, dtype=self.dtype, use_fast_variance=False)
        block = partial(ResnetBlock, norm=norm, conv=conv, dropout=self.dropout)
        widths = tuple(self.hidden_channels * times for times in self.channel_mult)
        self.encoder = Encoder(
            (self.hidden_channels, *widths), self.num_res_blocks, self.z_channels, block=block, norm=norm, conv=conv
        )
        self.decoder = Decoder(widths, self.num_res_blocks, self.num_channels, block=block, norm=norm, conv=conv)
        self.quantize = VectorQuantizer(
            self.num_embeddings, self.z_channels, self.codebook_decay, self.revive_below, self.axis_name
        )

    @property
    def reduction(self) -> int:
        """Pixels along a token's side."""
        return 2 ** (len(self.channel_mult) - 1)

    def latents(self, x: Float[Array, "b h w c"], train: bool = False) -> Float32[Array, "b h2 w2 d"]:
        """Encodes images to the vectors that are quantized."""
        return self.encoder(x, train).astype(jnp.float32)

    def reconstruct(self, z_q: Float[Array, "b h2 w2 d"], train: bool = False) -> Float32[Array, "b h w c"]:
        """Decodes codes to images."""
        return self.decoder(z_q, train).astype(jnp.float32)
