"""The layer kinds: for each leaf of a torch layer, where it lies in Flax's variables and in which layout.

A kind maps a torch leaf's name, or a tuple of them, to a Flax path, or a tuple of them, and a layout. The layout is an
einops pattern from torch's axes to Flax's; with its sides swapped it leads back. Where torch merges axes that Flax
keeps apart, their sizes are read off the Flax leaf. Three things an einops pattern does not say:

- Several names on a side are leaves of one shape, stacked along a leading axis of the pattern.
- ``-h`` is the axis h, reversed.
- ``sums`` lists, for each Flax leaf, which of the stacked parts are added up in it. The way back puts the sum into the
  first of them and zeros into the others: the function is kept, the bytes are not.

In a table a module's ``[layer]``, in place of ``{layer}``, is a leading axis of the Flax leaf: the layers of an
``nn.scan``, in order.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """Where torch leaves go: paths in Flax's variables (``{}`` is the module), layout, and what is summed."""

    paths: str | tuple[str, ...]
    layout: str
    sums: tuple[tuple[int, ...], ...] | None = None


class Dropped(NamedTuple):
    """A torch leaf without counterpart in Flax: why, and what torch gets in its place on the way back (None: nothing).

    Whether a state dict has the leaf or not is all the same.
    """

    reason: str
    refill: np.ndarray | None = None


class Tied(NamedTuple):
    """A torch leaf that is another one under a second name. Given, it must have the same bytes; it may be left out."""

    to: str


class Filled(NamedTuple):
    """A Flax leaf without counterpart in torch: its path, why, and the number it is filled with. Its name is ``""``."""

    path: str
    reason: str
    fill: float = 0.0


Kind = Mapping[str | tuple[str, ...], Place | Dropped | Tied | Filled]

_BIAS = Place("params/{}/bias", "o -> o")


def _kernel(layout: str) -> Kind:
    return {"weight": Place("params/{}/kernel", layout), "bias": _BIAS}


def _affine(**more: Place) -> Kind:
    return {"weight": Place("params/{}/scale", "c -> c"), "bias": Place("params/{}/bias", "c -> c"), **more}


dense = _kernel("o i -> i o")

# Grouped and depthwise convolutions too: both sides keep the inputs of one group.
conv = _kernel("o i h w -> h w i o")
conv1d = _kernel("o i l -> l i o")
conv3d = _kernel("o i d h w -> d h w i o")

# For linen's ConvTranspose with transpose_kernel=True, the gradient of a convolution, as in torch ...
conv_transpose = _kernel("i o h w -> h w o i")
conv_transpose1d = _kernel("i o l -> l o i")
conv_transpose3d = _kernel("i o d h w -> d h w o i")
# ... and with linen's default, which correlates with the kernel turned by half a turn.
conv_transpose_flipped = _kernel("i o h w -> -h -w i o")

# Torch flattens a map channels first. The Flax kernel keeps the map's axes, so its shape tells how to regroup them.
flatten_dense = _kernel("o (c h w) -> h w c o")

batch_norm = _affine(
    running_mean=Place("batch_stats/{}/mean", "c -> c"),
    running_var=Place("batch_stats/{}/var", "c -> c"),
    num_batches_tracked=Dropped(
        "torch reads its count of training batches only where momentum is None", np.zeros((), np.int64)
    ),
)
layer_norm = group_norm = instance_norm = _affine()
# torch.nn.RMSNorm has no bias: a table may hold a leaf that a model has not, it only must be able to place it.
rms_norm = {"weight": Place("params/{}/scale", "c -> c")}

embedding = {"weight": Place("params/{}/embedding", "n d -> n d")}

# A projection into heads [i n d], or out of them [n d o], of linen's attention. Torch merges the two axes.
heads_in = {"weight": Place("params/{}/kernel", "(n d) i -> i n d"), "bias": Place("params/{}/bias", "(n d) -> n d")}
heads_out = {"weight": Place("params/{}/kernel", "o (n d) -> n d o"), "bias": _BIAS}

_QKV = ("query", "key", "value")
_KERNELS = tuple(f"params/{{}}/{name}/kernel" for name in _QKV)
_BIASES = tuple(f"params/{{}}/{name}/bias" for name in _QKV)
_OUT = {
    "out_proj.weight": Place("params/{}/out/kernel", "o (n d) -> n d o"),
    "out_proj.bias": Place("params/{}/out/bias", "o -> o"),
}

# torch.nn.MultiheadAttention, packed as it stands, to linen's MultiHeadDotProductAttention ...
attention = {
    "in_proj_weight": Place(_KERNELS, "(s n d) i -> s i n d"),
    "in_proj_bias": Place(_BIASES, "(s n d) -> s n d"),
    **_OUT,
}
# ... and where keys and values have a width of their own.
attention_apart = {
    **{f"{letter}_proj_weight": Place(path, "(n d) i -> i n d") for letter, path in zip("qkv", _KERNELS, strict=True)},
    "in_proj_bias": Place(_BIASES, "(s n d) -> s n d"),
    **_OUT,
}

# One dense layer for all three, of linen's DenseGeneral with features (3, n, d): from a fused torch layer ...
fused_qkv = {
    "weight": Place("params/{}/kernel", "(s n d) i -> i s n d"),
    "bias": Place("params/{}/bias", "(s n d) -> s n d"),
}
# ... split up into three ...
split_qkv = {
    "weight": Place(_KERNELS, "(s n d) i -> s i n d"),
    "bias": Place(_BIASES, "(s n d) -> s n d"),
}
# ... or joined from torch's three.
joined_qkv = {
    ("q_proj.weight", "k_proj.weight", "v_proj.weight"): Place("params/{}/kernel", "s (n d) i -> i s n d"),
    ("q_proj.bias", "k_proj.bias", "v_proj.bias"): Place("params/{}/bias", "s (n d) -> s n d"),
}


def weight_norm(layout: str, scale: str, magnitude: str = "weight_g", direction: str = "weight_v") -> Kind:
    """The pair that torch's weight norm (dim=0) puts in place of a weight, to linen's ``WeightNorm``.

    ``layout`` is that of the weight, such as ``"o i -> i o"``. linen keeps the direction as the wrapped layer's kernel,
    which the table's Flax column names, and the magnitude with the wrapper, under ``scale``, such as
    ``"block{n}/WeightNorm_0/conv/kernel/scale"``. The parametrized form of torch names the pair
    ``parametrizations.weight.original0`` and ``original1``.

    Source: Salimans and Kingma, "Weight Normalization", NeurIPS 2016, equation 2.
    """
    ones = " 1" * (len(layout.split(" -> ")[0].split()) - 1)
    return {
        magnitude: Place(f"params/{scale}", f"o{ones} -> o"),
        direction: Place("params/{}/kernel", layout),
        "bias": _BIAS,
    }


def _gates(names: str, biases: dict[str, tuple[int, ...]], suffix: str = "") -> Kind:
    """A recurrent layer: torch stacks the gates, linen has a dense layer ``i<gate>``, ``h<gate>`` for each."""
    return {
        f"weight_ih_l{{layer}}{suffix}": Place(
            tuple(f"params/{{}}/i{gate}/kernel" for gate in names), "(s o) i -> s i o"
        ),
        f"weight_hh_l{{layer}}{suffix}": Place(
            tuple(f"params/{{}}/h{gate}/kernel" for gate in names), "(s o) i -> s i o"
        ),
        (f"bias_ih_l{{layer}}{suffix}", f"bias_hh_l{{layer}}{suffix}"): Place(
            tuple(f"params/{{}}/{name}/bias" for name in biases), "s (g o) -> (s g) o", tuple(biases.values())
        ),
    }


# Torch has two biases for every gate, linen one, their sum; the new gate of a GRU has two in both. ``{layer}`` is a
# number of the torch leaf's name, for the table's Flax column to use.
_LSTM_BIASES = {"hi": (0, 4), "hf": (1, 5), "hg": (2, 6), "ho": (3, 7)}
_GRU_BIASES = {"ir": (0, 3), "iz": (1, 4), "in": (2,), "hn": (5,)}
lstm, lstm_reverse = _gates("ifgo", _LSTM_BIASES), _gates("ifgo", _LSTM_BIASES, "_reverse")
gru, gru_reverse = _gates("rzn", _GRU_BIASES), _gates("rzn", _GRU_BIASES, "_reverse")
