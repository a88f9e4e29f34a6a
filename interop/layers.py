"""The layer kinds: for each leaf of a torch layer, where it lies in Flax's variables and in which layout.

A layout is an einops pattern from torch's axes to Flax's; with its sides swapped it leads back. Where torch merges axes
that Flax keeps apart, their sizes are read off the Flax leaf.
"""

from typing import NamedTuple

import numpy as np


class Dropped(NamedTuple):
    """A torch leaf without counterpart in Flax: why, and what torch gets in its place on the way back."""

    reason: str
    refill: np.ndarray


Kind = dict[str, tuple[str, str] | Dropped]

dense: Kind = {"weight": ("params/{}/kernel", "o i -> i o"), "bias": ("params/{}/bias", "o -> o")}

conv: Kind = {"weight": ("params/{}/kernel", "o i h w -> h w i o"), "bias": ("params/{}/bias", "o -> o")}

# Torch flattens a map channels first. The Flax kernel keeps the map's axes, so its shape tells how to regroup them.
flatten_dense: Kind = {"weight": ("params/{}/kernel", "o (c h w) -> h w c o"), "bias": ("params/{}/bias", "o -> o")}

batch_norm: Kind = {
    "weight": ("params/{}/scale", "c -> c"),
    "bias": ("params/{}/bias", "c -> c"),
    "running_mean": ("batch_stats/{}/mean", "c -> c"),
    "running_var": ("batch_stats/{}/var", "c -> c"),
    "num_batches_tracked": Dropped(
        "torch reads its count of training batches only where momentum is None", np.zeros((), np.int64)
    ),
}
