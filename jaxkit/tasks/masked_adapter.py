"""The adapter of a masked transformer: its own parameters, and what the network computes with them."""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn
from jaxtyping import PyTree

from jaxkit.models.masked.style_adapter import StyleAdapter
from jaxkit.nn.adapters import TARGETS, lora_applied, lora_init, lora_merge
from jaxkit.schema.adapters import LoRA, StyleDrop


class Adapter(NamedTuple):
    """What is trained in the place of the network's parameters, as functions."""

    init: Callable[..., PyTree]
    """``key, params -> adapters``, with which the network computes what it does without."""
    apply: Callable[..., PyTree]
    """``params, adapters, *inputs, **options -> outputs``, of the module's ``apply``."""
    merge: Callable[..., tuple[nn.Module, PyTree]]
    """``params, adapters -> module, params`` that compute the same without an adapter beside them."""


def adapter(config: LoRA | StyleDrop, module: nn.Module) -> Adapter:
    """Makes the adapter of a section, for a module without one; StyleDrop's for a ``MaskGiTUViT``."""
    return (_lora if config.name == "lora" else _styledrop)(config, module)


def _lora(config: LoRA, module: nn.Module) -> Adapter:
    patterns = [TARGETS[target] for target in config.targets]

    def apply(params, adapters, *inputs, **options):
        with lora_applied(adapters, config.scale, config.dropout):
            return module.apply({"params": params}, *inputs, **options)

    return Adapter(
        lambda key, params: lora_init(key, params, patterns, config.rank),
        apply,
        lambda params, adapters: (module, lora_merge(params, adapters, config.scale)),
    )


def _styledrop(config: StyleDrop, module: nn.Module) -> Adapter:
    styled = module.clone(use_adapter=True, adapter_proj_dim=config.size, is_adapter_shared=config.shared)
    fresh = StyleAdapter(module.num_hidden_layers, config.size, config.shared)

    def merge(params, adapters):
        return styled, {**params, "adapter": adapters}

    def apply(params, adapters, *inputs, **options):
        return styled.apply({"params": merge(params, adapters)[1]}, *inputs, **options)

    return Adapter(lambda key, params: fresh.init(key, module.hidden_size)["params"], apply, merge)
