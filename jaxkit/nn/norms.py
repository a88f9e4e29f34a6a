"""Batch normalisation that computes what torch computes, in training too."""

import math

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxkit.errors import ShapeError


class BatchNorm(nn.Module):
    """Normalises each channel over the batch and all positions, then scales and shifts it.

    In training ``y = scale (x - mean) / sqrt(var + epsilon) + bias`` with the batch's own mean and biased variance,
    while the running statistics move by ``momentum`` (torch's sense: the weight of the new value) towards the mean and
    the *unbiased* variance. linen's BatchNorm stores the biased one, n / (n - 1) smaller. Statistics are float32,
    or the input's type where that is wider; the output has the input's type, or ``dtype``.

    On several devices: with ``axis_name`` (a ``pmap`` axis) the statistics are those of all devices together.
    With ``groups`` g the batch is cut into g equal contiguous parts, each normalised by its own statistics, and the
    running statistics take the mean over the parts: what g unsynchronised devices compute, in one program.

    Raises ShapeError in training where a channel has a single value, or where ``groups`` does not divide the batch.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithms 1 and 2.
    """

    use_running_average: bool = False
    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    axis_name: str | None = None
    groups: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b *spatial c"]) -> Float[Array, "b *spatial c"]:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)

        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # An initialisation runs outside pmap, where the axis has no name yet.
        if self.use_running_average or self.is_initializing():
            y = (y - running_mean.value) * jax.lax.rsqrt(running_var.value + self.epsilon) * scale + bias
        else:
            if len(y) % self.groups:
                raise ShapeError(f"a batch of {len(y)} cannot be cut into {self.groups} equal groups")
            y = rearrange(y, "(g b) ... c -> g b ... c", g=self.groups)
            mean, var, n = batch_statistics(y, self.axis_name)
            y = (y - mean) * jax.lax.rsqrt(var + self.epsilon) * scale + bias
            y = rearrange(y, "g b ... c -> (g b) ... c")

            for running, new in (running_mean, mean), (running_var, var * (n / (n - 1))):
                new = reduce(new, "g ... c -> c", "mean")
                running.value = (1 - self.momentum) * running.value + self.momentum * new
        return y.astype(self.dtype or x.dtype)


def batch_statistics(
    x: Float[Array, "g b *spatial c"], axis_name: str | None
) -> tuple[Float[Array, "g 1 *ones c"], Float[Array, "g 1 *ones c"], int]:
    """Computes mean, biased variance and number of values per channel, for each of g groups.

    The variance is that of the centred values: ``E[x²] - E[x]²`` would cancel its leading digits.
    Raises ShapeError where a channel has a single value.
    """
    axes = tuple(range(1, x.ndim - 1))
    n = math.prod(x.shape[axis] for axis in axes)

    def average(values):
        values = values.mean(axes, keepdims=True)
        return values if axis_name is None else jax.lax.pmean(values, axis_name)

    if axis_name is not None:
        n *= jax.lax.axis_size(axis_name)
    if n == 1:
        raise ShapeError("batch statistics need more than one value per channel in training; give a larger batch")
    mean = average(x)
    return mean, average(jnp.square(x - mean)), n
