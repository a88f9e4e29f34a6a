"""SqueezeNet 1.0 and 1.1 for ImageNet.

Source: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters", 2016 (arXiv:1602.07360),
table 1; version 1.1 is the authors' own revision: a smaller stem, and the maxima earlier.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from einops import reduce
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxkit.errors import ShapeError
from jaxkit.nn.layers import Conv
from jaxkit.nn.norms import BatchNorm
from jaxkit.nn.pooling import max_pool


class Fire(nn.Module):
    """A 1x1 convolution to few channels; 1x1 and 3x3 convolutions of them, four times as many each, side by side."""

    squeezed: int
    conv: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w {8*self.squeezed}"]:
        x = nn.relu(self.conv(self.squeezed, (1, 1), name="squeeze")(x))
        single = self.conv(4 * self.squeezed, (1, 1), name="expand1x1")(x)
        triple = self.conv(4 * self.squeezed, (3, 3), padding=1, name="expand3x3")(x)
        return nn.relu(jnp.concatenate([single, triple], axis=-1))


class SqueezeNet(nn.Module):
    """A strided convolution; stages of fire modules, each behind a maximum; a 1x1 convolution, averaged after ReLU.

    ``squeezed`` has, for each stage, the channels its fire modules squeeze the map to. Returns the logits and
    ``features``: the maps after the stem and each stage, and ``pre_logits`` [b d], the average of the last map; the
    logits are no linear function of it, as ReLU comes between. In training dropout draws from the key ``dropout``.
    ``dtype`` is that of :class:`jaxkit.models.resnet.ResNet`; ``norm`` builds the norms of other models: SqueezeNet
    has none.

    Raises ShapeError for images of which no map would be left.
    """

    num_classes: int
    squeezed: tuple[tuple[int, ...], ...]
    stem_channels: int
    stem_size: int
    dropout_rate: float = 0.5
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        h, w = x.shape[1:3]
        # Rounded up, a maximum over 3x3 makes a value of two; of one it makes none.
        smallest = self.stem_size + 2 * (2 ** len(self.squeezed) - 1)
        if min(h, w) < smallest:
            raise ShapeError(f"this squeezenet needs images of at least {smallest} x {smallest} pixels, got {h} x {w}")
        conv = partial(Conv, initialization=self.initialization, dtype=self.dtype)

        x = nn.relu(conv(self.stem_channels, (self.stem_size,) * 2, strides=2, name="conv_stem")(x))
        features = {"stem": x}
        for stage, squeezed in enumerate(self.squeezed, start=1):
            x = max_pool(x, 3, 2, ceil=True)
            for i, channels in enumerate(squeezed):
                x = Fire(channels, conv, name=f"stage{stage}_fire{i}")(x)
            features[f"stage{stage}"] = x

        features["pre_logits"] = reduce(x, "b h w c -> b c", "mean")
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x = nn.relu(conv(self.num_classes, (1, 1), name="head")(x))
        return reduce(x.astype(jnp.float32), "b h w c -> b c", "mean"), features


squeezenet1_0 = partial(SqueezeNet, squeezed=((16, 16, 32), (32, 48, 48, 64), (64,)), stem_channels=96, stem_size=7)
squeezenet1_1 = partial(SqueezeNet, squeezed=((16, 16), (32, 32), (48, 48, 64, 64)), stem_channels=64, stem_size=3)
squeezenet_tiny = partial(SqueezeNet, squeezed=((2, 2), (3,), (3,)), stem_channels=6, stem_size=7)
