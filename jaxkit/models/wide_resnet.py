"""Wide residual networks for CIFAR, with norm and ReLU before the convolutions.

Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, table 1. In the name, 16_2: 16 layers, twice
as wide as He et al.'s.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from einops import reduce
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.norms import BatchNorm


class WideBlock(nn.Module):
    """Norm, ReLU and a 3x3 convolution, twice, dropout between; and a shortcut (fig. 1d).

    A block that changes the number of channels takes its shortcut, a 1x1 convolution, behind the first ReLU.
    ``dropout`` builds the dropout layer, ``conv`` and ``norm`` the others.
    """

    channels: int
    strides: int
    conv: Callable
    norm: Callable
    dropout: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {self.channels}"]:
        y = nn.relu(self.norm(name="norm1")(x))
        if x.shape[-1] != self.channels:
            x = self.conv(self.channels, (1, 1), strides=self.strides, name="conv_proj")(y)
        y = self.conv(self.channels, (3, 3), strides=self.strides, padding=1, name="conv1")(y)
        y = self.dropout()(nn.relu(self.norm(name="norm2")(y)))
        return x + self.conv(self.channels, (3, 3), padding=1, name="conv2")(y)


class WideResNet(nn.Module):
    """A 3x3 convolution; three stages of ``size`` blocks, every one but the first halves the map; norm and ReLU.

    Returns the logits and ``features``: the maps after the stem and each stage, which no norm or ReLU has seen, and
    ``pre_logits`` [b d], the average of the last map behind them, so images of any size can be classified. In training
    dropout draws from the key ``dropout``. ``dtype`` and ``norm`` are those of :class:`jaxkit.models.resnet.ResNet`.
    """

    num_classes: int
    size: int
    widening: int
    stem_channels: int = 16
    dropout_rate: float = 0.0
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        conv = partial(Conv, use_bias=False, initialization=self.initialization, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train)
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)

        x = conv(self.stem_channels, (3, 3), padding=1, name="conv_stem")(x)
        features = {"stem": x}
        for stage in (1, 2, 3):
            channels = self.stem_channels * self.widening * 2 ** (stage - 1)
            for i in range(self.size):
                strides = 2 if stage > 1 and i == 0 else 1
                x = WideBlock(channels, strides, conv, norm, dropout, name=f"stage{stage}_block{i}")(x)
            features[f"stage{stage}"] = x

        x = nn.relu(norm(name="norm_head")(x))
        features["pre_logits"] = reduce(x, "b h w c -> b c", "mean")
        head = Dense(self.num_classes, initialization=self.initialization, dtype=self.dtype, name="head")
        return head(features["pre_logits"]).astype(jnp.float32), features


wrn_16_1 = partial(WideResNet, size=2, widening=1)
wrn_16_2 = partial(WideResNet, size=2, widening=2)
wrn_40_1 = partial(WideResNet, size=6, widening=1)
wrn_40_2 = partial(WideResNet, size=6, widening=2)
wrn_40_4 = partial(WideResNet, size=6, widening=4)
wrn_28_10 = partial(WideResNet, size=4, widening=10)
wrn_tiny = partial(WideResNet, size=2, widening=1, stem_channels=4)
