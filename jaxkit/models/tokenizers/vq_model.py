"""The config.json of diffusers' VQModel against the fields of VQGAN and MoVQ."""

from collections.abc import Mapping
from typing import Any

from jaxkit.errors import ConfigError
from jaxkit.spelling import nearest

# VQModel's names of fields that mean the same -> ours
_SAME = {
    "in_channels": "num_channels",
    "layers_per_block": "num_res_blocks",
    "latent_channels": "z_channels",
    "num_vq_embeddings": "num_embeddings",
    "vq_embed_dim": "quantized_embed_dim",
    "norm_num_groups": "norm_num_groups",
}
_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 3,
    "num_vq_embeddings": 256,
    "norm_num_groups": 32,
    "vq_embed_dim": None,
    "norm_type": "group",
    "mid_block_add_attention": True,
}
# No part of the network: how diffusers calls it. Its pipelines of tokens need the lookup.
_CALLS = {"sample_size": 32, "scaling_factor": 0.18215, "lookup_from_codebook": True, "force_upcast": False}
# Attention at a level is a side of the map in our config: those of images of this side.
_RESOLUTION = 256


def from_vq_model(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Reads a VQModel's config: the tokenizer's name, ``vqgan`` or ``movq``, and its fields.

    Raises ConfigError for a key that VQModel has not, and for a network that neither of them is.
    """
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    for key in given.keys() - _DEFAULTS.keys() - _CALLS.keys():
        raise ConfigError(f"VQModel's config has no {key!r}{nearest(key, (*_DEFAULTS, *_CALLS))}")
    read = _DEFAULTS | given
    read["vq_embed_dim"] = read["vq_embed_dim"] or read["latent_channels"]
    widths, down = read["block_out_channels"], read["down_block_types"]
    attended = [level < len(down) and down[level].startswith("Attn") for level in range(len(widths))]
    modulated = read["norm_type"] == "spatial"
    fields = {ours: read[theirs] for theirs, ours in _SAME.items()} | {
        "resolution": _RESOLUTION,
        "hidden_channels": widths[0],
        "channel_mult": tuple(width // widths[0] for width in widths),
        "attn_resolutions": tuple(_RESOLUTION // 2**level for level, attends in enumerate(attended) if attends),
        "no_attn_mid_block": not read["mid_block_add_attention"],
    }
    expected = _network(fields, attended, modulated)
    for key in _DEFAULTS:
        value = list(read[key]) if isinstance(read[key], tuple) else read[key]
        if value != expected[key]:
            raise ConfigError(f"VQModel's config: {key} {value!r} is not supported, only {expected[key]!r}")
    return "movq" if modulated else "vqgan", fields


def to_vq_model(tokenizer: Any) -> dict[str, Any]:
    """Writes the config of the VQModel that a VQGAN's or MoVQ's weights fit.

    Raises ConfigError for a tokenizer that VQModel cannot hold.
    """
    has = {"decoder_res_blocks": None, "extra_mid_res_blocks": None, "decoder_hidden_channels": None}
    has |= {"decoder_channel_mult": None, "resample_with_conv": True}
    has |= {"channel_mult": (1, *tokenizer.channel_mult[1:])}
    if tokenizer.modulated:
        has |= {"norm_num_groups": 32, "quantized_embed_dim": tokenizer.z_channels}
    for field, value in has.items():
        if (found := getattr(tokenizer, field)) != value:
            raise ConfigError(f"diffusers' VQModel needs {field} {value!r}, not {found!r}; open-muse's layout has it")
    levels = range(len(tokenizer.channel_mult))
    attended = [tokenizer.resolution // 2**level in tokenizer.attn_resolutions for level in levels]
    names = (*_SAME.values(), "hidden_channels", "channel_mult", "no_attn_mid_block")
    return _network({name: getattr(tokenizer, name) for name in names}, attended, tokenizer.modulated) | _CALLS


def _network(fields: Mapping[str, Any], attended: list[bool], modulated: bool) -> dict[str, Any]:
    """The part of VQModel's config that makes the network."""
    return {theirs: fields[ours] for theirs, ours in _SAME.items()} | {
        "out_channels": fields["num_channels"],
        "down_block_types": ["Attn" * attends + "DownEncoderBlock2D" for attends in attended],
        "up_block_types": ["Attn" * attends + "UpDecoderBlock2D" for attends in reversed(attended)],
        "block_out_channels": [fields["hidden_channels"] * times for times in fields["channel_mult"]],
        "act_fn": "silu",
        "norm_type": "spatial" if modulated else "group",
        "mid_block_add_attention": not fields["no_attn_mid_block"],
    }
