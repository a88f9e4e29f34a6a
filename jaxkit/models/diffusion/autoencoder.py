"""The autoencoder of Stable Diffusion, with the parameter names of diffusers' FlaxAutoencoderKL."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxkit.models.diffusion.attention import FlatAttention, Implementation
from jaxkit.models.diffusion.blocks import (
    DownBlock,
    Downsample,
    MidBlock,
    Remat,
    ResnetBlock,
    UpBlock,
    Upsample,
    rematerialised,
)
from jaxkit.nn.layers import Conv, Dense

# between which the logarithm of a variance is held, as in diffusers
_LOGVAR = (-30.0, 20.0)


class MapAttention(nn.Module):
    """Self-attention of a map's pixels with one head, normed before, and added."""

    norm: Callable
    attention: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = rearrange(self.norm(name="group_norm")(x), "b h w c -> b (h w) c")
        attention = self.attention()
        # its parameters lie beside the norm's, not below a name of their own
        nn.share_scope(self, attention)
        return x + rearrange(attention(y), "b (h w) c -> b h w c", h=x.shape[1])


class Encoder(nn.Module):
    """Levels of residual blocks, each but the last halved; one with attention between two; ``features`` channels."""

    channels: tuple[int, ...]
    layers_per_block: int
    features: int
    resnet: Callable
    attention: Callable | None
    norm: Callable
    conv: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {self.features}"]:
        x = self.conv(self.channels[0], (3, 3), padding=1, name="conv_in")(x)
        for i, channels in enumerate(self.channels):
            halve = partial(Downsample, self.conv, padding=0) if i < len(self.channels) - 1 else None
            x, _ = DownBlock(channels, self.layers_per_block, self.resnet, None, halve, name=f"down_blocks_{i}")(
                x, None
            )
        x = MidBlock(self.resnet, self.attention, name="mid_block")(x, None)
        x = nn.silu(self.norm(name="conv_norm_out")(x))
        return self.conv(self.features, (3, 3), padding=1, name="conv_out")(x)


class Decoder(nn.Module):
    """The encoder backwards, with a residual block more at every level."""

    channels: tuple[int, ...]
    layers_per_block: int
    features: int
    resnet: Callable
    attention: Callable | None
    norm: Callable
    conv: Callable

    @nn.compact
    def __call__(self, z: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 {self.features}"]:
        x = self.conv(self.channels[-1], (3, 3), padding=1, name="conv_in")(z)
        x = MidBlock(self.resnet, self.attention, name="mid_block")(x, None)
        for i, channels in enumerate(reversed(self.channels)):
            double = partial(Upsample, self.conv) if i < len(self.channels) - 1 else None
            block = UpBlock(channels, 1 + self.layers_per_block, self.resnet, None, double, name=f"up_blocks_{i}")
            x = block(x, (), None, None)
        x = nn.silu(self.norm(name="conv_norm_out")(x))
        return self.conv(self.features, (3, 3), padding=1, name="conv_out")(x)


class AutoencoderKL(nn.Module):
    """Encodes images in [-1, 1] to the mean and log-variance of latents, and decodes latents.

    Fields are those of diffusers' config.json; ``remat``, ``attention`` and ``dtype`` as in
    :class:`jaxkit.models.diffusion.unet.UNet`. Diffusion works on ``scaling_factor`` times the latents.

    Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, section 3.1.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    remat: Remat = "none"
    attention: Implementation | None = None
    dtype: Dtype = jnp.float32

    def setup(self):
        conv, dense = partial(Conv, dtype=self.dtype), partial(Dense, dtype=self.dtype)
        norm = partial(nn.GroupNorm, self.norm_num_groups, epsilon=1e-6, dtype=self.dtype, use_fast_variance=False)
        names = ("query", "key", "value", "proj_attn")
        attention = partial(FlatAttention, 1, names, dense, dense, self.attention)
        shared = {
            "resnet": partial(rematerialised(ResnetBlock, self.remat), norm=norm, conv=conv, dense=dense),
            "attention": partial(MapAttention, norm, attention) if self.mid_block_add_attention else None,
            "norm": norm,
            "conv": conv,
        }
        sizes = (self.block_out_channels, self.layers_per_block)
        self.encoder = Encoder(*sizes, 2 * self.latent_channels, **shared)
        self.decoder = Decoder(*sizes, self.out_channels, **shared)
        if self.use_quant_conv:
            self.quant_conv = conv(2 * self.latent_channels, (1, 1))
        if self.use_post_quant_conv:
            self.post_quant_conv = conv(self.latent_channels, (1, 1))

    @property
    def reduction(self) -> int:
        """Pixels along a latent's side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def encode(
        self, x: Float[Array, "b h w {self.in_channels}"]
    ) -> tuple[Float32[Array, "b h2 w2 {self.latent_channels}"], Float32[Array, "b h2 w2 {self.latent_channels}"]]:
        """Encodes images to the mean and the log-variance of each latent."""
        moments = self.encoder(x.astype(self.dtype))
        moments = self.quant_conv(moments) if self.use_quant_conv else moments
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, *_LOGVAR)

    def decode(self, z: Float[Array, "b h w {self.latent_channels}"]) -> Float32[Array, "b h2 w2 {self.out_channels}"]:
        """Decodes latents, not scaled, to images."""
        z = z.astype(self.dtype)
        return self.decoder(self.post_quant_conv(z) if self.use_post_quant_conv else z).astype(jnp.float32)

    def __call__(self, x: Float[Array, "b h w {self.in_channels}"]) -> Float32[Array, "b h w {self.out_channels}"]:
        """Encodes images to their mean latents, and decodes these."""
        return self.decode(self.encode(x)[0])
