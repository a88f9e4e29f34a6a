"""Residual networks for ImageNet, and the same bodies behind a small stem for CIFAR.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; with groups (ResNeXt) Xie et
al., CVPR 2017, table 1; wide ones Zagoruyko and Komodakis, BMVC 2016, table 8.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from einops import reduce
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxkit.nn.blocks import BasicBlock, Bottleneck
from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.norms import BatchNorm


def imagenet_stem(
    x: Float[Array, "b h w c"], channels: int, conv: Callable, norm: Callable
) -> Float[Array, "b h4 w4 d"]:
    """A 7x7 convolution and a maximum, each halving the map."""
    x = conv(channels, (7, 7), strides=2, padding=3, name="conv_stem")(x)
    x = nn.relu(norm(name="norm_stem")(x))
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def cifar_stem(x: Float[Array, "b h w c"], channels: int, conv: Callable, norm: Callable) -> Float[Array, "b h w d"]:
    """A 3x3 convolution that keeps the map's size."""
    x = conv(channels, (3, 3), padding=1, name="conv_stem")(x)
    return nn.relu(norm(name="norm_stem")(x))


class ResNet(nn.Module):
    """Stages of residual blocks behind a stem; every stage but the first halves the map.

    Returns the logits and ``features``: the maps after the stem and each stage, and ``pre_logits`` [b d], the average
    of the last map, so images of any size can be classified. ``dtype`` is that of the arithmetic (None: the images');
    parameters, statistics and logits are float32. ``norm`` builds the normalisation layers.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    block: Callable = BasicBlock
    stem: Callable = imagenet_stem
    stem_channels: int = 64
    channels: tuple[int, ...] = (64, 128, 256, 512)
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        conv = partial(Conv, use_bias=False, initialization=self.initialization, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train)

        x = self.stem(x, self.stem_channels, conv, norm)
        features = {"stem": x}
        for stage, (size, channels) in enumerate(zip(self.stage_sizes, self.channels, strict=True), start=1):
            for i in range(size):
                strides = 2 if stage > 1 and i == 0 else 1
                x = self.block(channels, strides, conv, norm, name=f"stage{stage}_block{i}")(x)
            features[f"stage{stage}"] = x

        features["pre_logits"] = reduce(x, "b h w c -> b c", "mean")
        head = Dense(self.num_classes, initialization=self.initialization, dtype=self.dtype, name="head")
        return head(features["pre_logits"]).astype(jnp.float32), features


resnet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2))
resnet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3))
resnet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
resnet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3), block=Bottleneck)
resnet152 = partial(ResNet, stage_sizes=(3, 8, 36, 3), block=Bottleneck)
resnet_tiny = partial(ResNet, stage_sizes=(2, 1), channels=(8, 16), stem_channels=8)

resnext50_32x4d = partial(resnet50, block=partial(Bottleneck, groups=32, widening=2))
resnext101_32x8d = partial(resnet101, block=partial(Bottleneck, groups=32, widening=4))
resnext101_64x4d = partial(resnet101, block=partial(Bottleneck, groups=64, widening=4))
wide_resnet50_2 = partial(resnet50, block=partial(Bottleneck, widening=2))
wide_resnet101_2 = partial(resnet101, block=partial(Bottleneck, widening=2))

resnet18_cifar = partial(resnet18, stem=cifar_stem)
resnet34_cifar = partial(resnet34, stem=cifar_stem)
resnet50_cifar = partial(resnet50, stem=cifar_stem)
resnet101_cifar = partial(resnet101, stem=cifar_stem)
resnet152_cifar = partial(resnet152, stem=cifar_stem)
resnet_tiny_cifar = partial(resnet_tiny, block=Bottleneck, stem=cifar_stem)
