"""Densely connected networks: torchvision's for ImageNet, and those of two repositories for CIFAR.

Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017: table 1, and DenseNet-BC of section 3.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from einops import reduce
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxkit.errors import ShapeError
from jaxkit.models.resnet import imagenet_stem
from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.norms import BatchNorm
from jaxkit.nn.pooling import average_pool


def cifar_stem(x: Float[Array, "b h w c"], channels: int, conv: Callable, norm: Callable) -> Float[Array, "b h w d"]:
    """A bare 3x3 convolution: the first dense layer begins with a norm of its own, so ``norm`` is not needed."""
    return conv(channels, (3, 3), padding=1, name="conv_stem")(x)


class DenseLayer(nn.Module):
    """Norm, ReLU, a 1x1 and a 3x3 convolution, whose ``growth`` channels are put behind those that came in."""

    growth: int
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c+{self.growth}"]:
        y = nn.relu(self.norm(name="norm1")(x))
        y = self.conv(4 * self.growth, (1, 1), name="conv1")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.conv(self.growth, (3, 3), padding=1, name="conv2")(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """Norm, activation and a 1x1 convolution to half the channels, then means over 2x2."""

    conv: Callable
    norm: Callable
    activation: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c//2"]:
        y = self.activation(self.norm(name="norm")(x))
        y = self.conv(x.shape[-1] // 2, (1, 1), name="conv")(y)
        return average_pool(y, 2, 2)


class DenseNet(nn.Module):
    """Stages of dense layers behind a stem; a transition before every stage but the first halves the map.

    Returns the logits and ``features``: the maps after the stem and each stage, all that its layers put side by side
    and not yet normalised, and ``pre_logits`` [b d], the average of the last map after its norm and ReLU. ``dtype``
    and ``norm`` are those of :class:`jaxkit.models.resnet.ResNet`.

    Raises ShapeError for images of which the last transition leaves no map: torchvision's need 29 x 29 pixels.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    growth: int = 32
    stem: Callable = imagenet_stem
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm
    # Not a field: layers carry the number they have in the published weights, so that conversion is a rename.
    first_layer = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        self.refuse_small(*x.shape[1:3])
        conv = partial(Conv, use_bias=False, initialization=self.initialization, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train)

        x = self.stem(x, 2 * self.growth, conv, norm)
        features = {"stem": x}
        for stage, size in enumerate(self.stage_sizes, start=1):
            if stage > 1:
                x = Transition(conv, norm, self.transition_activation, name=f"transition{stage - 1}")(x)
            for i in range(self.first_layer, self.first_layer + size):
                x = DenseLayer(self.growth, conv, norm, name=f"stage{stage}_layer{i}")(x)
            features[f"stage{stage}"] = x

        x = nn.relu(norm(name="norm_final")(x))
        features["pre_logits"] = reduce(x, "b h w c -> b c", "mean")
        head = Dense(self.num_classes, initialization=self.initialization, dtype=self.dtype, name="head")
        return head(features["pre_logits"]).astype(jnp.float32), features

    def transition_activation(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """What stands between norm and convolution of a transition."""
        return nn.relu(x)

    def refuse_small(self, height: int, width: int) -> None:
        """Raises ShapeError where the stem, which rounds up, and the transitions, which round down, leave no map."""
        stride = 4 if self.stem is imagenet_stem else 1
        least = stride * (2 ** (len(self.stage_sizes) - 1) - 1) + 1
        if min(height, width) < least:
            raise ShapeError(f"densenet needs images of at least {least} x {least} pixels, got {height} x {width}")


class TfkdDenseNet(DenseNet):
    """The CIFAR networks of teacher-free distillation, with torchvision's stages.

    ``compat="reference"``: transitions without ReLU, as the weights of Yuan et al. (CVPR 2020) were trained;
    ``"paper"``: with it.
    """

    stem: Callable = cifar_stem
    compat: str = "reference"
    first_layer = 0

    def transition_activation(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """None in the reference, ReLU in the paper."""
        return {"reference": x, "paper": nn.relu(x)}[self.compat]


densenet121 = partial(DenseNet, stage_sizes=(6, 12, 24, 16))
densenet161 = partial(DenseNet, stage_sizes=(6, 12, 36, 24), growth=48)
densenet169 = partial(DenseNet, stage_sizes=(6, 12, 32, 32))
densenet201 = partial(DenseNet, stage_sizes=(6, 12, 48, 32))
densenet_tiny = partial(DenseNet, stage_sizes=(2, 1, 2), growth=4)

densenet121_tfkd = partial(TfkdDenseNet, stage_sizes=(6, 12, 24, 16))
densenet161_tfkd = partial(TfkdDenseNet, stage_sizes=(6, 12, 36, 24), growth=48)
densenet169_tfkd = partial(TfkdDenseNet, stage_sizes=(6, 12, 32, 32))
densenet201_tfkd = partial(TfkdDenseNet, stage_sizes=(6, 12, 48, 32))
densenet_tiny_tfkd = partial(TfkdDenseNet, stage_sizes=(2, 1, 1, 2), growth=4)

# Depth and growth of the paper's table 2: (100 - 4) / 6 and (190 - 4) / 6 layers a stage.
densenet_bc_100_12 = partial(DenseNet, stage_sizes=(16, 16, 16), growth=12, stem=cifar_stem)
densenet_bc_190_40 = partial(DenseNet, stage_sizes=(31, 31, 31), growth=40, stem=cifar_stem)
densenet_bc_tiny = partial(DenseNet, stage_sizes=(2, 1, 2), growth=4, stem=cifar_stem)
