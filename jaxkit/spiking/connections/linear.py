"""Connections between flat groups of elements: all to all, lateral, one to one.

Parameters have the original's (inferno's) names and torch's layouts. The functions that reshape (``like_...``,
``..._receptive``) have the original's names and shapes: ``b`` batch, ``i`` inputs, ``o`` outputs, both flat.
"""

import math

import jax.numpy as jnp
from einops import einsum, rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from jaxkit.spiking.checks import Sizes, as_shape, require_whole
from jaxkit.spiking.connections.base import Connection


class _AllToAll(Connection):
    """What dense and lateral connections have in common."""

    elementwise = False

    @property
    def synapse_shape(self) -> tuple[int, ...]:
        return (math.prod(self.inshape),)

    @property
    def product_shape(self) -> tuple[int, ...]:
        return (math.prod(self.outshape),)

    bias_shape = product_shape

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.product_shape + self.synapse_shape

    @property
    def delay_shape(self) -> tuple[int, ...]:
        shapes = {"synapse": self.weight_shape, "input": self.synapse_shape, "output": self.product_shape}
        return shapes[self.delay_per]

    @nn.nowrap
    def masked(self, weight: Shaped[Array, "o i"]) -> Shaped[Array, "o i"]:
        return weight

    @nn.nowrap
    def masked_delay(self, delay: Float[Array, "..."]) -> Float[Array, "..."]:
        return delay

    @nn.nowrap
    def product(self, current: Float[Array, "b i"], weight: Float[Array, "o i"]) -> Float[Array, "b o"]:
        return einsum(current, weight, "b i, o i -> b o")

    @nn.nowrap
    def total(self, weight: Float[Array, "o i"]) -> Float[Array, " o"]:
        return weight.sum(1)

    @nn.nowrap
    def over_inputs(self, x: Shaped[Array, " i"]) -> Shaped[Array, " i"]:
        return x

    @nn.nowrap
    def over_outputs(self, x: Shaped[Array, " o"]) -> Shaped[Array, " o"]:
        return x

    @nn.nowrap
    def over_weights(self, x: Shaped[Array, "..."]) -> Shaped[Array, "o i"]:
        x = rearrange(x, "o -> o 1") if self.delay_per == "output" else x
        return jnp.broadcast_to(x, self.weight_shape)

    @nn.nowrap
    def gathered(self, ring: Shaped[Array, "r b i"], slots: Int[Array, "o i"]) -> Shaped[Array, "b i o"]:
        return rearrange(ring[slots, :, jnp.arange(ring.shape[2])], "o i b -> b i o")

    @nn.nowrap
    def contract(self, current: Float[Array, "b i o"], weight: Float[Array, "o i"]) -> Float[Array, "b o"]:
        return einsum(current, weight, "b i o, o i -> b o")

    @nn.nowrap
    def like_selector(self, x: Shaped[Array, "o i"]) -> Shaped[Array, "i o"]:
        """Lays out what is of a weight's shape as :meth:`selector` is."""
        return x.T

    @nn.nowrap
    def spread(self, x: Shaped[Array, "*b i"]) -> Shaped[Array, "*b i"]:
        return x

    @nn.nowrap
    def like_bias(self, data: Shaped[Array, "o 1"]) -> Shaped[Array, " o"]:
        """Reshapes reduced postsynaptic receptive values like the bias."""
        return data[:, 0]

    @nn.nowrap
    def like_input(self, data: Shaped[Array, "b i"]) -> Shaped[Array, "b ..."]:
        """Reshapes what is of a synapse's shape like an input."""
        return data.reshape(len(data), *self.inshape)

    @nn.nowrap
    def like_synaptic(self, data: Shaped[Array, "b ..."]) -> Shaped[Array, "b i"]:
        """Reshapes what is of an input's shape like a synapse's state."""
        return rearrange(data, "b ... -> b (...)")

    @nn.nowrap
    def presyn_receptive(self, data: Shaped[Array, "b i ..."]) -> Shaped[Array, "b o i 1"]:
        """Reshapes synaptic values ``[b i]`` or ``[b i o]`` for products with :meth:`postsyn_receptive` values."""
        return rearrange(data, "b i ... -> b (...) i 1")

    @nn.nowrap
    def postsyn_receptive(self, data: Shaped[Array, "b ..."]) -> Shaped[Array, "b o 1 1"]:
        """Reshapes what is of an output's shape for products with :meth:`presyn_receptive` values."""
        return rearrange(data, "b ... -> b (...) 1 1")


class LinearDense(_AllToAll):
    """Connects every input to every output: ``y = c Wᵀ + b``, of the delayed currents ``c``.

    Parameters: ``weight [o i]``, ``bias [o]``; ``delay`` in ms ``[o i]``, or as ``delay_per`` says ``[i]`` or ``[o]``.

    Args:
        in_shape, out_shape: without the batch.
        step_time: ms.
    """

    in_shape: Sizes
    out_shape: Sizes
    step_time: float

    def __post_init__(self):
        require_whole(self, "in_shape", "out_shape")
        super().__post_init__()

    @property
    def inshape(self) -> tuple[int, ...]:
        """The shape of an input, without the batch."""
        return as_shape(self.in_shape)

    @property
    def outshape(self) -> tuple[int, ...]:
        """The shape of an output, without the batch."""
        return as_shape(self.out_shape)


class LinearLateral(_AllToAll):
    """Connects every element to every other, and none to itself: ``y = c (W (1 - I))ᵀ + b``.

    The diagonal is left out wherever it could act: of weights and delays at use, so of their gradients, and by
    :meth:`project` of the parameters. Parameters: as of :class:`LinearDense`.

    Args:
        shape: of inputs and outputs, without the batch.
        step_time: ms.
    """

    shape: Sizes
    step_time: float

    def __post_init__(self):
        require_whole(self, "shape")
        super().__post_init__()

    @property
    def inshape(self) -> tuple[int, ...]:
        """The shape of an input, without the batch."""
        return as_shape(self.shape)

    outshape = inshape

    @nn.nowrap
    def masked(self, weight: Shaped[Array, "n n"]) -> Shaped[Array, "n n"]:
        return jnp.where(jnp.eye(len(weight), dtype=bool), 0, weight)

    @nn.nowrap
    def masked_delay(self, delay: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.masked(delay) if self.delay_per == "synapse" else delay


class LinearDirect(Connection):
    """Connects every element to one: ``y = c w + b``.

    Parameters: ``weight [n]``, ``bias [n]``, ``delay [n]`` in ms.

    Args:
        shape: of inputs and outputs, without the batch.
        step_time: ms.
    """

    shape: Sizes
    step_time: float

    elementwise = True

    def __post_init__(self):
        require_whole(self, "shape")
        super().__post_init__()

    @property
    def inshape(self) -> tuple[int, ...]:
        """The shape of an input, without the batch."""
        return as_shape(self.shape)

    outshape = inshape

    @property
    def synapse_shape(self) -> tuple[int, ...]:
        return (math.prod(self.inshape),)

    product_shape = weight_shape = bias_shape = delay_shape = synapse_shape

    @nn.nowrap
    def masked(self, weight: Shaped[Array, " n"]) -> Shaped[Array, " n"]:
        return weight

    masked_delay = total = over_inputs = over_outputs = over_weights = masked

    @nn.nowrap
    def product(self, current: Float[Array, "b n"], weight: Float[Array, " n"]) -> Float[Array, "b n"]:
        return current * weight

    @nn.nowrap
    def like_selector(self, x: Shaped[Array, "*b n"]) -> Shaped[Array, "*b n 1"]:
        """Lays out what is of a weight's shape as :meth:`selector` is."""
        return x[..., None]

    @nn.nowrap
    def spread(self, x: Shaped[Array, "*b n"]) -> Shaped[Array, "*b n"]:
        return x

    @nn.nowrap
    def like_bias(self, data: Shaped[Array, " n"]) -> Shaped[Array, " n"]:
        """Reshapes reduced postsynaptic receptive values like the bias."""
        return data

    @nn.nowrap
    def like_input(self, data: Shaped[Array, "b n"]) -> Shaped[Array, "b ..."]:
        """Reshapes what is of a synapse's shape like an input."""
        return data.reshape(len(data), *self.inshape)

    @nn.nowrap
    def like_synaptic(self, data: Shaped[Array, "b ..."]) -> Shaped[Array, "b n"]:
        """Reshapes what is of an input's shape like a synapse's state."""
        return rearrange(data, "b ... -> b (...)")

    @nn.nowrap
    def presyn_receptive(self, data: Shaped[Array, "b n ..."]) -> Shaped[Array, "b n 1"]:
        """Reshapes synaptic values ``[b n]`` or ``[b n 1]`` for products with :meth:`postsyn_receptive` values."""
        return data.reshape(*data.shape[:2], 1)

    @nn.nowrap
    def postsyn_receptive(self, data: Shaped[Array, "b ..."]) -> Shaped[Array, "b n 1"]:
        """Reshapes what is of an output's shape for products with :meth:`presyn_receptive` values."""
        return rearrange(data, "b ... -> b (...) 1")
