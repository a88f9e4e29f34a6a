"""What UNet and autoencoder are stacked from, with the names of diffusers' Flax classes."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from einops import repeat
from flax import linen as nn
from jaxtyping import Array, Float

Remat = Literal["none", "full", "dots"]


def rematerialised(module: type[nn.Module], policy: Remat) -> type[nn.Module]:
    """A module whose backward pass computes again what the policy does not keep of the forward pass.

    ``none`` keeps everything, ``dots`` the results of matrix products, ``full`` only what goes into the module.
    """
    match policy:
        case "none":
            return module
        case "dots":
            return nn.remat(module, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        case "full":
            return nn.remat(module)


class ResnetBlock(nn.Module):
    """Twice norm, SiLU and a 3x3 convolution, and a shortcut, 1x1 where the channels change; their sum over ``scale``.

    With a time embedding, its projection is added to every pixel between the two.
    """

    channels: int
    norm: Callable
    conv: Callable
    dense: Callable
    scale: float = 1.0
    dropout_rate: float = 0.0
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b e"] | None = None
    ) -> Float[Array, "b h w {self.channels}"]:
        y = nn.silu(self.norm(name="norm1")(x))
        y = self.conv(self.channels, (3, 3), padding=1, name="conv1")(y)
        if time is not None:
            y = y + self.dense(self.channels, name="time_emb_proj")(nn.silu(time))[:, None, None]
        y = nn.silu(self.norm(name="norm2")(y))
        y = nn.Dropout(self.dropout_rate, deterministic=not self.train)(y)
        y = self.conv(self.channels, (3, 3), padding=1, name="conv2")(y)

        if x.shape != y.shape:
            x = self.conv(self.channels, (1, 1), name="conv_shortcut")(x)
        return (x + y) / self.scale


class Downsample(nn.Module):
    """Halves a map by a 3x3 convolution, with zeros all around it, or below and right of it without ``padding``."""

    conv: Callable
    padding: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        if not self.padding:
            x = jnp.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
        return self.conv(x.shape[-1], (3, 3), strides=2, padding=self.padding, name="conv")(x)


class Upsample(nn.Module):
    """Doubles a map by repeating its pixels, cuts it to ``size``, and convolves it 3x3."""

    conv: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None) -> Float[Array, "b h2 w2 c"]:
        x = repeat(x, "b h w c -> b (h y) (w x) c", y=2, x=2)
        if size is not None:
            x = x[:, : size[0], : size[1]]
        return self.conv(x.shape[-1], (3, 3), padding=1, name="conv")(x)


class DownBlock(nn.Module):
    """Residual blocks, each with attention behind it where there is one, and a halving unless ``downsample`` is None.

    Returns the map, and those after every layer. ``resnet`` builds from channels; ``context`` goes to the attention.
    """

    channels: int
    num_layers: int
    resnet: Callable
    attention: Callable | None
    downsample: Callable | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b e"] | None, *context: Float[Array, "b t d"]
    ) -> tuple[Float[Array, "b h2 w2 c2"], list[Float[Array, "b _ _ c2"]]]:
        maps = []
        for i in range(self.num_layers):
            x = self.resnet(self.channels, name=f"resnets_{i}")(x, time)
            if self.attention is not None:
                x = self.attention(name=f"attentions_{i}")(x, *context)
            maps.append(x)
        if self.downsample is not None:
            x = self.downsample(name="downsamplers_0")(x)
            maps.append(x)
        return x, maps


class MidBlock(nn.Module):
    """A residual block, attention unless it is None, and a residual block."""

    resnet: Callable
    attention: Callable | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b e"] | None, *context: Float[Array, "b t d"]
    ) -> Float[Array, "b h w c"]:
        x = self.resnet(x.shape[-1], name="resnets_0")(x, time)
        if self.attention is not None:
            x = self.attention(name="attentions_0")(x, *context)
        return self.resnet(x.shape[-1], name="resnets_1")(x, time)


class UpBlock(nn.Module):
    """Residual blocks, each with attention behind it where there is one, and a doubling unless ``upsample`` is None.

    Each block also takes the last of the maps in ``skips`` that is left, if there are any. ``size`` is that of the
    doubled map, where it is not just twice the sides.
    """

    channels: int
    num_layers: int
    resnet: Callable
    attention: Callable | None
    upsample: Callable | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        skips: Sequence[Float[Array, "b h w _"]],
        size: tuple[int, int] | None,
        time: Float[Array, "b e"] | None,
        *context: Float[Array, "b t d"],
    ) -> Float[Array, "b h2 w2 {self.channels}"]:
        for i in range(self.num_layers):
            if skips:
                x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
            x = self.resnet(self.channels, name=f"resnets_{i}")(x, time)
            if self.attention is not None:
                x = self.attention(name=f"attentions_{i}")(x, *context)
        return x if self.upsample is None else self.upsample(name="upsamplers_0")(x, size)
