"""A discriminator that judges patches of an image.

Source: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017, section 3.2.2;
taming-transformers' sizes.
"""

import math
from functools import partial
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxkit.errors import ShapeError
from jaxkit.nn.norms import BatchNorm


class PatchDiscriminator(nn.Module):
    """4x4 convolutions to one logit for every patch: of 70 x 70 pixels, 8 apart, with ``n_layers`` 3.

    ``norm`` is ``group`` or, as in taming, ``batch``. With batch statistics an image's logits hang on the others of its
    batch: R1 has no gradient of one image, batches all real and all fake are told apart by their statistics, and
    devices must exchange these in every layer (``axis_name``). Groups of one image's channels do none of that.

    ``dtype`` is that of the arithmetic; parameters and logits are float32. Raises ShapeError for images without a
    patch.
    """

    ndf: int = 64
    n_layers: int = 3
    norm: Literal["group", "batch"] = "group"
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float32[Array, "b h2 w2 1"]:
        if min(x.shape[1:3]) // 2**self.n_layers < 3:
            raise ShapeError(
                f"a discriminator of n_layers {self.n_layers} sees no patch in images of {x.shape[1]} x {x.shape[2]} "
                f"pixels: give fewer layers or sides of {3 * 2**self.n_layers} and more"
            )
        conv = partial(nn.Conv, kernel_size=(4, 4), padding=1, kernel_init=nn.initializers.normal(0.02))
        conv = partial(conv, dtype=self.dtype)
        x = nn.leaky_relu(conv(self.ndf, strides=2, name="conv0")(x), 0.2)
        for i in range(1, self.n_layers + 1):
            channels = self.ndf * min(2**i, 8)
            strides = 2 if i < self.n_layers else 1
            # before a batch's own mean is taken off a bias would do nothing; of a group of channels it leaves part
            x = conv(channels, strides=strides, use_bias=self.norm == "group", name=f"conv{i}")(x)
            x = nn.leaky_relu(self._norm(channels, train, f"norm{i}")(x), 0.2)
        return conv(1, strides=1, name=f"conv{self.n_layers + 1}")(x).astype(jnp.float32)

    def _norm(self, channels: int, train: bool, name: str) -> nn.Module:
        if self.norm == "batch":
            return BatchNorm(not train, dtype=self.dtype, axis_name=self.axis_name, name=name)
        return nn.GroupNorm(math.gcd(32, channels), epsilon=1e-6, dtype=self.dtype, name=name)
