"""MobileNetV2: inverted residuals with linear bottlenecks, for ImageNet and in two layouts for CIFAR.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from einops import rearrange, reduce
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.norms import BatchNorm


class Stage(NamedTuple):
    """A row of the paper's table: ``size`` blocks, the first of which strides."""

    channels: int
    size: int
    strides: int
    expansion: int | None = 6
    """How many times its input's channels a block has inside; None: as many, without an expanding convolution."""
    kernel: int = 3


class InvertedResidual(nn.Module):
    """Expands the channels, convolves each on its own, projects; the ends are linear (Sandler et al., fig. 4d).

    A block that keeps the map's shape adds its input.
    """

    channels: int
    strides: int
    expansion: int | None
    kernel: int
    conv: Callable
    norm: Callable
    activation: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {self.channels}"]:
        y = x
        if self.expansion is not None:
            y = self.conv(self.expansion * x.shape[-1], (1, 1), name="conv_expand")(y)
            y = self.activation(self.norm(name="norm_expand")(y))
        width, kernel = y.shape[-1], (self.kernel, self.kernel)
        depthwise = partial(self.conv, strides=self.strides, padding=self.kernel // 2, groups=width)
        y = depthwise(width, kernel, name="conv_depthwise")(y)
        y = self.activation(self.norm(name="norm_depthwise")(y))
        y = self.conv(self.channels, (1, 1), name="conv_project")(y)
        y = self.norm(name="norm_project")(y)
        return x + y if self.strides == 1 and x.shape == y.shape else y


def body(
    x: Float[Array, "b h w c"],
    stages: tuple[Stage, ...],
    last_channels: int,
    conv: Callable,
    norm: Callable,
    activation: Callable,
) -> dict[str, Float[Array, "b ..."]]:
    """Leads from the first convolution's output to the features, the average ``pre_logits`` among them."""
    x = activation(norm(name="norm_stem")(x))
    features = {"stem": x}
    for stage, (channels, size, strides, expansion, kernel) in enumerate(stages, start=1):
        for i in range(size):
            block = partial(InvertedResidual, conv=conv, norm=norm, activation=activation)
            x = block(channels, strides if i == 0 else 1, expansion, kernel, name=f"stage{stage}_block{i}")(x)
        features[f"stage{stage}"] = x
    x = activation(norm(name="norm_last")(conv(last_channels, (1, 1), name="conv_last")(x)))
    return features | {"pre_logits": reduce(x, "b h w c -> b c", "mean")}


class MobileNetV2(nn.Module):
    """A strided convolution, stages of inverted residuals, a 1x1 convolution, the average, dropout and a dense layer.

    Returns the logits and ``features``: the maps after the stem and after each row of the paper's table (``stage1``
    to ``stage7``), and ``pre_logits`` [b d], the average of the last map before dropout. Images of any size are
    served. In training dropout draws from the key ``dropout``. ``dtype`` and ``norm`` are those of
    :class:`jaxkit.models.resnet.ResNet`.
    """

    num_classes: int
    stages: tuple[Stage, ...] = (
        Stage(16, 1, 1, expansion=None),
        Stage(24, 2, 2),
        Stage(32, 3, 2),
        Stage(64, 4, 2),
        Stage(96, 3, 1),
        Stage(160, 3, 2),
        Stage(320, 1, 1),
    )
    stem_channels: int = 32
    last_channels: int = 1280
    dropout_rate: float = 0.2
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        conv = partial(Conv, use_bias=False, initialization=self.initialization, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train)

        x = conv(self.stem_channels, (3, 3), strides=2, padding=1, name="conv_stem")(x)
        features = body(x, self.stages, self.last_channels, conv, norm, nn.relu6)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(features["pre_logits"])
        head = Dense(self.num_classes, initialization=self.initialization, dtype=self.dtype, name="head")
        return head(x).astype(jnp.float32), features


class MobileNetV2TfKD(nn.Module):
    """The CIFAR layout of teacher-free distillation (Yuan et al., CVPR 2020): biases, a 1x1 stem, a 1x1 head.

    Where ``compat`` is ``"reference"`` the stem pads its images by a pixel, as the published weights were trained: all
    maps are larger for it, with a border that holds the stem's bias. With ``"paper"`` they are not padded. The outputs
    and other fields are those of :class:`MobileNetV2`.
    """

    num_classes: int
    stages: tuple[Stage, ...] = (
        Stage(16, 1, 1, expansion=1),
        Stage(24, 2, 2),
        Stage(32, 3, 2),
        Stage(64, 4, 2),
        Stage(96, 3, 1),
        Stage(160, 3, 1),
        Stage(320, 1, 1),
    )
    stem_channels: int = 32
    last_channels: int = 1280
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

        padding = 1 if self.compat == "reference" else 0
        x = conv(self.stem_channels, (1, 1), padding=padding, name="conv_stem")(x)
        features = body(x, self.stages, self.last_channels, conv, norm, nn.relu6)
        x = rearrange(features["pre_logits"], "b c -> b 1 1 c")
        x = conv(self.num_classes, (1, 1), name="head")(x)
        return rearrange(x, "b 1 1 c -> b c").astype(jnp.float32), features


class MobileNetV2RepDistiller(nn.Module):
    """The CIFAR layout of contrastive distillation (Tian et al., ICLR 2020), of half the paper's width.

    Where ``compat`` is ``"reference"`` activations are not bounded above, as the published weights were trained; with
    ``"paper"`` they are, by 6. Distillation there matches the maps ``stem``, ``stage2``, ``stage3``, ``stage5`` and
    ``stage7``. The outputs and other fields are those of :class:`MobileNetV2`.
    """

    num_classes: int
    stages: tuple[Stage, ...] = (
        Stage(8, 1, 1, expansion=1),
        Stage(12, 2, 1),
        Stage(16, 3, 2),
        Stage(32, 4, 2),
        Stage(48, 3, 1),
        Stage(80, 3, 2),
        Stage(160, 1, 1),
    )
    stem_channels: int = 16
    last_channels: int = 1280
    compat: str = "reference"
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        conv = partial(Conv, use_bias=False, initialization=self.initialization, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train)
        activation = nn.relu if self.compat == "reference" else nn.relu6

        x = conv(self.stem_channels, (3, 3), strides=2, padding=1, name="conv_stem")(x)
        features = body(x, self.stages, self.last_channels, conv, norm, activation)
        head = Dense(self.num_classes, initialization=self.initialization, dtype=self.dtype, name="head")
        return head(features["pre_logits"]).astype(jnp.float32), features


mobilenet_v2 = MobileNetV2
mobilenet_v2_tiny = partial(
    MobileNetV2,
    stages=(Stage(8, 1, 1, expansion=None), Stage(12, 2, 2), Stage(12, 1, 1), Stage(16, 1, 2)),
    stem_channels=8,
    last_channels=32,
)
mobilenet_v2_tfkd = MobileNetV2TfKD
mobilenet_v2_tiny_tfkd = partial(
    MobileNetV2TfKD,
    stages=(Stage(8, 1, 1, expansion=1), Stage(12, 2, 2), Stage(16, 1, 1)),
    stem_channels=8,
    last_channels=24,
)
mobile_half = MobileNetV2RepDistiller
mobile_tiny = partial(
    MobileNetV2RepDistiller,
    stages=(Stage(8, 1, 1, expansion=1), Stage(12, 2, 1), Stage(16, 1, 2)),
    stem_channels=8,
    last_channels=24,
)
