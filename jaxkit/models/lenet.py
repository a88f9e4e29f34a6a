"""LeNet-5 in today's form, with ReLU and maxima.

Source: LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998, fig. 2.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxkit.errors import ShapeError
from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.norms import BatchNorm


class LeNet(nn.Module):
    """Two 5x5 convolutions without padding, each followed by a maximum over 2x2; then three dense layers.

    Returns the logits and ``features``: the maps after each of the two (``stem``, ``stage1``), and ``pre_logits``
    [b d], the second dense layer's output. The first dense layer's kernel [h w c d] spans the whole map (LeCun's C5),
    so a model serves images of one size. ``dtype`` is that of :class:`jaxkit.models.resnet.ResNet`; ``norm`` builds
    the normalisation layers of other models: LeNet has none.

    Raises ShapeError for images below 16 x 16 pixels, of which no map is left.
    """

    num_classes: int
    channels: tuple[int, int] = (6, 16)
    hidden: tuple[int, int] = (120, 84)
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        h, w = x.shape[1:3]
        if min(h, w) < 16:
            raise ShapeError(f"lenet needs images of at least 16 x 16 pixels, got {h} x {w}")
        conv = partial(Conv, initialization=self.initialization, dtype=self.dtype)
        dense = partial(Dense, initialization=self.initialization, dtype=self.dtype)

        x = nn.relu(conv(self.channels[0], (5, 5), name="conv1")(x))
        features = {"stem": nn.max_pool(x, (2, 2), strides=(2, 2))}
        x = nn.relu(conv(self.channels[1], (5, 5), name="conv2")(features["stem"]))
        features["stage1"] = nn.max_pool(x, (2, 2), strides=(2, 2))

        x = conv(self.hidden[0], features["stage1"].shape[1:3], name="dense1")(features["stage1"])
        x = nn.relu(rearrange(x, "b 1 1 d -> b d"))
        features["pre_logits"] = nn.relu(dense(self.hidden[1], name="dense2")(x))
        return dense(self.num_classes, name="head")(features["pre_logits"]).astype(jnp.float32), features


lenet = LeNet
lenet_tiny = partial(LeNet, channels=(2, 3), hidden=(6, 5))
