"""The networks of a config of open-muse's trainer, with sizes: transformer and tokenizer."""

import json
from pathlib import Path
from typing import Any

from interop.masked.layouts import module_of, name_of
from interop.open_muse.settings import NETWORK, Settings
from jaxkit.errors import ConfigError
from jaxkit.models.masked.config import from_config
from jaxkit.schema import maskgit, tokenizer

Raw = dict[str, Any]

# of the two published tokenizers that the configs name
PUBLISHED = {
    "openMUSE/vqgan-f16-8192-laion": {
        "name": "vqgan",
        "resolution": 256,
        "channel_mult": [1, 2, 2, 4, 6],
        "no_attn_mid_block": True,
        "z_channels": 64,
        "num_embeddings": 8192,
        "quantized_embed_dim": 64,
    },
    "openMUSE/maskgit-vqgan-imagenet-f16-256": {"name": "maskgit_vqgan"},
}


def tokenizer_of(settings: Settings) -> Raw:
    """The sizes of the tokenizer: those of a config.json on disk, or of a published one."""
    key = "model.vq_model.pretrained"
    name, folder = settings.need(key), settings.local(key)
    kinds = {kind: kind for kind in ("maskgit_vqgan", "vqgan", "movq", "paella_vq")}
    kind = settings.one("model.vq_model.type", kinds, "maskgit_vqgan")
    described = Path(folder) / "config.json"
    if described.is_file():
        found = _described(described)
    elif name in PUBLISHED:
        found = PUBLISHED[name]
    else:
        settings.problems.append(
            f"{key}: {name} is none of {', '.join(PUBLISHED)}: download it, and name the folder, "
            "whose config.json says its sizes"
        )
        return {"name": kind}
    if found["name"] != kind:
        settings.problems.append(f"model.vq_model.type: is {kind}, and {name} is a {found['name']}")
    return {**found, "pretrained": folder}


def _described(path: Path) -> Raw:
    module = module_of(json.loads(path.read_text()))
    name = name_of(module)
    fields = {field: getattr(module, field) for field in tokenizer.MODELS[name].model_fields if hasattr(module, field)}
    return {field: list(v) if isinstance(v, tuple) else v for field, v in (fields | {"name": name}).items()}


def network_of(settings: Settings) -> Raw:
    """The network's fields; those that jaxkit derives from the data and the tokenizer are left out."""
    kinds = {"transformer": "maskgit_transformer", "uvit": "uvit"}
    name = settings.one("model.architecture", kinds, "transformer")
    given = dict(settings.network)
    if name == "uvit":
        parts = ("add_cond_embeds", "add_micro_cond_embeds")
        given |= {part: settings.get(f"{NETWORK}{part}", False) for part in parts}
    try:
        module = from_config({"_class_name": "MaskGiTUViT_v2" if name == "uvit" else "MaskGitTransformer", **given})
    except ConfigError as error:
        settings.problems.append(f"model.transformer: {error}")
        return {"name": name}
    fields = [field for field in maskgit.MODELS[name].model_fields if field in given and hasattr(module, field)]
    found = {field: getattr(module, field) for field in fields}
    model = {"name": name} | {field: list(v) if isinstance(v, tuple) else v for field, v in found.items()}
    model["remat"] = bool(settings.get("model.gradient_checkpointing"))
    if settings.get("model.pretrained_model_path"):
        model["pretrained"] = settings.local("model.pretrained_model_path")
    return model
