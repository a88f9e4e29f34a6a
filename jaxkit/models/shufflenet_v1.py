"""ShuffleNet for CIFAR, of grouped 1x1 convolutions between which the channels are shuffled.

Source: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", CVPR 2018.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from einops import rearrange, reduce
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.norms import BatchNorm
from jaxkit.nn.pooling import average_pool


class ShuffleUnit(nn.Module):
    """A grouped bottleneck and a shortcut: added, or where it strides, an average put behind it (fig. 2 b, c).

    A ReLU follows the depthwise convolution, as in the published weights; the paper has none there. ``groups`` are
    those of the first and of the last convolution.
    """

    channels: int
    strides: int
    groups: tuple[int, int]
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {self.channels}"]:
        shortcut = x if self.strides == 1 else average_pool(x, 3, self.strides, padding=1)
        channels = self.channels if self.strides == 1 else self.channels - x.shape[-1]
        width, (groups_in, groups_out) = channels // 4, self.groups

        y = self.conv(width, (1, 1), groups=groups_in, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = rearrange(y, "b h w (g c) -> b h w (c g)", g=groups_in)
        y = self.conv(width, (3, 3), strides=self.strides, padding=1, groups=width, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.conv(channels, (1, 1), groups=groups_out, name="conv3")(y)
        y = self.norm(name="norm3")(y)
        return nn.relu(y + shortcut if self.strides == 1 else jnp.concatenate([y, shortcut], axis=-1))


class ShuffleNet(nn.Module):
    """Stages of shuffle units, each of which halves the map, behind a 1x1 convolution.

    Returns the logits and ``features``: the maps after the stem and each stage, and ``pre_logits`` [b d], the average
    of the last map, so images of any size can be classified. The first convolution of the first stage, which has few
    channels to read, is not grouped. ``dtype`` and ``norm`` are those of :class:`jaxkit.models.resnet.ResNet`.

    Source: the layout of Tian et al., "Contrastive Representation Distillation", ICLR 2020.
    """

    num_classes: int
    channels: tuple[int, ...] = (240, 480, 960)
    stage_sizes: tuple[int, ...] = (4, 8, 4)
    stem_channels: int = 24
    groups: int = 3
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        conv = partial(Conv, use_bias=False, initialization=self.initialization, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train)

        x = nn.relu(norm(name="norm_stem")(conv(self.stem_channels, (1, 1), name="conv_stem")(x)))
        features = {"stem": x}
        for stage, (size, channels) in enumerate(zip(self.stage_sizes, self.channels, strict=True), start=1):
            for i in range(size):
                groups = (1 if stage == 1 and i == 0 else self.groups, self.groups)
                strides = 2 if i == 0 else 1
                x = ShuffleUnit(channels, strides, groups, conv, norm, name=f"stage{stage}_block{i}")(x)
            features[f"stage{stage}"] = x

        features["pre_logits"] = reduce(x, "b h w c -> b c", "mean")
        head = Dense(self.num_classes, initialization=self.initialization, dtype=self.dtype, name="head")
        return head(features["pre_logits"]).astype(jnp.float32), features


shufflenet_v1 = ShuffleNet
shufflenet_v1_tiny = partial(ShuffleNet, channels=(24, 48), stage_sizes=(2, 2), stem_channels=12)
