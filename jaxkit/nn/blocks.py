"""The blocks that residual networks are stacked from, and the unit of Inception networks."""

from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016, fig. 2).

    ``conv`` and ``norm`` build the layers. A shortcut between maps of different shape is a 1x1 convolution (option B).
    """

    channels: int
    strides: int
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {self.channels}"]:
        y = self.conv(self.channels, (3, 3), strides=self.strides, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(self.channels, (3, 3), padding=1, name="conv2")(y)
        y = self.norm(name="norm2")(y)

        if x.shape != y.shape:
            x = self.conv(self.channels, (1, 1), strides=self.strides, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution to four times the channels, and a shortcut (He et al., 2016, fig. 5).

    The stride is that of the 3x3, where torchvision and Goyal et al. (2017) put it; in the paper the first 1x1 has it.
    The 3x3 works on ``widening`` times the channels, in ``groups`` (ResNeXt 32x4d: 32 groups of 4, of 64 channels
    widened twice; Xie et al., 2017, fig. 3c).
    """

    channels: int
    strides: int
    conv: Callable
    norm: Callable
    groups: int = 1
    widening: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {4*self.channels}"]:
        width = self.widening * self.channels
        y = self.conv(width, (1, 1), name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(width, (3, 3), strides=self.strides, padding=1, groups=self.groups, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.conv(4 * self.channels, (1, 1), name="conv3")(y)
        y = self.norm(name="norm3")(y)

        if x.shape != y.shape:
            x = self.conv(4 * self.channels, (1, 1), strides=self.strides, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


class ConvNorm(nn.Module):
    """A convolution, its norm and ReLU; ``conv`` and ``norm`` build the first two."""

    channels: int
    kernel_size: tuple[int, int]
    conv: Callable
    norm: Callable
    strides: int = 1
    padding: int | tuple[int, int] = 0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {self.channels}"]:
        x = self.conv(self.channels, self.kernel_size, strides=self.strides, padding=self.padding, name="conv")(x)
        return nn.relu(self.norm(name="norm")(x))
