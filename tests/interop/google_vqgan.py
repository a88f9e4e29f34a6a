"""MaskGIT's tokenizer as its paper's code declares it: in Flax, layers unnamed, so that Flax numbers them."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

Conv = partial(nn.Conv, padding="SAME")


class ResBlock(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x):
        conv, inputs = partial(Conv, self.channels, use_bias=False), x.shape[-1]
        y = conv((3, 3))(nn.swish(nn.GroupNorm(32)(x)))
        y = conv((3, 3))(nn.swish(nn.GroupNorm(32)(y)))
        return y + (x if inputs == self.channels else conv((1, 1))(y))


class Encoder(nn.Module):
    widths: tuple
    blocks: int
    hidden: int
    z_channels: int

    @nn.compact
    def __call__(self, x):
        x = Conv(self.hidden, (3, 3), use_bias=False)(x)
        for i, width in enumerate(self.widths):
            x = nn.avg_pool(x, (2, 2), (2, 2)) if i else x
            for _ in range(self.blocks):
                x = ResBlock(width)(x)
        for _ in range(self.blocks):
            x = ResBlock(self.widths[-1])(x)
        return Conv(self.z_channels, (1, 1))(nn.swish(nn.GroupNorm(32)(x)))


class Decoder(nn.Module):
    widths: tuple
    blocks: int

    @nn.compact
    def __call__(self, z):
        x = Conv(self.widths[-1], (3, 3))(z)
        for _ in range(self.blocks):
            x = ResBlock(self.widths[-1])(x)
        for i, width in reversed(list(enumerate(self.widths))):
            for _ in range(self.blocks):
                x = ResBlock(width)(x)
            if i:
                b, h, w, c = x.shape
                x = Conv(width, (3, 3))(jax.image.resize(x, (b, 2 * h, 2 * w, c), "nearest"))
        return Conv(3, (3, 3))(nn.swish(nn.GroupNorm(32)(x)))


class Quantizer(nn.Module):
    size: int
    width: int

    @nn.compact
    def __call__(self, z):
        codebook = self.param("codebook", nn.initializers.normal(1.0), (self.size, self.width))
        distances = jnp.square(z[..., None, :] - codebook).sum(-1)
        tokens = distances.argmin(-1)
        return codebook[tokens], tokens


class VQVAE(nn.Module):
    widths: tuple
    blocks: int
    hidden: int
    z_channels: int
    size: int

    def setup(self):
        self.encoder = Encoder(self.widths, self.blocks, self.hidden, self.z_channels)
        self.decoder = Decoder(self.widths, self.blocks)
        self.quantizer = Quantizer(self.size, self.z_channels)

    def __call__(self, x):
        z_q, tokens = self.quantizer(self.encoder(x))
        return tokens, self.decoder(z_q)
