"""Dense and convolutional layers whose initial weights are chosen by name, biases included.

A linen layer hands its bias initializer the bias's shape alone, but torch's default needs the fan-in.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxkit.nn.initializers import initializers


class Dense(nn.Module):
    """Multiplies the last axis by a kernel [i o] and adds a bias [o].

    ``initialization`` is a name that :func:`jaxkit.nn.initializers.initializers` knows. The arithmetic is done in
    ``dtype``, or the inputs' type where it is None; the parameters are float32.
    """

    features: int
    initialization: str = "torch"
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b {self.features}"]:
        init = initializers(self.initialization, fan_in=x.shape[-1])
        kernel = self.param("kernel", init.kernel, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", init.bias, (self.features,), jnp.float32)

        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x @ kernel + bias


class Conv(nn.Module):
    """Convolves a map with a kernel [h w i o] after putting ``padding`` zeros on each side, as torch does.

    Two sizes of padding are those above and below, and left and right.

    With ``groups`` g the channels are cut into g parts, each convolved on its own: i = c / g.
    ``initialization`` and ``dtype`` are those of :class:`Dense`.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: int | tuple[int, int] = 0
    groups: int = 1
    use_bias: bool = True
    initialization: str = "torch"
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {self.features}"]:
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        area = math.prod(self.kernel_size)
        init = initializers(self.initialization, fan_in=math.prod(shape[:-1]), fan_out=area * self.features)
        kernel = self.param("kernel", init.kernel, shape, jnp.float32)
        bias = self.param("bias", init.bias, (self.features,), jnp.float32) if self.use_bias else None

        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        above, left = (self.padding, self.padding) if isinstance(self.padding, int) else self.padding
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.strides, self.strides),
            padding=[(above, above), (left, left)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        return y if bias is None else y + bias
