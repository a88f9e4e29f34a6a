"""ShuffleNet V2: half the channels pass a unit untouched, then both halves are shuffled.

Source: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018, table 5.
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
from jaxkit.nn.pooling import max_pool


class ShuffleUnit(nn.Module):
    """Convolves the second half of the channels; where it strides, both branches read and convolve all (fig. 3 c, d).

    ``wide``: a strided unit's convolutions have the input's channels inside, not half of the output's.
    """

    channels: int
    strides: int
    wide: bool
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {self.channels}"]:
        width = half = self.channels // 2
        depthwise = partial(self.conv, kernel_size=(3, 3), strides=self.strides, padding=1)
        if self.strides == 1:
            kept, x = jnp.split(x, 2, axis=-1)
        else:
            c = x.shape[-1]
            width = c if self.wide else half
            kept = self.norm(name="norm_proj1")(depthwise(c, groups=c, name="conv_proj1")(x))
            kept = nn.relu(self.norm(name="norm_proj2")(self.conv(half, (1, 1), name="conv_proj2")(kept)))

        x = nn.relu(self.norm(name="norm1")(self.conv(width, (1, 1), name="conv1")(x)))
        x = self.norm(name="norm2")(depthwise(width, groups=width, name="conv2")(x))
        x = nn.relu(self.norm(name="norm3")(self.conv(half, (1, 1), name="conv3")(x)))
        return rearrange([kept, x], "half b h w c -> b h w (c half)")


def body(
    x: Float[Array, "b h w c"],
    channels: tuple[int, ...],
    stage_sizes: tuple[int, ...],
    last_channels: int,
    conv: Callable,
    norm: Callable,
    wide: bool,
) -> dict[str, Float[Array, "b ..."]]:
    """Leads from the stem's map to the features, the average ``pre_logits`` among them."""
    features = {"stem": x}
    for stage, (size, width) in enumerate(zip(stage_sizes, channels, strict=True), start=1):
        for i in range(size):
            x = ShuffleUnit(width, 2 if i == 0 else 1, wide, conv, norm, name=f"stage{stage}_block{i}")(x)
        features[f"stage{stage}"] = x
    x = nn.relu(norm(name="norm_last")(conv(last_channels, (1, 1), name="conv_last")(x)))
    return features | {"pre_logits": reduce(x, "b h w c -> b c", "mean")}


def imagenet_stem(
    x: Float[Array, "b h w c"], channels: int, conv: Callable, norm: Callable
) -> Float[Array, "b h4 w4 d"]:
    """A 3x3 convolution and a maximum, each halving the map."""
    x = conv(channels, (3, 3), strides=2, padding=1, name="conv_stem")(x)
    return max_pool(nn.relu(norm(name="norm_stem")(x)), 3, 2, padding=1)


def pointwise_stem(
    x: Float[Array, "b h w c"], channels: int, conv: Callable, norm: Callable
) -> Float[Array, "b h w d"]:
    """A 1x1 convolution (Tian et al., "Contrastive Representation Distillation", ICLR 2020)."""
    return nn.relu(norm(name="norm_stem")(conv(channels, (1, 1), name="conv_stem")(x)))


class ShuffleNetV2(nn.Module):
    """Three stages of shuffle units behind a stem, each halving the map; a 1x1 convolution and the average.

    Returns the logits and ``features``: the maps after the stem and each stage, and ``pre_logits`` [b d], the average
    of the last map, so images of any size can be classified. ``dtype`` and ``norm`` are those of
    :class:`jaxkit.models.resnet.ResNet`.
    """

    num_classes: int
    channels: tuple[int, ...] = (116, 232, 464)
    stage_sizes: tuple[int, ...] = (4, 8, 4)
    stem: Callable = imagenet_stem
    stem_channels: int = 24
    last_channels: int = 1024
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
        features = body(x, self.channels, self.stage_sizes, self.last_channels, conv, norm, wide=False)
        head = Dense(self.num_classes, initialization=self.initialization, dtype=self.dtype, name="head")
        return head(features["pre_logits"]).astype(jnp.float32), features


class ShuffleNetV2TfKD(nn.Module):
    """The CIFAR layout of teacher-free distillation (Yuan et al., CVPR 2020): biases, wide units, a 3x3 stem.

    Where ``compat`` is ``"reference"`` no ReLU follows the stem's norm, as the published weights were trained; with
    ``"paper"`` one does. The outputs and other fields are those of :class:`ShuffleNetV2`.
    """

    num_classes: int
    channels: tuple[int, ...] = (116, 232, 464)
    stage_sizes: tuple[int, ...] = (4, 8, 4)
    stem_channels: int = 24
    last_channels: int = 1024
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

        x = norm(name="norm_stem")(conv(self.stem_channels, (3, 3), padding=1, name="conv_stem")(x))
        x = x if self.compat == "reference" else nn.relu(x)
        features = body(x, self.channels, self.stage_sizes, self.last_channels, conv, norm, wide=True)
        head = Dense(self.num_classes, initialization=self.initialization, dtype=self.dtype, name="head")
        return head(features["pre_logits"]).astype(jnp.float32), features


shufflenet_v2_x0_5 = partial(ShuffleNetV2, channels=(48, 96, 192))
shufflenet_v2_x1_0 = ShuffleNetV2
shufflenet_v2_x1_5 = partial(ShuffleNetV2, channels=(176, 352, 704))
shufflenet_v2_x2_0 = partial(ShuffleNetV2, channels=(244, 488, 976), last_channels=2048)
shufflenet_v2_tiny = partial(
    ShuffleNetV2, channels=(12, 16, 24), stage_sizes=(2, 2, 1), stem_channels=8, last_channels=32
)

shufflenet_v2_x0_5_tfkd = partial(ShuffleNetV2TfKD, channels=(48, 96, 192))
shufflenet_v2_x1_0_tfkd = ShuffleNetV2TfKD
shufflenet_v2_x1_5_tfkd = partial(ShuffleNetV2TfKD, channels=(176, 352, 704))
shufflenet_v2_x2_0_tfkd = partial(ShuffleNetV2TfKD, channels=(244, 488, 976), last_channels=2048)
shufflenet_v2_tiny_tfkd = partial(
    ShuffleNetV2TfKD, channels=(12, 16, 24), stage_sizes=(2, 2, 1), stem_channels=8, last_channels=32
)

shufflenet_v2_repdistiller = partial(ShuffleNetV2, stem=pointwise_stem)
shufflenet_v2_tiny_repdistiller = partial(shufflenet_v2_tiny, stem=pointwise_stem)
