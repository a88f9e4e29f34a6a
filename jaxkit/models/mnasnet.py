"""MnasNet-B1, found by search: MobileNetV2 with wider depthwise windows, ReLU and slow running statistics.

Source: Tan et al., "MnasNet: Platform-Aware Neural Architecture Search for Mobile", CVPR 2019.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxkit.models.mobilenet_v2 import Stage, body
from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.norms import BatchNorm

# TensorFlow's decay of 0.9997 a step, which the paper trained with.
MOMENTUM = 1 - 0.9997


class MNASNet(nn.Module):
    """A strided convolution, a separable one, six stages of inverted residuals, a 1x1 convolution, a dense layer.

    The norms move their running statistics by 3e-4 a step, whatever momentum ``norm`` was given. The outputs and the
    fields are those of :class:`jaxkit.models.mobilenet_v2.MobileNetV2`; ``stage1`` is the separable convolution.
    """

    num_classes: int
    stages: tuple[Stage, ...]
    stem_channels: int
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
        norm = partial(self.norm, momentum=MOMENTUM, use_running_average=not train)

        x = conv(self.stem_channels, (3, 3), strides=2, padding=1, name="conv_stem")(x)
        features = body(x, self.stages, self.last_channels, conv, norm, nn.relu)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(features["pre_logits"])
        head = Dense(self.num_classes, initialization=self.initialization, dtype=self.dtype, name="head")
        return head(x).astype(jnp.float32), features


def searched(*channels: int) -> tuple[Stage, ...]:
    """Lists the stages that the search found, of ``channels`` each: a separable convolution and six more."""
    separable, *widths = channels
    rows = ((3, 2, 3, 3), (3, 2, 3, 5), (3, 2, 6, 5), (2, 1, 6, 3), (4, 2, 6, 5), (1, 1, 6, 3))
    return (Stage(separable, 1, 1, expansion=None), *(Stage(c, *row) for c, row in zip(widths, rows, strict=True)))


mnasnet0_5 = partial(MNASNet, stages=searched(8, 16, 24, 40, 48, 96, 160), stem_channels=16)
mnasnet0_75 = partial(MNASNet, stages=searched(16, 24, 32, 64, 72, 144, 240), stem_channels=24)
mnasnet1_0 = partial(MNASNet, stages=searched(16, 24, 40, 80, 96, 192, 320), stem_channels=32)
mnasnet1_3 = partial(MNASNet, stages=searched(24, 32, 56, 104, 128, 248, 416), stem_channels=40)
mnasnet_tiny = partial(
    MNASNet,
    stages=(
        Stage(4, 1, 1, expansion=None),
        Stage(8, 2, 2, expansion=3),
        Stage(8, 1, 1, expansion=3, kernel=5),
        Stage(8, 1, 2, kernel=5),
        Stage(12, 1, 1),
        Stage(12, 1, 2, kernel=5),
        Stage(16, 1, 1),
    ),
    stem_channels=8,
    last_channels=24,
)
