"""From a config.json of open-muse or diffusers to a tokenizer, and back."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from jaxkit.errors import ConfigError
from jaxkit.models import tokenizers
from jaxkit.models.tokenizers.tokenizer import Tokenizer
from jaxkit.models.tokenizers.vq_model import from_vq_model, to_vq_model
from jaxkit.spelling import nearest


class Family(NamedTuple):
    """What the config.json of a class may say."""

    name: str
    """That of our module."""
    keys: Mapping[str, str]
    """Those that are our fields, by our names; the first of several is the one that a field is written from."""
    fixed: Mapping[str, Any] = {}
    """Keys that our module has no field for, with the one value it is built with."""
    ignored: tuple[str, ...] = ()
    """Keys that tell nothing of what is computed."""


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_HEAD = ("_class_name", "_version", "_diffusers_version", "_name_or_path")
_DERIVED = ("num_resolutions", "reduction_factor", "latent_size", "commitment_cost")
_CONVOLUTIONAL = _same("num_channels", "hidden_channels", "channel_mult", "num_res_blocks", "z_channels", "dropout")
_ATTENDED = _same("resolution", "attn_resolutions", "num_embeddings", "quantized_embed_dim", "resample_with_conv")
_DECODER = _same(
    "decoder_res_blocks", "extra_mid_res_blocks", "decoder_hidden_channels", "decoder_channel_mult", "no_attn_mid_block"
)
_PAELLA = _same("levels", "bottleneck_blocks", "scale_factor")

FAMILIES = {
    "VQGANModel": Family("vqgan", _CONVOLUTIONAL | _ATTENDED | _DECODER, ignored=_DERIVED),
    "MOVQ": Family(
        "movq", _CONVOLUTIONAL | _ATTENDED | {"out_channels": "num_channels"}, {"double_z": False}, _DERIVED
    ),
    "MaskGitVQGAN": Family(
        "maskgit_vqgan",
        _CONVOLUTIONAL | _same("num_embeddings") | {"quantized_embed_dim": "z_channels"},
        # the encoder halves by means and nothing attends, whatever they say
        ignored=(*_DERIVED, "resolution", "attn_resolutions", "resample_with_conv"),
    ),
    "PaellaVQModel": Family("paella_vq", _PAELLA | _same("c_hidden", "c_latent", "codebook_size")),
}
_PAELLA_DIFFUSERS = Family(
    "paella_vq",
    _PAELLA | {"embed_dim": "c_hidden", "latent_channels": "c_latent", "num_vq_embeddings": "codebook_size"},
    {"in_channels": 3, "out_channels": 3, "up_down_scale_factor": 2},
)
CLASSES = (*FAMILIES, "VQModel")
# how codes are learned and numbers computed: no config.json has them
_OURS = ("parent", "name", "dtype", "remat", "axis_name", "codebook_decay", "revive_below")


def is_diffusers(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of diffusers: PaellaVQModel is the name of a class of open-muse, too."""
    own = _PAELLA_DIFFUSERS.keys.keys() - FAMILIES["PaellaVQModel"].keys.keys()
    return config["_class_name"] == "VQModel" or "_diffusers_version" in config or not own.isdisjoint(config)


def from_config(config: Mapping[str, Any]) -> Tokenizer:
    """Builds the tokenizer that a config.json describes, of the class ``_class_name``.

    Raises ConfigError for a class or a key that is unknown, naming the nearest, and for a value that jaxkit's module
    cannot have.
    """
    name = config.get("_class_name")
    if name not in CLASSES:
        raise ConfigError(f"config.json names the class {name!r}, no tokenizer{nearest(str(name), CLASSES)}")
    if name == "VQModel":
        kind, values = from_vq_model(config)
        return tokenizers.build(kind, **values)
    family = _PAELLA_DIFFUSERS if name == "PaellaVQModel" and is_diffusers(config) else FAMILIES[name]
    values, problems = {}, []
    for key, value in config.items():
        if key in (*_HEAD, *family.ignored):
            continue
        if key in family.fixed:
            if value != family.fixed[key]:
                problems.append(f"{key} {value!r} is not offered, only {family.fixed[key]!r}")
        elif key not in family.keys:
            problems.append(f"{key}: unknown key{nearest(key, (*family.keys, *family.fixed))}")
        elif values.setdefault(family.keys[key], value) != value:
            problems.append(f"{key} {value!r} contradicts {family.keys[key]} {values[family.keys[key]]!r}")
    if problems:
        raise ConfigError(f"config.json of {name}: " + "; ".join(problems))
    return tokenizers.build(family.name, **values)


def to_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Writes a tokenizer's fields as the config.json of open-muse.

    Raises ConfigError for what open-muse's class of that kind has not.
    """
    name = next(name for name, family in FAMILIES.items() if family.name == _kind(tokenizer))
    return {"_class_name": name, **_written(tokenizer, FAMILIES[name], f"open-muse's {name}")}


def to_diffusers_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Writes a tokenizer's fields as the config.json of diffusers' VQModel, or PaellaVQModel.

    Raises ConfigError for what these have not.
    """
    kind = _kind(tokenizer)
    if kind == "paella_vq":
        values = _written(tokenizer, _PAELLA_DIFFUSERS, "diffusers' PaellaVQModel")
        return {"_class_name": "PaellaVQModel", **values}
    if kind == "maskgit_vqgan":
        raise ConfigError("diffusers has no MaskGitVQGAN; open-muse's layout has it")
    return {"_class_name": "VQModel", **to_vq_model(tokenizer)}


def _kind(tokenizer: Tokenizer) -> str:
    return next(name for name, (_, kind) in tokenizers.TOKENIZERS.items() if kind == type(tokenizer).__name__)


def _written(tokenizer: Tokenizer, family: Family, theirs: str) -> dict[str, Any]:
    """The keys of a family, and those with one value."""
    said = {*family.keys.values(), *_OURS}
    for field in fields(tokenizer):
        if field.name not in said and getattr(tokenizer, field.name) != field.default:
            value = getattr(tokenizer, field.name)
            raise ConfigError(f"{theirs} has {field.name} {field.default!r} only, not {value!r}")
    values = {key: getattr(tokenizer, field) for key, field in family.keys.items()} | dict(family.fixed)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
