"""What the config.json of a network of Stable Diffusion means to conversion: shapes, and the table of its weights."""

from collections.abc import Mapping
from typing import Any

from interop.architecture import Architecture
from interop.configs import flax_stem_of, stem_of
from interop.files import Weights
from interop.rules import Table
from interop.tables.stable_diffusion import CLIP_TEXT, autoencoder, unet
from jaxkit.models.diffusion.config import class_of, from_config, shapes


def architecture_of(config: Mapping[str, Any], weights: Weights | None = None) -> Architecture:
    """Finds what conversion needs to know of the network of a config.json, whose weights may have old names.

    Raises ConfigError for a network that jaxkit has not.
    """
    module, name = from_config(config), class_of(config)
    table, stems = _table(name, config, weights), (stem_of(config), flax_stem_of(config))
    return Architecture(name, table, lambda _: shapes(module), config, *stems)


def _table(name: str, config: Mapping[str, Any], weights: Weights | None) -> Table:
    if name.startswith("CLIP"):
        return CLIP_TEXT
    if name.endswith("UNet2DConditionModel"):
        return unet(bool(config.get("use_linear_projection")))
    return autoencoder(weights is not None and any(key.endswith(".proj_attn.weight") for key in weights.specs))
