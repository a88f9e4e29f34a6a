"""Surrogate gradients: a step function that fires exactly at the threshold, with a derivative that can be trained on.

Every surrogate takes ``x``, how far a membrane is above its threshold, in units of its way from rest to threshold:
``x = (V - θ) / (θ_rest - V_rest)``, so that a neuron at rest has ``x = -1`` whatever its millivolts, and the slopes and
widths of the literature (threshold 1, rest 0) carry over.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkit.errors import ConfigError
from jaxkit.spelling import nearest


@dataclass(frozen=True)
class Surrogate:
    """A step at ``x = 0`` that differentiates as ``derivative(x, sharpness)``; equal ones hash equally.

    Raises:
        ValueError: for a sharpness that is not above zero.
    """

    derivative: Callable[[Array, float], Array]
    sharpness: float

    def __post_init__(self):
        if not self.sharpness > 0:
            raise ValueError(f"a surrogate gradient's slope or width must be above 0, got {self.sharpness!r}")

    def __call__(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Fires, 1, where ``x >= 0``, and not, 0, elsewhere; in the dtype of ``x``."""
        return _fire(self, x)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _fire(surrogate: Surrogate, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return (x >= 0).astype(x.dtype)


@_fire.defjvp
def _fire_jvp(surrogate, primals, tangents):
    (x,), (dx,) = primals, tangents
    return _fire(surrogate, x), surrogate.derivative(x, surrogate.sharpness) * dx


def _arctan(x, alpha):
    return alpha / 2 / (1 + jnp.square(math.pi / 2 * alpha * x))


def _fast_sigmoid(x, slope):
    return 1 / jnp.square(1 + slope * jnp.abs(x))


def _sigmoid(x, slope):
    return slope * jax.nn.sigmoid(slope * x) * jax.nn.sigmoid(-slope * x)


def _triangular(x, width):
    return jnp.maximum(0, 1 - jnp.abs(x) / width) / width


def _boxcar(x, width):
    return jnp.where(jnp.abs(x) < width / 2, 1 / width, 0).astype(x.dtype)


def _gaussian(x, width):
    return jnp.exp(-jnp.square(x / width) / 2) / (width * math.sqrt(2 * math.pi))


def _identity(x, _):
    return jnp.ones_like(x)


def arctan(alpha: float = 2.0) -> Surrogate:
    """Differentiates as ``α/2 / (1 + (π/2 α x)²)``, the slope of ``arctan(π/2 α x) / π``; area 1, peak ``α/2``.

    Source: Fang et al., "Incorporating Learnable Membrane Time Constant...", ICCV 2021.
    """
    return Surrogate(_arctan, alpha)


def fast_sigmoid(slope: float = 25.0) -> Surrogate:
    """Differentiates as ``1 / (1 + k|x|)²``, the slope of ``x / (1 + k|x|)``; area ``2/k``, peak 1.

    Source: Zenke and Ganguli, "SuperSpike", Neural Computation 2018.
    """
    return Surrogate(_fast_sigmoid, slope)


def sigmoid(slope: float = 4.0) -> Surrogate:
    """Differentiates as ``k σ(kx) σ(-kx)``, the slope of ``σ(kx)``; area 1, peak ``k/4``.

    Source: Neftci et al., "Surrogate Gradient Learning in Spiking Neural Networks", IEEE SPM 2019.
    """
    return Surrogate(_sigmoid, slope)


def triangular(width: float = 1.0) -> Surrogate:
    """Differentiates as ``max(0, 1 - |x|/w) / w``; area 1, peak ``1/w``, nothing further than ``w`` from the threshold.

    Source: Bellec et al., "Long short-term memory and learning-to-learn in networks of spiking neurons", NeurIPS 2018.
    """
    return Surrogate(_triangular, width)


def boxcar(width: float = 1.0) -> Surrogate:
    """Differentiates as ``1/w`` where ``|x| < w/2`` and 0 elsewhere; area 1.

    Source: Wu et al., "Spatio-Temporal Backpropagation", Frontiers in Neuroscience 2018, eq. 24.
    """
    return Surrogate(_boxcar, width)


def gaussian(width: float = 0.5) -> Surrogate:
    """Differentiates as the normal density of standard deviation ``w``; area 1, peak ``1 / (w √2π)``.

    Source: Yin et al., "Effective and Efficient Computation with Multiple-timescale Spiking Recurrent Neural
    Networks", ICONS 2020.
    """
    return Surrogate(_gaussian, width)


def straight_through() -> Surrogate:
    """Differentiates as 1 everywhere: the step is taken for the identity on the way back.

    Source: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
    """
    return Surrogate(_identity, 1.0)


SURROGATES: dict[str, Callable[..., Surrogate]] = {
    "arctan": arctan,
    "fast_sigmoid": fast_sigmoid,
    "sigmoid": sigmoid,
    "triangular": triangular,
    "boxcar": boxcar,
    "gaussian": gaussian,
    "straight_through": straight_through,
}


def surrogate_named(name: str) -> Callable[..., Surrogate]:
    """Finds what makes the surrogate gradient of this name, such as ``surrogate_named("arctan")(alpha=2.0)``.

    Raises:
        ConfigError: for a name that is none of :data:`SURROGATES`.
    """
    if name not in SURROGATES:
        known = ", ".join(SURROGATES)
        raise ConfigError(f"{name!r} is no surrogate gradient{nearest(name, SURROGATES)}; one of {known}")
    return SURROGATES[name]
