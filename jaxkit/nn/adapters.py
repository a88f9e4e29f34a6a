"""Low-rank adapters (LoRA): small trees of parameters beside a network's own, which stays as it is.

In the loss the effective kernels are merged anew from both, so that no model knows of it::

    adapters = lora_init(key, params, (ATTENTION,), rank=8)
    logits = model.apply({"params": lora_merge(params, adapters, scale=1.0)}, tokens)

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxkit.errors import ConfigError
from jaxkit.nn.initializers import uniform_within

# Patterns of the kernels that are adapted: of attention's four projections ...
ATTENTION = r"attention/(query|key|value|out)/kernel"
# ... and of the feed-forward layers, by the names of the masked transformers.
FEED_FORWARD = r"(ffn/(wi_0|wi_1|wo)|layers_\d+/(intermediate|output))/kernel"

# The kernels [i n d] of the heads' projections; all others end in their one output axis.
_HEADS = ("query", "key", "value")


def lora_init(key: jax.Array, params: Mapping[str, Any], match: Sequence[str], rank: int) -> dict[str, Any]:
    """Draws adapters for the kernels whose paths, joined by ``/``, have a match of one of the patterns.

    A kernel W [*i *o] gets ``down`` A [*i r], uniform in ±1/sqrt(number of inputs), and ``up`` B [r *o], zero: at
    first nothing changes. The adapters lie where W lies.

    Raises ConfigError if a pattern matches nothing or what is no kernel, and for a rank below 1.
    """
    if rank < 1:
        raise ConfigError(f"a rank of {rank} adapts nothing; give 1 or more")
    leaves = traverse_util.flatten_dict(params, sep="/")
    found = {pattern: [path for path in leaves if re.search(pattern, path)] for pattern in match}
    if unused := [pattern for pattern, paths in found.items() if not paths]:
        raise ConfigError(f"no parameter's path has a match of {unused[0]!r}; the first is {min(leaves)!r}")
    paths = sorted({path for paths in found.values() for path in paths})
    if odd := [path for path in paths if not path.endswith("/kernel")]:
        raise ConfigError(f"{odd[0]} is no kernel: its change has no lower rank")

    adapters = {}
    for path, key_down in zip(paths, jax.random.split(key, len(paths)), strict=True):
        inputs, outputs = _axes(path, leaves[path].shape)
        draw = uniform_within(1 / math.sqrt(math.prod(inputs)))
        adapters[f"{path}/down"] = draw(key_down, (*inputs, rank), jnp.float32)
        adapters[f"{path}/up"] = jnp.zeros((rank, *outputs), jnp.float32)
    return traverse_util.unflatten_dict(adapters, sep="/")


def lora_merge(params: Mapping[str, Any], adapters: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Adds each adapter to its kernel: ``W + scale A B``. Other parameters are handed through.

    ``scale`` is alpha / rank of the paper. Raises ConfigError for an adapter of a kernel that is not there.
    """
    leaves, low_rank = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, adapters))
    paths = [path.removesuffix("/down") for path in low_rank if path.endswith("/down")]
    if absent := [path for path in paths if path not in leaves]:
        raise ConfigError(f"there is an adapter of {absent[0]}, which the network has not")
    merged = {
        path: leaves[path] + scale * jnp.tensordot(low_rank[f"{path}/down"], low_rank[f"{path}/up"], axes=1)
        for path in paths
    }
    return traverse_util.unflatten_dict({**leaves, **merged}, sep="/")


def _axes(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of a kernel's input and output axes."""
    heads = len(shape) == 3 and path.split("/")[-2] in _HEADS
    return (shape[:1], shape[1:]) if heads else (shape[:-1], shape[-1:])
