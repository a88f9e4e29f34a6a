"""GoogLeNet: torchvision's for ImageNet, and that of teacher-free distillation for CIFAR.

Source: Szegedy et al., "Going deeper with convolutions", CVPR 2015, table 1. The norms are of later date (Ioffe and
Szegedy, 2015).
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxkit.errors import ShapeError
from jaxkit.nn.blocks import ConvNorm
from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.norms import BatchNorm
from jaxkit.nn.pooling import adaptive_average_pool, max_pool

Widths = tuple[int, int, int, int, int, int]
Stages = tuple[tuple[Widths, ...], ...]

# Table 1: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool proj.
PAPER = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
TINY = (((2, 3, 4, 2, 3, 2),), ((2, 2, 3, 2, 2, 3),) * 4, ((4, 2, 4, 3, 4, 2),))
# Where the auxiliary heads sit (figure 3).
AUXILIARY = {"inception4a": "aux1", "inception4d": "aux2"}
# Of ImageNet's red, green and blue, as ``data.normalize: imagenet`` has them.
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def transform_imagenet(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Maps pixels normalised by ImageNet's mean and deviation to ``(pixel - 0.5) / 0.5``, within [-1, 1].

    ``x deviation / 0.5 + (mean - 0.5) / 0.5``, which torchvision calls ``transform_input``.

    Raises ShapeError unless there are three channels.
    """
    if x.shape[3] != 3:
        raise ShapeError(f"transform_input is for images of ImageNet's three channels, got {x.shape[3]}: leave it out")
    return x * jnp.asarray(DEVIATION / 0.5, x.dtype) + jnp.asarray((MEAN - 0.5) / 0.5, x.dtype)


def one_convolution(
    x: Float[Array, "b h w c"], channels: int, unit: Callable, size: int
) -> Float[Array, "b h w {channels}"]:
    """Torchvision's branch behind ``5x5 reduce``."""
    return unit(channels, (size, size), padding=size // 2, name="conv5x5")(x)


def two_convolutions(
    x: Float[Array, "b h w c"], channels: int, unit: Callable, norm: Callable, compat: str
) -> Float[Array, "b h w {channels}"]:
    """Teacher-free distillation's branch behind ``5x5 reduce``: two 3x3 in place of one 5x5."""
    epsilon = {"reference": float(channels), "paper": 1e-5}[compat]
    x = unit(channels, (3, 3), padding=1, norm=partial(norm, epsilon=epsilon), name="conv5x5")(x)
    return unit(channels, (3, 3), padding=1, name="conv5x5_2")(x)


class Inception(nn.Module):
    """Four branches side by side: 1x1; 3x3 and ``five`` on reduced channels; a maximum and 1x1 (figure 2b)."""

    widths: Widths
    unit: Callable
    five: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        conv1x1, reduce3x3, conv3x3, reduce5x5, conv5x5, pool_proj = self.widths
        pointwise = partial(self.unit, kernel_size=(1, 1))

        one = pointwise(conv1x1, name="conv1x1")(x)
        three = pointwise(reduce3x3, name="reduce3x3")(x)
        three = self.unit(conv3x3, (3, 3), padding=1, name="conv3x3")(three)
        five = pointwise(reduce5x5, name="reduce5x5")(x)
        five = self.five(five, conv5x5, self.unit)
        pooled = pointwise(pool_proj, name="pool_proj")(max_pool(x, 3, 1, padding=1))
        return jnp.concatenate([one, three, five, pooled], axis=-1)


class AuxiliaryHead(nn.Module):
    """Means over 4x4 windows, a 1x1 convolution, a hidden layer and dropout: logits from a map within the network."""

    num_classes: int
    widths: tuple[int, int]
    dropout_rate: float
    unit: Callable
    conv: Callable
    dense: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float32[Array, "b {self.num_classes}"]:
        channels, hidden = self.widths
        x = self.unit(channels, (1, 1), name="conv")(adaptive_average_pool(x, 4))
        x = nn.relu(self.conv(hidden, (4, 4), name="dense1")(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(rearrange(x, "b 1 1 d -> b d"))
        return self.dense(self.num_classes, name="head")(x).astype(jnp.float32)


class GoogLeNet(nn.Module):
    """Torchvision's network: three convolutions, then stages of Inception modules, maxima between.

    Returns the logits and ``features``: the maps after the stem and each stage, ``pre_logits`` [b d], the average of
    the last map before dropout, and where ``auxiliary`` gives the widths of two auxiliary heads, their logits ``aux1``
    and ``aux2`` [b c] (the paper adds 0.3 of each head's loss). In training dropout draws from the key ``dropout``:
    ``dropout_rate`` of ``pre_logits``, 0.7 of a head's hidden layer; a ``dropout_rate`` of 0 turns off both.
    ``dtype`` and ``norm`` are those of :class:`jaxkit.models.resnet.ResNet`.

    ``compat="reference"``: a 3x3 convolution behind ``5x5 reduce``, as the published weights were trained (issue 906
    of torchvision); ``"paper"``: a 5x5. Those weights expect pixels in [-1, 1]: ``transform_input`` leads there from
    ImageNet's mean and deviation, see :func:`transform_imagenet`. Their auxiliary heads were never trained.

    Raises ShapeError for images below 15 x 15 pixels, of which no map is left, and for ``transform_input`` of others
    than three channels.
    """

    num_classes: int
    stem_channels: tuple[int, int, int] = (64, 64, 192)
    stages: Stages = PAPER
    auxiliary: tuple[int, int] | None = None
    dropout_rate: float = 0.2
    compat: str = "reference"
    transform_input: bool = False
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        if min(x.shape[1:3]) < 15:
            raise ShapeError(f"googlenet needs images of at least 15 x 15 pixels, got {x.shape[1]} x {x.shape[2]}")
        x = transform_imagenet(x) if self.transform_input else x
        conv = partial(Conv, initialization=self.initialization, dtype=self.dtype)
        norm = partial(self.norm, epsilon=1e-3, use_running_average=not train)
        dense = partial(Dense, initialization=self.initialization, dtype=self.dtype)
        unit = partial(ConvNorm, conv=partial(conv, use_bias=False), norm=norm)
        block = partial(
            Inception, unit=unit, five=partial(one_convolution, size={"reference": 3, "paper": 5}[self.compat])
        )
        aux_rate = 0.7 if self.dropout_rate else 0.0
        aux = partial(AuxiliaryHead, self.num_classes, self.auxiliary, aux_rate, unit, conv, dense)

        first, second, third = self.stem_channels
        x = unit(first, (7, 7), strides=2, padding=3, name="conv1")(x)
        x = max_pool(x, 3, 2, ceil=True)
        x = unit(second, (1, 1), name="conv2")(x)
        x = unit(third, (3, 3), padding=1, name="conv3")(x)
        x = max_pool(x, 3, 2, ceil=True)
        features = {"stem": x}
        for stage, modules in enumerate(self.stages, start=1):
            if stage > 1:
                x = max_pool(x, 3 if stage == 2 else 2, 2, ceil=True)
            for letter, widths in zip("abcde", modules, strict=False):
                name = f"inception{stage + 2}{letter}"
                x = block(widths, name=name)(x)
                if self.auxiliary and name in AUXILIARY:
                    features[AUXILIARY[name]] = aux(name=AUXILIARY[name])(x, train)
            features[f"stage{stage}"] = x

        features["pre_logits"] = reduce(x, "b h w c -> b c", "mean")
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(features["pre_logits"])
        return dense(self.num_classes, name="head")(x).astype(jnp.float32), features


class TfkdGoogLeNet(nn.Module):
    """The CIFAR network of teacher-free distillation: one 3x3 convolution as stem, biases, no auxiliary heads.

    Returns what :class:`GoogLeNet` does, for images of any size.

    ``compat="reference"``: the norm between the two 3x3 convolutions has ``epsilon`` equal to its number of channels
    (32 to 128), as the weights of Yuan et al. (CVPR 2020) were trained; ``"paper"``: 1e-5, as all others.
    """

    num_classes: int
    stem_channels: int = 192
    stages: Stages = PAPER
    dropout_rate: float = 0.4
    compat: str = "reference"
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        conv = partial(Conv, initialization=self.initialization, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train)
        unit = partial(ConvNorm, conv=conv, norm=norm)
        block = partial(Inception, unit=unit, five=partial(two_convolutions, norm=norm, compat=self.compat))

        x = unit(self.stem_channels, (3, 3), padding=1, name="conv1")(x)
        features = {"stem": x}
        for stage, modules in enumerate(self.stages, start=1):
            if stage > 1:
                x = max_pool(x, 3, 2, padding=1)
            for letter, widths in zip("abcde", modules, strict=False):
                x = block(widths, name=f"inception{stage + 2}{letter}")(x)
            features[f"stage{stage}"] = x

        features["pre_logits"] = reduce(x, "b h w c -> b c", "mean")
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(features["pre_logits"])
        head = Dense(self.num_classes, initialization=self.initialization, dtype=self.dtype, name="head")
        return head(x).astype(jnp.float32), features


googlenet = GoogLeNet
googlenet_aux = partial(GoogLeNet, auxiliary=(128, 1024))
googlenet_tiny = partial(GoogLeNet, stem_channels=(4, 4, 6), stages=TINY, auxiliary=(3, 8))
googlenet_tfkd = TfkdGoogLeNet
googlenet_tiny_tfkd = partial(TfkdGoogLeNet, stem_channels=6, stages=TINY)
