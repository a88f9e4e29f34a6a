"""The plain convolutional student of teacher-free distillation (Yuan et al., CVPR 2020)."""

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


class CNN(nn.Module):
    """Three times convolution, norm, maximum over 2x2; then a hidden layer with dropout.

    Returns the logits and ``features``: the maps after each of the three (``stem``, ``stage1``, ``stage2``), and
    ``pre_logits`` [b d], the hidden layer before dropout. The hidden layer's kernel [h w c d] spans the whole map, so
    a model serves images of one size, h and w multiples of 8. In training dropout draws from the key ``dropout``.
    ``dtype`` and ``norm`` are those of :class:`jaxkit.models.resnet.ResNet`.

    Raises ShapeError for images of another size.
    """

    num_classes: int
    channels: tuple[int, int, int] = (32, 64, 128)
    hidden: int = 128
    dropout_rate: float = 0.5
    initialization: str = "torch"
    dtype: Dtype | None = None
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float32[Array, "b {self.num_classes}"], dict[str, Float[Array, "b ..."]]]:
        h, w = x.shape[1:3]
        if h % 8 or w % 8:
            raise ShapeError(f"cnn halves its images three times: {h} x {w} pixels are no multiples of 8")
        conv = partial(Conv, initialization=self.initialization, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train)

        features = {}
        for i, channels in enumerate(self.channels, start=1):
            x = norm(name=f"norm{i}")(conv(channels, (3, 3), padding=1, name=f"conv{i}")(x))
            x = nn.relu(nn.max_pool(x, (2, 2), strides=(2, 2)))
            features["stem" if i == 1 else f"stage{i - 1}"] = x

        x = conv(self.hidden, x.shape[1:3], name="dense1")(x)
        x = nn.relu(norm(name="norm_dense1")(rearrange(x, "b 1 1 d -> b d")))
        features["pre_logits"] = x
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        head = Dense(self.num_classes, initialization=self.initialization, dtype=self.dtype, name="head")
        return head(x).astype(jnp.float32), features


cnn = CNN
cnn_tiny = partial(CNN, channels=(4, 6, 8), hidden=8)
