"""Convolutional connections."""

from typing import SupportsIndex

import jax.numpy as jnp
import numpy as np
from einops import einsum, rearrange
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from jaxkit.spiking.checks import as_shape, require_whole
from jaxkit.spiking.connections.base import Connection

Pair = SupportsIndex | tuple[SupportsIndex, SupportsIndex]


def _pair(size: Pair) -> tuple[int, int]:
    sizes = as_shape(size)
    return sizes[0], sizes[-1]


class Conv2D(Connection):
    """Connects windows of images ``[c h w]`` to filters: a convolution, each tap of which has a delay of its own.

    Parameters: ``weight [f c kh kw]``, ``bias [f]``; ``delay`` in ms ``[f c kh kw]``, or as ``delay_per`` says ``[c]``
    or ``[f]``. Synapses belong to pixels, not to windows as in the original, which keeps ``kh kw`` copies of each.

    Args:
        height, width, channels: of the input.
        filters: channels of the output.
        step_time: ms.
        kernel, stride, padding, dilation: pixels, vertically and horizontally.
    """

    height: SupportsIndex
    width: SupportsIndex
    channels: SupportsIndex
    filters: SupportsIndex
    step_time: float
    kernel: Pair
    stride: Pair = 1
    padding: Pair = 0
    dilation: Pair = 1

    elementwise = False

    def __post_init__(self):
        require_whole(self, "height", "width", "channels", "filters", axes=0)
        require_whole(self, "kernel", "stride", "dilation", axes=2)
        require_whole(self, "padding", least=0, axes=2)
        super().__post_init__()

    @property
    def inshape(self) -> tuple[int, int, int]:
        """The shape ``c h w`` of an input, without the batch."""
        return self.channels, self.height, self.width

    @property
    def outshape(self) -> tuple[int, int, int]:
        """The shape ``f h w`` of an output, without the batch."""
        return self.filters, len(self._rows), len(self._columns)

    @property
    def _rows(self) -> np.ndarray:
        """Rows ``[oh kh]`` of the padded input in each window."""
        return self._taken(0, self.height)

    @property
    def _columns(self) -> np.ndarray:
        """Columns ``[ow kw]`` of the padded input in each window."""
        return self._taken(1, self.width)

    def _taken(self, axis: int, size: int) -> np.ndarray:
        kernel, stride, padding, dilation = (
            _pair(given)[axis] for given in (self.kernel, self.stride, self.padding, self.dilation)
        )
        windows = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        if windows < 1:
            raise ValueError(f"a kernel of {kernel} with dilation {dilation} does not fit into {size} pixels")
        return stride * np.arange(windows)[:, None] + dilation * np.arange(kernel)

    @property
    def synapse_shape(self) -> tuple[int, int, int]:
        return self.inshape

    @property
    def product_shape(self) -> tuple[int, int, int]:
        return self.outshape

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.filters, self.channels, *_pair(self.kernel)

    @property
    def bias_shape(self) -> tuple[int]:
        return (self.filters,)

    @property
    def delay_shape(self) -> tuple[int, ...]:
        return {"synapse": self.weight_shape, "input": (self.channels,), "output": (self.filters,)}[self.delay_per]

    @nn.nowrap
    def masked(self, weight: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        return weight

    masked_delay = masked

    @nn.nowrap
    def product(self, current: Float[Array, "b c h w"], weight: Float[Array, "f c kh kw"]) -> Float[Array, "b f oh ow"]:
        return lax.conv_general_dilated(
            current,
            weight,
            _pair(self.stride),
            [(size, size) for size in _pair(self.padding)],
            rhs_dilation=_pair(self.dilation),
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
        )

    @nn.nowrap
    def total(self, weight: Float[Array, "f c kh kw"]) -> Float[Array, "f 1 1"]:
        return weight.sum((1, 2, 3))[:, None, None]

    @nn.nowrap
    def over_inputs(self, x: Shaped[Array, " c"]) -> Shaped[Array, "c 1 1"]:
        return x[:, None, None]

    @nn.nowrap
    def over_outputs(self, x: Shaped[Array, " f"]) -> Shaped[Array, "f 1 1"]:
        return x[:, None, None]

    @nn.nowrap
    def over_weights(self, x: Shaped[Array, "..."]) -> Shaped[Array, "f c kh kw"]:
        patterns = {"synapse": "f c kh kw -> f c kh kw", "input": "c -> 1 c 1 1", "output": "f -> f 1 1 1"}
        return jnp.broadcast_to(rearrange(x, patterns[self.delay_per]), self.weight_shape)

    @nn.nowrap
    def spread(self, x: Shaped[Array, "... c h w"]) -> Shaped[Array, "... n l"]:
        """Takes the windows of images: ``n`` pixels of all channels, as weights lie, ``l`` windows by rows."""
        (top, left) = _pair(self.padding)
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(top, top), (left, left)])
        # [oh 1 kh 1], [1 ow 1 kw]
        taken = padded[..., self._rows[:, None, :, None], self._columns[None, :, None, :]]
        return rearrange(taken, "... c oh ow kh kw -> ... (c kh kw) (oh ow)")

    @nn.nowrap
    def gathered(self, ring: Shaped[Array, "r b c h w"], slots: Int[Array, "f c kh kw"]) -> Shaped[Array, "b n l f"]:
        windows, slots = self.spread(ring), rearrange(slots, "f c kh kw -> f (c kh kw)")
        return rearrange(windows[slots, :, jnp.arange(slots.shape[1])], "f n b l -> b n l f")

    @nn.nowrap
    def contract(
        self, current: Float[Array, "b n l f"], weight: Float[Array, "f c kh kw"]
    ) -> Float[Array, "b f oh ow"]:
        y = einsum(current, rearrange(weight, "f c kh kw -> f (c kh kw)"), "b n l f, f n -> b f l")
        return rearrange(y, "b f (oh ow) -> b f oh ow", oh=len(self._rows))

    @nn.nowrap
    def like_selector(self, x: Shaped[Array, "f c kh kw"]) -> Shaped[Array, "n l f"]:
        """Lays out what is of a weight's shape as :meth:`selector` is."""
        x = rearrange(x, "f c kh kw -> (c kh kw) 1 f")
        return jnp.broadcast_to(x, (len(x), len(self._rows) * len(self._columns), x.shape[2]))

    @nn.nowrap
    def like_bias(self, data: Shaped[Array, "f 1 1 1"]) -> Shaped[Array, " f"]:
        """Reshapes reduced postsynaptic receptive values like the bias."""
        return data[:, 0, 0, 0]

    @nn.nowrap
    def like_synaptic(self, data: Shaped[Array, "b c h w"]) -> Shaped[Array, "b n l"]:
        """Takes the windows of what is of an input's shape."""
        return self.spread(data)

    @nn.nowrap
    def like_input(self, data: Float[Array, "b n l"]) -> Float[Array, "b c h w"]:
        """Puts windows back where they came from; where they overlap, their mean, and 0 where there are none."""
        (top, left), (kh, kw) = _pair(self.padding), _pair(self.kernel)
        rows, columns = self._rows[:, None, :, None], self._columns[None, :, None, :]
        taken = rearrange(data, "b (c kh kw) (oh ow) -> b c oh ow kh kw", kh=kh, kw=kw, oh=len(self._rows))
        padded = jnp.zeros((len(data), self.channels, self.height + 2 * top, self.width + 2 * left), data.dtype)
        count = np.zeros(padded.shape[2:])
        np.add.at(count, np.broadcast_arrays(rows, columns), 1)
        mean = padded.at[..., rows, columns].add(taken) / np.maximum(count, 1).astype(data.dtype)
        return mean[..., top : top + self.height, left : left + self.width]

    @nn.nowrap
    def presyn_receptive(self, data: Shaped[Array, "b n l ..."]) -> Shaped[Array, "b f c kh kw l"]:
        """Reshapes synaptic values ``[b n l]`` or ``[b n l f]`` for products with :meth:`postsyn_receptive` values."""
        kh, kw = _pair(self.kernel)
        return rearrange(data, "b (c kh kw) l ... -> b (...) c kh kw l", kh=kh, kw=kw)

    @nn.nowrap
    def postsyn_receptive(self, data: Shaped[Array, "b f oh ow"]) -> Shaped[Array, "b f 1 1 1 l"]:
        """Reshapes what is of an output's shape for products with :meth:`presyn_receptive` values."""
        return rearrange(data, "b f oh ow -> b f 1 1 1 (oh ow)")
