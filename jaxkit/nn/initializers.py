"""Initial weights by name: ``initialization: torch | flax | kaiming`` of a layer."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import linen as nn


class Initializers(NamedTuple):
    """The two functions ``(key, shape, dtype) -> array`` that a dense or convolutional layer needs."""

    kernel: Callable
    bias: Callable


def uniform_within(bound: float) -> Callable:
    """Builds an initializer that draws from the uniform distribution on [-bound, bound)."""

    def draw(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def initializers(name: str, fan_in: int, fan_out: int | None = None) -> Initializers:
    """Looks up the initializers of a layer whose every output sums ``fan_in`` products.

    ``fan_out`` is, in a convolution, how many outputs a value enters: output channels times the kernel's area.

    ``torch``: kernel and bias uniform in ±1/sqrt(fan_in), what ``torch.nn.Linear`` and ``Conv2d`` do by default
    (a Kaiming uniform with slope sqrt(5)). ``flax``: kernel truncated LeCun normal, of variance 1/fan_in, three times
    the former; bias zero. ``kaiming``: kernels of convolutions normal of variance 2 / fan_out, biases zero (He et al.,
    ICCV 2015; torchvision's and RepDistiller's residual networks), and of dense layers as for ``torch``.

    Raises ValueError for another name.
    """
    if name == "kaiming" and fan_out is not None:
        normal = nn.initializers.normal(math.sqrt(2 / fan_out))
        return Initializers(kernel=normal, bias=nn.initializers.zeros)
    if name in ("torch", "kaiming"):
        uniform = uniform_within(1 / math.sqrt(fan_in))
        return Initializers(kernel=uniform, bias=uniform)
    if name == "flax":
        return Initializers(kernel=nn.initializers.lecun_normal(), bias=nn.initializers.zeros)
    raise ValueError(f"no initialization is named {name!r}; there are 'torch', 'flax' and 'kaiming'")
