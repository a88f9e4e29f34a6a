"""From a config.json of open-muse, diffusers or transformers to a module, and back."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from flax import linen as nn

from jaxkit.errors import ConfigError
from jaxkit.models.masked import transformer_class
from jaxkit.spelling import nearest

# fields of the modules that no config.json has: how to compute, not what
_OURS = ("parent", "name", "dtype", "remat", "attention")


class Family(NamedTuple):
    """What the config.json of a class may say."""

    name: str
    """That of our module; its fields are the keys."""
    renamed: Mapping[str, str] = {}
    """Keys that have another name than our field."""
    fixed: Mapping[str, Any] = {}
    """Keys that our module has no field for, with the one value it is built with."""
    ignored: tuple[str, ...] = ()
    """Keys that tell nothing of what is computed."""
    hint: str = ""
    """What else to say of another value of a fixed key."""


_HEAD = ("_class_name", "_version", "_diffusers_version", "_name_or_path", "mask_token_id", "dtype")
_V1 = "; this is MaskGiTUViT version 1, of which jaxkit has what version 2 (aMUSEd) kept"

_UVIT = Family(
    "uvit",
    fixed={
        "add_cond_embeds": True,
        "add_cross_attention": True,
        "add_micro_cond_embeds": True,
        "block_has_attention": (True,),
        "ffn_type": "glu",
        "initializer_range": 0.02,
        "layer_norm_before_mlm": False,
        "layer_norm_embedddings": False,
        "learn_uncond_embeds": False,
        "num_classes": None,
        "patch_size": 1,
        "project_encoder_hidden_states": True,
        "res_ffn_factor": 4,
        "use_codebook_size_for_output": True,
        "use_encoder_layernorm": False,
        "use_normformer": False,
        "use_position_embeddings": False,
        "use_vannilla_resblock": False,
        "xavier_init_embed": True,
    },
    # fused kernels, what open-muse's training and sampling read
    ignored=(
        "max_position_embeddings",
        "num_vq_tokens",
        "use_empty_embeds_for_uncond",
        "use_fused_residual_norm",
    ),
    hint=_V1,
)
_FAMILIES = {
    "MaskGitTransformer": Family("maskgit_transformer"),
    "MaskGiTUViT_v2": _UVIT,
    "MaskGiTUViT": _UVIT,
    "UVit2DModel": Family(
        "uvit",
        renamed={"downsample": "force_down_up_sample", "upsample": "force_down_up_sample"},
        ignored=("sample_size",),
    ),
    "BertForMaskedLM": Family(
        "maskgit_bert",
        fixed={
            "classifier_dropout": None,
            "hidden_act": "gelu_new",
            "is_decoder": False,
            "position_embedding_type": "absolute",
            "tie_word_embeddings": True,
        },
        ignored=("architectures", "model_type", "pad_token_id", "torch_dtype", "transformers_version", "use_cache"),
    ),
}


def from_config(config: Mapping[str, Any]) -> nn.Module:
    """Builds the module that a config.json describes, float32; ``module.clone(dtype=..., remat=...)`` changes that.

    The class is ``_class_name``'s (open-muse, diffusers) or that of ``architectures`` (transformers).

    Raises ConfigError for a class or a key that is unknown, naming the nearest, and for a value that jaxkit's module
    cannot have, such as most of MaskGiTUViT version 1.
    """
    class_name, family = _family(config)
    cls = transformer_class(family.name)
    theirs = [field for field in fields(cls) if field.name not in _OURS]
    values, problems = _read(config, family, [field.name for field in theirs])
    absent = [field.name for field in theirs if field.default is MISSING and field.name not in values]
    problems += [f"{name} is missing" for name in absent]
    if isinstance(levels := values.get("block_out_channels"), tuple) and len(levels) != 1:
        problems.append(f"block_out_channels {list(levels)} has {len(levels)} levels, only one is offered{family.hint}")
    module = None if absent else cls(**_levels(values))
    if module and config.get("mask_token_id", module.mask_token_id) != module.mask_token_id:
        problems.append(f"mask_token_id {config['mask_token_id']} is not the last token, {module.mask_token_id}")
    if problems:
        raise ConfigError(f"config.json of {class_name}: " + "; ".join(problems))
    return module


def to_config(module: nn.Module) -> dict[str, Any]:
    """Writes a module's fields as the config.json of open-muse, or of transformers for Google's MaskGIT transformer."""
    class_name = {"MaskGiTUViT": "MaskGiTUViT_v2", "MaskGitBert": "BertForMaskedLM"}.get(
        type(module).__name__, type(module).__name__
    )
    values = _values(module)
    if class_name == "BertForMaskedLM":
        family = _FAMILIES[class_name]
        return {"architectures": [class_name], "model_type": "bert", **family.fixed, **values}
    return {"_class_name": class_name, **values, "mask_token_id": module.mask_token_id}


def to_diffusers_config(module: nn.Module, sample_size: int) -> dict[str, Any]:
    """Writes a MaskGiTUViT's fields as the config.json of diffusers' UVit2DModel.

    ``sample_size`` is the side of the grid that AmusedPipeline samples when it is not told another.
    Raises ConfigError for what UVit2DModel has not: layer norms throughout, the fused feed-forward layer, the adapter.
    """
    values = _values(module)
    for field, only in (("norm_type", "rmsnorm"), ("use_fused_mlp", False), ("use_adapter", False)):
        if values.pop(field) != only:
            raise ConfigError(f"diffusers' UVit2DModel has {field} {only!r} only, not {getattr(module, field)!r}")
    del values["adapter_proj_dim"], values["is_adapter_shared"]
    half = values.pop("force_down_up_sample")
    values["block_out_channels"] = values["block_out_channels"][0]
    return {"_class_name": "UVit2DModel", **values, "downsample": half, "upsample": half, "sample_size": sample_size}


def _family(config: Mapping[str, Any]) -> tuple[str, Family]:
    architectures = config.get("architectures") or [None]
    name = config.get("_class_name") or architectures[0]
    if name not in _FAMILIES:
        hint = nearest(str(name), _FAMILIES) or f"; there are {', '.join(_FAMILIES)}"
        raise ConfigError(f"config.json names the class {name!r}, which jaxkit has not{hint}")
    return name, _FAMILIES[name]


def _read(config: Mapping[str, Any], family: Family, names: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of our fields, and what of the config they cannot say."""
    known = {*names, *family.renamed, *family.fixed}
    values, problems = {}, []
    for key, value in config.items():
        value = tuple(value) if isinstance(value, list) else value
        field = family.renamed.get(key, key)
        if key in _HEAD or key in family.ignored:
            continue
        if key not in known:
            problems.append(f"{key}: unknown key{nearest(key, known)}")
        elif key in family.fixed:
            if value != family.fixed[key]:
                problems.append(f"{key} {value!r} is not offered, only {family.fixed[key]!r}{family.hint}")
        elif values.setdefault(field, value) != value:
            problems.append(f"{key} {value!r} contradicts {field} {values[field]!r}")
    return values, problems


def _values(module: nn.Module) -> dict[str, Any]:
    values = {field.name: getattr(module, field.name) for field in fields(module) if field.name not in _OURS}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _levels(values: dict[str, Any]) -> dict[str, Any]:
    """What is given for each level of block_out_channels, as our fields have it: channels a tuple, heads a number."""
    channels, heads = values.get("block_out_channels"), values.get("block_num_heads")
    if isinstance(channels, int):
        values["block_out_channels"] = (channels,)
    if isinstance(heads, tuple) and len(heads) == 1:
        values["block_num_heads"] = heads[0]
    return values
