"""Low-rank adapters (LoRA): small trees of parameters beside a network's own, which stays as it is.

No model knows of them: in training the layers add what their adapters make of their input, at the end both are merged::

    adapters = lora_init(key, params, (TARGETS["attention"],), rank=8)
    with lora_applied(adapters, scale=1.0):
        logits = model.apply({"params": params}, tokens)
    logits = model.apply({"params": lora_merge(params, adapters, scale=1.0)}, tokens)

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1.
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from flax.linen.dtypes import promote_dtype
from jax.typing import ArrayLike

from jaxkit.errors import ConfigError
from jaxkit.nn.initializers import uniform_within

# Patterns of the kernels that are adapted: of attention's four projections, or three as in diffusers' examples ...
ATTENTION = r"attention/(query|key|value|out)/kernel"
QUERY_KEY_VALUE = r"attention/(query|key|value)/kernel"
# ... and of the feed-forward layers, by the names of the masked transformers.
FEED_FORWARD = r"(ffn/(wi_0|wi_1|wo)|layers_\d+/(intermediate|output))/kernel"
TARGETS = {"attention": ATTENTION, "query_key_value": QUERY_KEY_VALUE, "feed_forward": FEED_FORWARD}

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
        inputs, outputs = kernel_axes(path, leaves[path].shape)
        draw = uniform_within(1 / math.sqrt(math.prod(inputs)))
        adapters[f"{path}/down"] = draw(key_down, (*inputs, rank), jnp.float32)
        adapters[f"{path}/up"] = jnp.zeros((rank, *outputs), jnp.float32)
    return traverse_util.unflatten_dict(adapters, sep="/")


def lora_merge(params: Mapping[str, Any], adapters: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Adds each adapter to its kernel: ``W + scale A B``. Other parameters are handed through.

    ``scale`` is alpha / rank of the paper. Raises ConfigError for an adapter of a kernel that is not there, or is of
    another shape.
    """
    leaves, low_rank = traverse_util.flatten_dict(params, sep="/"), lora_pairs(adapters)
    if absent := [path for path in low_rank if path not in leaves]:
        raise ConfigError(f"there is an adapter of {absent[0]}, which the network has not")
    merged = {}
    for path, (down, up) in low_rank.items():
        product, kernel = jnp.tensordot(down, up, axes=1), leaves[path]
        if product.shape != kernel.shape:
            raise ConfigError(f"the adapter of {path} is of shape {product.shape}, and the kernel of {kernel.shape}")
        merged[path] = kernel + scale * product
    return traverse_util.unflatten_dict({**leaves, **merged}, sep="/")


def lora_applied(adapters: Mapping[str, Any], scale: float, dropout_rate: float = 0.0) -> AbstractContextManager:
    """Makes the context in which layers of adapted kernels add ``scale up(down(x))``, and no kernel is merged.

    So the backward pass never makes a whole kernel's gradient. Where ``apply`` is given a key ``dropout``, each entry
    of an adapter's input is dropped with probability ``dropout_rate``. A layer that is not there adds nothing.
    """
    low_rank = lora_pairs(adapters)

    def call(layer, inputs, named, context):
        y = layer(*inputs, **named)
        module = context.module
        path = "/".join((*module.path, "kernel"))
        if context.method_name != "__call__" or path not in low_rank:
            return y
        x, down, up = promote_dtype(inputs[0], *low_rank[path], dtype=module.dtype)
        if dropout_rate and module.has_rng("dropout"):
            kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - dropout_rate, x.shape)
            x = jnp.where(kept, x / (1 - dropout_rate), 0)
        return y + scale * jnp.tensordot(jnp.tensordot(x, down, axes=down.ndim - 1), up, axes=1)

    return nn.intercept_methods(call)


def lora_pairs(adapters: Mapping[str, Any]) -> dict[str, tuple[ArrayLike, ArrayLike]]:
    """The two matrices of each adapted kernel, by its path."""
    leaves = traverse_util.flatten_dict(adapters, sep="/")
    paths = [path.removesuffix("/down") for path in leaves if path.endswith("/down")]
    return {path: (leaves[f"{path}/down"], leaves[f"{path}/up"]) for path in paths}


def kernel_axes(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of the input and the output axes of the kernel at a path."""
    heads = len(shape) == 3 and path.split("/")[-2] in _HEADS
    return (shape[:1], shape[1:]) if heads else (shape[:-1], shape[-1:])
