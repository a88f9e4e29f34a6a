"""The two blocks that residual networks are stacked from."""

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
    """

    channels: int
    strides: int
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {4*self.channels}"]:
        y = self.conv(self.channels, (1, 1), name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(self.channels, (3, 3), strides=self.strides, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.conv(4 * self.channels, (1, 1), name="conv3")(y)
        y = self.norm(name="norm3")(y)

        if x.shape != y.shape:
            x = self.conv(4 * self.channels, (1, 1), strides=self.strides, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)
