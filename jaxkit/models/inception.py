"""Inception v3, as torchvision has it.

Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016, table 1, figures 5-7
and 10; widths of the branches as in TensorFlow's implementation.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from einops import reduce
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxkit.errors import ShapeError
from jaxkit.models.googlenet import transform_imagenet
from jaxkit.nn.blocks import ConvNorm
from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.norms import BatchNorm
from jaxkit.nn.pooling import adaptive_average_pool, average_pool, max_pool

# Kernels of one row and of one column, with the padding that keeps the map's size.
ROW3, COLUMN3 = {"kernel_size": (1, 3), "padding": (0, 1)}, {"kernel_size": (3, 1), "padding": (1, 0)}
ROW7, COLUMN7 = {"kernel_size": (1, 7), "padding": (0, 3)}, {"kernel_size": (7, 1), "padding": (3, 0)}


def scaled(
    channels: int,
    kernel_size: tuple[int, int],
    width: float,
    unit: Callable,
    name: str,
    strides: int = 1,
    padding: int | tuple[int, int] = 0,
) -> nn.Module:
    """Builds a unit of ``width`` times the channels."""
    return unit(round(width * channels), kernel_size, strides=strides, padding=padding, name=name)


class InceptionA(nn.Module):
    """1x1; 5x5; two 3x3; a mean and 1x1 to ``pooled`` channels (figure 5)."""

    pooled: int
    unit: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        unit = self.unit
        one = unit(64, (1, 1), name="branch1x1")(x)

        five = unit(48, (1, 1), name="branch5x5_1")(x)
        five = unit(64, (5, 5), padding=2, name="branch5x5_2")(five)

        double = unit(64, (1, 1), name="branch3x3dbl_1")(x)
        double = unit(96, (3, 3), padding=1, name="branch3x3dbl_2")(double)
        double = unit(96, (3, 3), padding=1, name="branch3x3dbl_3")(double)

        pooled = unit(self.pooled, (1, 1), name="branch_pool")(average_pool(x, 3, 1, padding=1))
        return jnp.concatenate([one, five, double, pooled], axis=-1)


class InceptionB(nn.Module):
    """3x3; two 3x3; a maximum: each halves the map (figure 10)."""

    unit: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        unit = self.unit
        three = unit(384, (3, 3), strides=2, name="branch3x3")(x)

        double = unit(64, (1, 1), name="branch3x3dbl_1")(x)
        double = unit(96, (3, 3), padding=1, name="branch3x3dbl_2")(double)
        double = unit(96, (3, 3), strides=2, name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, max_pool(x, 3, 2)], axis=-1)


class InceptionC(nn.Module):
    """1x1; 7x7, cut into a row and a column; two of them, of ``inner`` channels; a mean and 1x1 (figure 6)."""

    inner: int
    unit: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        unit = self.unit
        one = unit(192, (1, 1), name="branch1x1")(x)

        seven = unit(self.inner, (1, 1), name="branch7x7_1")(x)
        seven = unit(self.inner, **ROW7, name="branch7x7_2")(seven)
        seven = unit(192, **COLUMN7, name="branch7x7_3")(seven)

        double = unit(self.inner, (1, 1), name="branch7x7dbl_1")(x)
        double = unit(self.inner, **COLUMN7, name="branch7x7dbl_2")(double)
        double = unit(self.inner, **ROW7, name="branch7x7dbl_3")(double)
        double = unit(self.inner, **COLUMN7, name="branch7x7dbl_4")(double)
        double = unit(192, **ROW7, name="branch7x7dbl_5")(double)

        pooled = unit(192, (1, 1), name="branch_pool")(average_pool(x, 3, 1, padding=1))
        return jnp.concatenate([one, seven, double, pooled], axis=-1)


class InceptionD(nn.Module):
    """3x3; 7x7, cut, and 3x3; a maximum: each halves the map."""

    unit: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        unit = self.unit
        three = unit(192, (1, 1), name="branch3x3_1")(x)
        three = unit(320, (3, 3), strides=2, name="branch3x3_2")(three)

        seven = unit(192, (1, 1), name="branch7x7x3_1")(x)
        seven = unit(192, **ROW7, name="branch7x7x3_2")(seven)
        seven = unit(192, **COLUMN7, name="branch7x7x3_3")(seven)
        seven = unit(192, (3, 3), strides=2, name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, max_pool(x, 3, 2)], axis=-1)


class InceptionE(nn.Module):
    """1x1; a row beside a column; 3x3, then a row beside a column; a mean and 1x1 (figure 7)."""

    unit: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        unit = self.unit
        one = unit(320, (1, 1), name="branch1x1")(x)

        three = unit(384, (1, 1), name="branch3x3_1")(x)
        row = unit(384, **ROW3, name="branch3x3_2a")(three)
        column = unit(384, **COLUMN3, name="branch3x3_2b")(three)

        double = unit(448, (1, 1), name="branch3x3dbl_1")(x)
        double = unit(384, (3, 3), padding=1, name="branch3x3dbl_2")(double)
        double_row = unit(384, **ROW3, name="branch3x3dbl_3a")(double)
        double_column = unit(384, **COLUMN3, name="branch3x3dbl_3b")(double)

        pooled = unit(192, (1, 1), name="branch_pool")(average_pool(x, 3, 1, padding=1))
        return jnp.concatenate([one, row, column, double_row, double_column, pooled], axis=-1)


class AuxiliaryHead(nn.Module):
    """Means to 5x5, a 1x1 and a 5x5 convolution, and a linear layer: logits from a map within the network (figure 8).

    The means are over 5x5, 3 apart. A map below 17 x 17, where no 5x5 would be left, is cut into 5x5 windows instead.
    """

    unit: Callable
    dense: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float32[Array, "b k"]:
        x = average_pool(x, 5, 3) if min(x.shape[1:3]) >= 17 else adaptive_average_pool(x, 5)
        x = self.unit(128, (1, 1), name="conv0")(x)
        x = self.unit(768, (5, 5), name="conv1")(x)
        x = reduce(x, "b h w c -> b c", "mean")
        return self.dense(name="head")(x).astype(jnp.float32)


class InceptionV3(nn.Module):
    """A stem that divides the map by 8, then stages of modules whose branches stand side by side.

    Returns the logits and ``features``: the maps after the stem and each stage (``Mixed_5``, ``6`` and ``7``),
    ``pre_logits`` [b d], the average of the last map before dropout, and with ``auxiliary`` the logits ``aux1`` [b c]
    of a head on stage 2 (torchvision adds 0.4 of its loss). In training dropout draws from the key ``dropout``.
    ``pooled`` and ``inner`` are the widths of the first two stages' modules; ``width`` multiplies all channels.
    ``dtype`` and ``norm`` are those of :class:`jaxkit.models.resnet.ResNet`.

    The published weights expect pixels in [-1, 1]: ``transform_input`` leads there from ImageNet's mean and deviation,
    see :func:`jaxkit.models.googlenet.transform_imagenet`. Torchvision's auxiliary head cannot train on images below
    299 x 299.

    Raises ShapeError for images below 75 x 75 pixels, of which no map is left, and for ``transform_input`` of others
    than three channels.
    """

    num_classes: int
    pooled: tuple[int, ...] = (32, 64, 64)
    inner: tuple[int, ...] = (128, 160, 160, 192)
    width: float = 1.0
    auxiliary: bool = False
    dropout_rate: float = 0.5
    transform_input: bool = False
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        if min(x.shape[1:3]) < 75:
            raise ShapeError(f"inception needs images of at least 75 x 75 pixels, got {x.shape[1]} x {x.shape[2]}")
        x = transform_imagenet(x) if self.transform_input else x
        conv = partial(Conv, use_bias=False, initialization=self.initialization, dtype=self.dtype)
        norm = partial(self.norm, epsilon=1e-3, use_running_average=not train)
        dense = partial(Dense, self.num_classes, initialization=self.initialization, dtype=self.dtype)
        unit = partial(scaled, width=self.width, unit=partial(ConvNorm, conv=conv, norm=norm))

        x = unit(32, (3, 3), strides=2, name="conv_1a")(x)
        x = unit(32, (3, 3), name="conv_2a")(x)
        x = unit(64, (3, 3), padding=1, name="conv_2b")(x)
        x = max_pool(x, 3, 2)
        x = unit(80, (1, 1), name="conv_3b")(x)
        x = unit(192, (3, 3), name="conv_4a")(x)
        features = {"stem": (x := max_pool(x, 3, 2))}
        for letter, pooled in zip("bcd", self.pooled, strict=False):
            x = InceptionA(pooled, unit, name=f"mixed_5{letter}")(x)
        features["stage1"] = x
        x = InceptionB(unit, name="mixed_6a")(x)
        for letter, inner in zip("bcde", self.inner, strict=False):
            x = InceptionC(inner, unit, name=f"mixed_6{letter}")(x)
        features["stage2"] = x
        if self.auxiliary:
            features["aux1"] = AuxiliaryHead(unit, dense, name="aux1")(x)
        x = InceptionD(unit, name="mixed_7a")(x)
        x = InceptionE(unit, name="mixed_7b")(x)
        features["stage3"] = x = InceptionE(unit, name="mixed_7c")(x)

        features["pre_logits"] = reduce(x, "b h w c -> b c", "mean")
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(features["pre_logits"])
        return dense(name="head")(x).astype(jnp.float32), features


inception_v3 = InceptionV3
inception_v3_aux = partial(InceptionV3, auxiliary=True)
inception_tiny = partial(InceptionV3, pooled=(32,), inner=(128,), width=1 / 16, auxiliary=True)
