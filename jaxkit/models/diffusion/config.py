"""From a config.json of diffusers or transformers to a module: every key is honoured, or refused by its name."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from pydantic import TypeAdapter, ValidationError

from jaxkit.errors import ConfigError
from jaxkit.models.diffusion.attention import Implementation
from jaxkit.models.diffusion.autoencoder import AutoencoderKL
from jaxkit.models.diffusion.blocks import Remat
from jaxkit.models.diffusion.clip_text import ClipText
from jaxkit.models.diffusion.unet import Added, UNet
from jaxkit.spelling import nearest


class Kind(NamedTuple):
    """What a config.json of a class may say beside its module's fields."""

    module: type[nn.Module]
    fixed: Mapping[str, tuple]
    """Keys that are no fields, with the values that the module computes; the first is the class's own default."""
    silent: tuple[str, ...]
    """Keys that say nothing of what is computed."""


_HEAD = ("_class_name", "_diffusers_version", "_name_or_path")
# fields that no config.json has: how the module is run, and what the class says
_OURS = ("parent", "name", "dtype", "remat", "attention", "with_projection")

_UNET = Kind(
    UNet,
    {
        "freq_shift": (0,),
        "act_fn": ("silu", "swish"),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "num_attention_heads": (None,),
        "dual_cross_attention": (False,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "resnet_time_scale_shift": ("default",),
        "resnet_skip_time_act": (False,),
        "resnet_out_scale_factor": (1.0,),
        "time_embedding_type": ("positional",),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "time_cond_proj_dim": (None,),
        "attention_type": ("default",),
        "class_embeddings_concat": (False,),
        "mid_block_only_cross_attention": (None, False),
        "cross_attention_norm": (None,),
    },
    (
        *(*_HEAD, "sample_size", "addition_embed_type_num_heads"),
        # products of attention are summed in float32 anyway, and how they are computed is not the network's
        *("upcast_attention", "use_memory_efficient_attention", "split_head_dim"),
    ),
)
_VAE = Kind(
    AutoencoderKL,
    {"act_fn": ("silu", "swish"), "shift_factor": (None,), "latents_mean": (None,), "latents_std": (None,)},
    (*_HEAD, "sample_size", "force_upcast", "down_block_types", "up_block_types"),
)
_TEXT = Kind(
    ClipText,
    {"attention_dropout": (0.0,), "use_attention_mask": (False,)},
    (
        *(*_HEAD, "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "dropout"),
        *("initializer_range", "pad_token_id", "bos_token_id", "output_attentions", "output_hidden_states"),
        *("return_dict", "use_cache", "gradient_checkpointing", "attn_implementation", "tie_word_embeddings"),
    ),
)
KINDS = {
    "UNet2DConditionModel": _UNET,
    "FlaxUNet2DConditionModel": _UNET,
    "AutoencoderKL": _VAE,
    "FlaxAutoencoderKL": _VAE,
    "CLIPTextModel": _TEXT,
    "CLIPTextModelWithProjection": _TEXT,
}
# what released configs call the end of a text, and mean the largest token
_LEGACY_EOS = 2


def class_of(config: Mapping[str, Any]) -> str:
    """The class that a config.json names. Raises ConfigError for one that jaxkit has not."""
    names = config.get("architectures") or [config.get("_class_name")]
    name = names[0] if isinstance(names, list | tuple) else names
    if name not in KINDS:
        raise ConfigError(
            f"config.json names the class {name!r}, no part of Stable Diffusion{nearest(str(name), KINDS)}; there are "
            f"{', '.join(KINDS)}"
        )
    return name


def from_config(
    config: Mapping[str, Any],
    *,
    dtype: Dtype = jnp.float32,
    remat: Remat = "none",
    attention: Implementation | None = None,
    eos_token_id: int | None = None,
) -> nn.Module:
    """Builds the module that a config.json describes.

    Args:
        config: of a UNet, an autoencoder or a text encoder.
        dtype: of the arithmetic.
        remat: what the backward pass computes again.
        attention: how a UNet's or an autoencoder's attention is computed.
        eos_token_id: of a text encoder: the token whose state is pooled. By default as its config says, which in
            released ones is the largest token, be it a new word.

    Raises:
        ConfigError: for every key that is unknown, with the nearest, and every value that the module does not compute;
            and for levels of a UNet that do not go together.
    """
    name = class_of(config)
    kind = KINDS[name]
    values, problems = _read(kind, config)
    if problems:
        raise ConfigError(f"config.json of {name}: " + "; ".join(problems))
    values |= {"dtype": dtype, "remat": remat}
    if kind is not _TEXT:
        values["attention"] = attention
    else:
        values["with_projection"] = name == "CLIPTextModelWithProjection"
        if eos_token_id is not None or values.get("eos_token_id") == _LEGACY_EOS:
            values["eos_token_id"] = eos_token_id
    module = kind.module(**values)
    if kind is _UNET:
        module.levels()
    return module


def example(module: UNet | AutoencoderKL | ClipText) -> tuple:
    """The smallest inputs of a module."""
    if isinstance(module, ClipText):
        return (jnp.zeros((1, 1), jnp.int32),)
    side = 2 ** (len(module.block_out_channels) - 1)
    x = jnp.zeros((1, side, side, module.in_channels))
    if isinstance(module, AutoencoderKL):
        return (x,)
    added = None
    if module.addition_embed_type is not None:
        rest = module.projection_class_embeddings_input_dim - module.addition_time_embed_dim
        added = Added(jnp.zeros((1, rest)), jnp.zeros((1, 1)))
    return x, jnp.zeros(1), jnp.zeros((1, 1, module.cross_attention_dim)), added


def shapes(module: UNet | AutoencoderKL | ClipText) -> Mapping[str, Any]:
    """The shapes of a module's variables; computes nothing. Raises ConfigError for fields that do not go together."""
    try:
        return jax.eval_shape(module.init, jax.random.key(0), *example(module))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"the config describes no {type(module).__name__} that can be built: {error}") from error


def _read(kind: Kind, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields that a config.json sets, and all that is wrong with it."""
    hints = {field.name: field.type for field in fields(kind.module) if field.name not in _OURS}
    values, problems = {}, []
    for key, value in config.items():
        value = _tuples(value)
        if key in kind.fixed:
            if value not in kind.fixed[key]:
                problems.append(f"{key} {value!r} is not offered, only {kind.fixed[key][0]!r}")
        elif key in hints:
            value = _one_width(value) if key == "cross_attention_dim" else value
            try:
                # a whole number where a fraction may be becomes one
                values[key] = TypeAdapter(hints[key]).validate_python(value, strict=True)
            except ValidationError:
                problems.append(f"{key} {value!r} is not offered, only {getattr(hints[key], '__name__', hints[key])}")
        elif key not in kind.silent:
            problems.append(f"{key}: unknown key{nearest(key, (*hints, *kind.fixed))}")
    return values, problems + _contradictions(kind, config)


def _contradictions(kind: Kind, config: Mapping[str, Any]) -> list[str]:
    """What is wrong with values that only together mean something."""
    problems = []
    if kind is _VAE:
        levels = len(config.get("block_out_channels", AutoencoderKL.block_out_channels))
        for key, block in ("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D"):
            if list(config.get(key, [block])) != [block] * levels:
                problems.append(f"{key} {config.get(key)!r} is not offered, only {levels} times {block!r}")
    if kind is _UNET:
        mid, added = config.get("mid_block_type", UNet.mid_block_type), config.get("addition_embed_type")
        if mid not in (None, UNet.mid_block_type):
            problems.append(f"mid_block_type {mid!r} is not offered, only {UNet.mid_block_type!r} or none")
        if added not in (None, "text_time"):
            problems.append(f"addition_embed_type {added!r} is not offered, only 'text_time' or none")
        sizes = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
        if added and not all(config.get(key) for key in sizes):
            problems.append(f"addition_embed_type {added!r} needs {' and '.join(sizes)}")
        if config.get("downsample_padding", 1) not in (0, 1):
            problems.append(f"downsample_padding {config['downsample_padding']!r} is not offered, only 0 or 1")
    return problems


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _one_width(value: Any) -> Any:
    """The width of the text, which a config may repeat for every level."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
