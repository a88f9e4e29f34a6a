"""AlexNet of a single column: torchvision's for ImageNet, and the one of TfKD and SWEEN for CIFAR.

Source: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014 (arXiv:1404.5997).
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


def convolutions(
    x: Float[Array, "b h w c"], channels: tuple[int, ...], padding: int, window: int, smallest: int, conv: Callable
) -> dict[str, Float[Array, "b ..."]]:
    """Five convolutions with ReLU; the first, the second and the last followed by a maximum over ``window`` squared.

    The first, over 11x11, takes every fourth position of the image with ``padding`` around it.
    Raises ShapeError for images of fewer than ``smallest`` pixels a side, of which no map would be left.
    """
    h, w = x.shape[1:3]
    if min(h, w) < smallest:
        raise ShapeError(f"this alexnet needs images of at least {smallest} x {smallest} pixels, got {h} x {w}")
    x = nn.relu(conv(channels[0], (11, 11), strides=4, padding=padding, name="conv1")(x))
    features = {"stem": max_pool(x, window, 2)}
    x = nn.relu(conv(channels[1], (5, 5), padding=2, name="conv2")(features["stem"]))
    features["stage1"] = x = max_pool(x, window, 2)
    for n in (3, 4, 5):
        x = nn.relu(conv(channels[n - 1], (3, 3), padding=1, name=f"conv{n}")(x))
    return features | {"stage2": max_pool(x, window, 2)}


class AlexNet(nn.Module):
    """Five convolutions, 6 x 6 averages of the last map, and two hidden layers with dropout before them.

    Returns the logits and ``features``: the maps after each maximum (``stem``, ``stage1``, ``stage2``), and
    ``pre_logits`` [b d], the second hidden layer. A map of fewer than 6 x 6 values is repeated to that size, so a
    model serves images of any size from 63 x 63. In training dropout draws from the key ``dropout``. ``dtype`` is that
    of :class:`jaxkit.models.resnet.ResNet`; ``norm`` builds the norms of other models: AlexNet has none.

    Raises ShapeError for smaller images.
    """

    num_classes: int
    channels: tuple[int, ...] = (64, 192, 384, 256, 256)
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
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)

        features = convolutions(x, self.channels, padding=2, window=3, smallest=63, conv=conv)
        x = dropout()(adaptive_average_pool(features["stage2"], 6))
        x = conv(self.hidden, (6, 6), name="dense1")(x)
        x = dropout()(nn.relu(rearrange(x, "b 1 1 d -> b d")))
        features["pre_logits"] = nn.relu(dense(self.hidden, name="dense2")(x))
        return dense(self.num_classes, name="head")(features["pre_logits"]).astype(jnp.float32), features


class CifarAlexNet(nn.Module):
    """Five convolutions and a dense layer on the average of the last map.

    Returns the logits and ``features``: the maps after each maximum (``stem``, ``stage1``, ``stage2``), and
    ``pre_logits`` [b d], the average. ``dtype`` and ``norm`` are those of :class:`AlexNet`.

    Raises ShapeError for images below 29 x 29 pixels, of which no map would be left.
    """

    num_classes: int
    channels: tuple[int, ...] = (64, 192, 384, 256, 256)
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        conv = partial(Conv, initialization=self.initialization, dtype=self.dtype)
        features = convolutions(x, self.channels, padding=5, window=2, smallest=29, conv=conv)
        features["pre_logits"] = reduce(features["stage2"], "b h w c -> b c", "mean")
        head = Dense(self.num_classes, initialization=self.initialization, dtype=self.dtype, name="head")
        return head(features["pre_logits"]).astype(jnp.float32), features


alexnet = AlexNet
alexnet_tiny = partial(AlexNet, channels=(4, 6, 8, 6, 6), hidden=8)

alexnet_tfkd = CifarAlexNet
alexnet_sween = CifarAlexNet
alexnet_tiny_tfkd = partial(CifarAlexNet, channels=(4, 6, 8, 6, 6))
