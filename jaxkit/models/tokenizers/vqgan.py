"""VQGAN and MoVQ: residual convolutional autoencoders around a codebook, with open-muse's config names.

Source: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021, table 7; MoVQ: Zheng et
al., "MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation", NeurIPS 2022, section 3.2.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from jaxkit.models.tokenizers.tokenizer import Tokenizer
from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.pooling import average_pool
from jaxkit.nn.quantizer import VectorQuantizer


def enlarge(x: Float[Array, "b h w c"], times: int) -> Float[Array, "b h2 w2 c"]:
    """Repeats every pixel ``times`` times along both sides."""
    return repeat(x, "b h w c -> b (h y) (w x) c", y=times, x=times)


class SpatialNorm(nn.Module):
    """Scales and shifts a normalised map by two 1x1 convolutions of the codes (MoVQ, equation 4).

    Raises TypeError without codes. The map's sides are multiples of the codes' grid's.
    """

    norm: Callable
    conv: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], z_q: Float[Array, "b h2 w2 d"]) -> Float[Array, "b h w c"]:
        times = x.shape[1] // z_q.shape[1]
        scale = self.conv(x.shape[-1], (1, 1), name="conv_y")(z_q)
        shift = self.conv(x.shape[-1], (1, 1), name="conv_b")(z_q)
        return self.norm(name="norm_layer")(x) * enlarge(scale, times) + enlarge(shift, times)


class ResnetBlock(nn.Module):
    """Twice norm, SiLU and a 3x3 convolution, and a shortcut, 1x1 where the channels change.

    ``condition`` is what the norms take beside the map: nothing, or the codes.
    """

    channels: int
    norm: Callable
    conv: Callable
    dropout: float = 0.0
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *condition: Float[Array, "b h2 w2 d"]
    ) -> Float[Array, "b h w {self.channels}"]:
        y = nn.silu(self.norm(name="norm1")(x, *condition))
        y = self.conv(self.channels, (3, 3), padding=1, name="conv1")(y)
        y = nn.silu(self.norm(name="norm2")(y, *condition))
        y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
        y = self.conv(self.channels, (3, 3), padding=1, name="conv2")(y)

        if x.shape != y.shape:
            x = self.conv(self.channels, (1, 1), name="nin_shortcut")(x)
        return x + y


class AttentionBlock(nn.Module):
    """Self-attention of all positions with one head, and a shortcut. ``condition`` as in :class:`ResnetBlock`."""

    norm: Callable
    dense: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *condition: Float[Array, "b h2 w2 d"]) -> Float[Array, "b h w c"]:
        y = rearrange(self.norm(name="norm")(x, *condition), "b h w c -> b (h w) 1 c")
        query, key, value = (self.dense(x.shape[-1], name=name)(y) for name in "qkv")
        y = jax.nn.dot_product_attention(query, key, value)
        y = self.dense(x.shape[-1], name="proj_out")(y)
        return x + rearrange(y, "b (h w) 1 c -> b h w c", h=x.shape[1])


class Downsample(nn.Module):
    """Halves a map: by a 3x3 convolution with zeros below and right of it, or by means over 2x2."""

    conv: Callable | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
        if self.conv is None:
            return average_pool(x, 2, 2)
        x = jnp.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
        return self.conv(x.shape[-1], (3, 3), strides=2, name="conv")(x)


class Upsample(nn.Module):
    """Doubles a map by repeating its pixels, then a 3x3 convolution unless there is none."""

    conv: Callable | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        x = enlarge(x, 2)
        return x if self.conv is None else self.conv(x.shape[-1], (3, 3), padding=1, name="conv")(x)


class Encoder(nn.Module):
    """Levels of residual blocks from the first, of full size, down to the last; two more; ``z_channels``.

    ``channels`` are those of the first convolution, then of every level. The modules ``block``, ``attention``,
    ``norm``, ``conv`` and ``resample`` build the layers; the levels that ``attended`` names attend after every block.
    """

    channels: tuple[int, ...]
    num_res_blocks: int
    attended: tuple[bool, ...]
    mid_attention: bool
    z_channels: int
    block: Callable
    attention: Callable
    norm: Callable
    conv: Callable
    resample: Callable | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h2 w2 {self.z_channels}"]:
        block = partial(self.block, norm=self.norm, train=train)
        attention = partial(self.attention, norm=self.norm)
        first, *levels = self.channels

        x = self.conv(first, (3, 3), padding=1, name="conv_in")(x)
        for level, channels in enumerate(levels):
            for i in range(self.num_res_blocks):
                x = block(channels, name=f"level{level}_block{i}")(x)
                if self.attended[level]:
                    x = attention(name=f"level{level}_attn{i}")(x)
            if level < len(levels) - 1:
                x = Downsample(self.resample, name=f"level{level}_downsample")(x)

        x = block(levels[-1], name="mid_block1")(x)
        if self.mid_attention:
            x = attention(name="mid_attn1")(x)
        x = block(levels[-1], name="mid_block2")(x)
        x = nn.silu(self.norm(name="norm_out")(x))
        return self.conv(self.z_channels, (3, 3), padding=1, name="conv_out")(x)


class Decoder(nn.Module):
    """The encoder backwards: the last level first. ``condition`` as in :class:`ResnetBlock`.

    ``channels`` and ``blocks`` are those of every level, in the encoder's order.
    """

    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    attended: tuple[bool, ...]
    mid_attention: bool
    extra_mid_res_blocks: int
    num_channels: int
    block: Callable
    attention: Callable
    norm: Callable
    conv: Callable
    resample: Callable | None

    @nn.compact
    def __call__(
        self, z: Float[Array, "b h w d"], *condition: Float[Array, "b h w d2"], train: bool = False
    ) -> Float[Array, "b h2 w2 {self.num_channels}"]:
        block = partial(self.block, norm=self.norm, train=train)
        attention = partial(self.attention, norm=self.norm)
        last = self.channels[-1]

        x = self.conv(last, (3, 3), padding=1, name="conv_in")(z)
        x = block(last, name="mid_block1")(x, *condition)
        if self.mid_attention:
            x = attention(name="mid_attn1")(x, *condition)
        x = block(last, name="mid_block2")(x, *condition)
        for i in range(self.extra_mid_res_blocks):
            x = block(last, name=f"mid_extra{i}")(x, *condition)

        for level in reversed(range(len(self.channels))):
            for i in range(self.blocks[level]):
                x = block(self.channels[level], name=f"level{level}_block{i}")(x, *condition)
                if self.attended[level]:
                    x = attention(name=f"level{level}_attn{i}")(x, *condition)
            if level > 0:
                x = Upsample(self.resample, name=f"level{level}_upsample")(x)
        x = nn.silu(self.norm(name="norm_out")(x, *condition))
        return self.conv(self.num_channels, (3, 3), padding=1, name="conv_out")(x)


class VQGAN(Tokenizer):
    """Taming's VQGAN; ``resolution`` only says at which levels a side is one of ``attn_resolutions``.

    The encoder has ``num_res_blocks`` a level, the decoder one more; where ``decoder_res_blocks`` (one number, or one
    a level), ``decoder_hidden_channels`` or ``decoder_channel_mult`` are given, the decoder has these. With ``remat``
    the backward pass computes every block again instead of keeping its maps.

    open-muse leaves out the attention of a level that has a single block, though it has its weights; here it attends.
    """

    resolution: int = 256
    num_channels: int = 3
    hidden_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    decoder_res_blocks: int | tuple[int, ...] | None = None
    extra_mid_res_blocks: int | None = None
    decoder_hidden_channels: int | None = None
    decoder_channel_mult: tuple[int, ...] | None = None
    attn_resolutions: tuple[int, ...] = (16,)
    no_attn_mid_block: bool = False
    z_channels: int = 256
    num_embeddings: int = 1024
    quantized_embed_dim: int = 256
    dropout: float = 0.0
    resample_with_conv: bool = True
    norm_num_groups: int = 32
    remat: bool = False
    # Not fields: they tell the kinds of tokenizer apart.
    last_layer = ("decoder", "conv_out", "kernel")
    modulated = False

    def setup(self):
        levels = range(len(self.channel_mult))
        conv, dense = partial(Conv, dtype=self.dtype), partial(Dense, dtype=self.dtype)
        norm = partial(nn.GroupNorm, self.norm_num_groups, epsilon=1e-6, dtype=self.dtype, use_fast_variance=False)
        shared = {
            "attended": tuple(self.resolution // 2**level in self.attn_resolutions for level in levels),
            "mid_attention": not self.no_attn_mid_block,
            "block": partial(nn.remat(ResnetBlock) if self.remat else ResnetBlock, conv=conv, dropout=self.dropout),
            "attention": partial(nn.remat(AttentionBlock) if self.remat else AttentionBlock, dense=dense),
            "conv": conv,
            "resample": conv if self.resample_with_conv else None,
        }
        widths = [self.hidden_channels * times for times in self.channel_mult]
        self.encoder = Encoder(
            (self.hidden_channels, *widths), self.num_res_blocks, z_channels=self.z_channels, norm=norm, **shared
        )
        hidden = self.hidden_channels if self.decoder_hidden_channels is None else self.decoder_hidden_channels
        mult = self.channel_mult if self.decoder_channel_mult is None else self.decoder_channel_mult
        blocks = self.num_res_blocks if self.decoder_res_blocks is None else self.decoder_res_blocks
        self.decoder = Decoder(
            tuple(hidden * times for times in mult),
            tuple(1 + n for n in ([blocks] * len(levels) if isinstance(blocks, int) else blocks)),
            extra_mid_res_blocks=self.extra_mid_res_blocks or 0,
            num_channels=self.num_channels,
            norm=partial(SpatialNorm, norm, conv) if self.modulated else norm,
            **shared,
        )
        self.quant_conv = conv(self.quantized_embed_dim, (1, 1))
        self.post_quant_conv = conv(self.z_channels, (1, 1))
        self.quantize = VectorQuantizer(
            self.num_embeddings, self.quantized_embed_dim, self.codebook_decay, self.revive_below, self.axis_name
        )

    @property
    def reduction(self) -> int:
        """Pixels along a token's side."""
        return 2 ** (len(self.channel_mult) - 1)

    def latents(self, x: Float[Array, "b h w c"], train: bool = False) -> Float32[Array, "b h2 w2 d"]:
        """Encodes images to the vectors that are quantized."""
        return self.quant_conv(self.encoder(x, train)).astype(jnp.float32)

    def reconstruct(self, z_q: Float[Array, "b h2 w2 d"], train: bool = False) -> Float32[Array, "b h w c"]:
        """Decodes codes to images."""
        condition = [z_q] if self.modulated else []
        return self.decoder(self.post_quant_conv(z_q), *condition, train=train).astype(jnp.float32)


class MoVQ(VQGAN):
    """A VQGAN whose decoder's norms are modulated by the codes (:class:`SpatialNorm`); Kandinsky's sizes."""

    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    attn_resolutions: tuple[int, ...] = (32,)
    z_channels: int = 4
    num_embeddings: int = 16384
    quantized_embed_dim: int = 4
    modulated = True
