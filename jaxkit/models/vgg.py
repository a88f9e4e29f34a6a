"""Chains of 3x3 convolutions: torchvision's for ImageNet, and those of SWEEN and RepDistiller for CIFAR.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
table 1. The CIFAR networks have a norm after each convolution and a single dense layer.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from einops import rearrange, reduce
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxkit.errors import ShapeError
from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.norms import BatchNorm
from jaxkit.nn.pooling import adaptive_average_pool, max_pool


class Block(nn.Module):
    """``size`` convolutions of 3x3, each with ReLU and, where ``norm`` is not None, a norm before it."""

    channels: int
    size: int
    conv: Callable
    norm: Callable | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w {self.channels}"]:
        for n in range(1, self.size + 1):
            x = self.conv(self.channels, (3, 3), padding=1, name=f"conv{n}")(x)
            x = nn.relu(x if self.norm is None else self.norm(name=f"norm{n}")(x))
        return x


def chain(
    x: Float[Array, "b h w c"],
    channels: tuple[int, ...],
    sizes: tuple[int, ...],
    pools: int,
    conv: Callable,
    norm: Callable | None,
) -> tuple[Float[Array, "b h2 w2 d"], dict[str, Float[Array, "b ..."]]]:
    """Applies a block for each size and halves the map after each of the first ``pools``.

    Returns the last map, and by name each block's map before it is halved.
    Raises ShapeError for images of which no map would be left.
    """
    h, w = x.shape[1:3]
    if min(h, w) < 2**pools:
        raise ShapeError(f"this vgg needs images of at least {2**pools} x {2**pools} pixels, got {h} x {w}")
    features = {}
    for i, (width, size) in enumerate(zip(channels, sizes, strict=True)):
        x = Block(width, size, conv, norm, name=f"block{i}")(x)
        features[f"stage{i}" if i else "stem"] = x
        x = max_pool(x, 2, 2) if i < pools else x
    return x, features


class VGG(nn.Module):
    """Five blocks of convolutions, the map halved after each; then 7 x 7 averages and two hidden layers with dropout.

    Returns the logits and ``features``: each block's map before it is halved (``stem``, ``stage1``, ...), and
    ``pre_logits`` [b d], the second hidden layer before dropout. A map of fewer than 7 x 7 values is repeated to that
    size, so a model serves images of any size from 32 x 32. In training dropout draws from the key ``dropout``.
    ``normalized``: with batch norm, built by ``norm``, after each convolution. ``dtype`` is that of
    :class:`jaxkit.models.resnet.ResNet`.

    Raises ShapeError for smaller images.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    normalized: bool = False
    channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: int = 4096
    dropout_rate: float = 0.5
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        conv = partial(Conv, initialization=self.initialization, dtype=self.dtype)
        dense = partial(Dense, initialization=self.initialization, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train) if self.normalized else None
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)

        x, features = chain(x, self.channels, self.stage_sizes, len(self.channels), conv, norm)
        x = conv(self.hidden, (7, 7), name="dense1")(adaptive_average_pool(x, 7))
        x = dropout()(nn.relu(rearrange(x, "b 1 1 d -> b d")))
        features["pre_logits"] = nn.relu(dense(self.hidden, name="dense2")(x))
        x = dropout()(features["pre_logits"])
        return dense(self.num_classes, name="head")(x).astype(jnp.float32), features


def five(height: int) -> int:
    """SWEEN halves the map after every block."""
    return 5


def three_or_four(height: int) -> int:
    """RepDistiller halves the map three times; a fourth time, after block 3, in images 64 pixels high and no others."""
    return 4 if height == 64 else 3


class CifarVGG(nn.Module):
    """Five blocks of convolutions with norms, and a dense layer on the average of the last map.

    ``pools`` tells from the images' height after how many blocks the map is halved. Returns the logits and
    ``features``: each block's map before it is halved (``stem``, ``stage1``, ...), and ``pre_logits`` [b d], the
    average. ``dtype`` and ``norm`` are those of :class:`jaxkit.models.resnet.ResNet`.

    Raises ShapeError for images of which no map would be left.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    pools: Callable[[int], int]
    channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        conv = partial(Conv, initialization=self.initialization, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train)

        x, features = chain(x, self.channels, self.stage_sizes, self.pools(x.shape[1]), conv, norm)
        features["pre_logits"] = reduce(x, "b h w c -> b c", "mean")
        head = Dense(self.num_classes, initialization=self.initialization, dtype=self.dtype, name="head")
        return head(features["pre_logits"]).astype(jnp.float32), features


vgg11 = partial(VGG, stage_sizes=(1, 1, 2, 2, 2))
vgg13 = partial(VGG, stage_sizes=(2, 2, 2, 2, 2))
vgg16 = partial(VGG, stage_sizes=(2, 2, 3, 3, 3))
vgg19 = partial(VGG, stage_sizes=(2, 2, 4, 4, 4))
vgg_tiny = partial(VGG, stage_sizes=(1, 2, 1), channels=(4, 6, 8), hidden=8)

vgg11_bn = partial(vgg11, normalized=True)
vgg13_bn = partial(vgg13, normalized=True)
vgg16_bn = partial(vgg16, normalized=True)
vgg19_bn = partial(vgg19, normalized=True)
vgg_tiny_bn = partial(vgg_tiny, normalized=True)

vgg11_sween = partial(CifarVGG, stage_sizes=(1, 1, 2, 2, 2), pools=five)
vgg13_sween = partial(CifarVGG, stage_sizes=(2, 2, 2, 2, 2), pools=five)
vgg16_sween = partial(CifarVGG, stage_sizes=(2, 2, 3, 3, 3), pools=five)
vgg19_sween = partial(CifarVGG, stage_sizes=(2, 2, 4, 4, 4), pools=five)
vgg_tiny_sween = partial(CifarVGG, stage_sizes=(1, 2, 1, 1, 1), channels=(4, 6, 8, 8, 8), pools=five)

vgg8_repdistiller = partial(CifarVGG, stage_sizes=(1, 1, 1, 1, 1), pools=three_or_four)
vgg11_repdistiller = partial(vgg11_sween, pools=three_or_four)
vgg13_repdistiller = partial(vgg13_sween, pools=three_or_four)
vgg16_repdistiller = partial(vgg16_sween, pools=three_or_four)
vgg19_repdistiller = partial(vgg19_sween, pools=three_or_four)
vgg_tiny_repdistiller = partial(vgg_tiny_sween, pools=three_or_four)
