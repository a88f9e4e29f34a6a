"""The config.json that describes a model, beside its weights or in their metadata; needs neither jax nor torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interop.files import FileError, Weights
from interop.files.errors import missing
from interop.files.strict_json import parse
from interop.files.write import CONFIG as FILE

# under which a file's metadata has it; where there are other layouts than torch's, no config.json lies beside them
CONFIG = "jaxkit.config"
# of open-muse, diffusers and transformers, those that jaxkit has
MASKED = (
    "MaskGitTransformer", "MaskGiTUViT", "MaskGiTUViT_v2", "UVit2DModel", "BertForMaskedLM", "VQGANModel", "MOVQ",
    "MaskGitVQGAN", "PaellaVQModel", "VQModel",
)  # fmt: skip
# of Stable Diffusion; diffusers' Flax classes have "Flax" before these names
DIFFUSION = ("UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "CLIPTextModelWithProjection")
_LARGEST = 1_000_000


def described(weights: Weights) -> dict[str, Any] | None:
    """Reads the config.json of open weights, beside them or in their metadata; None if it is of no class here.

    What lies beside torch's layouts is at home there, and may have been edited; before others the metadata goes.

    Raises FileError for one that is no JSON object.
    """
    path = (weights.path if weights.path.is_dir() else weights.path.parent) / FILE
    beside, text = path.is_file(), weights.metadata.get(CONFIG)
    if text is not None and (weights.format == "flax" or not beside):
        config = parse(text.encode(), weights.path, "config")
    else:
        config = read_config(path) if beside else {}
    known = class_of(config) in MASKED or is_diffusion(config)
    # BERT is many things; Google's transformer has a codebook
    return config if known and (class_of(config) != "BertForMaskedLM" or "codebook_size" in config) else None


def read_config(path: Path) -> dict[str, Any]:
    """Reads a config.json.

    Raises FileError if it is none, and ConfigError if there is no such file.
    """
    if not path.is_file():
        raise missing(path)
    if path.stat().st_size > _LARGEST:
        raise FileError(path, f"a config of more than {_LARGEST:,} bytes is not read")
    return parse(path.read_bytes(), path, "config")


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Writes a config.json, or another file of JSON that lies in such a folder."""
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def metadata_of(config: Mapping[str, Any] | None) -> dict[str, str]:
    """What a weight file's metadata says of a config.json, where there is one."""
    return {} if config is None else {CONFIG: json.dumps(config)}


def class_of(config: Mapping[str, Any]) -> str | None:
    """The class that a config.json names, as diffusers and open-muse or as transformers do; None if none."""
    names = config.get("architectures")
    name = config.get("_class_name") or (names[0] if isinstance(names, list) and names else None)
    return name if isinstance(name, str) else None


def is_diffusion(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a network of Stable Diffusion."""
    return str(class_of(config)).removeprefix("Flax") in DIFFUSION


def of_framework(config: Mapping[str, Any], format: str) -> dict[str, Any]:
    """The config.json of a network of Stable Diffusion as ``torch``'s or ``flax``'s class has it."""
    if "_class_name" not in config:
        return dict(config)
    return {**config, "_class_name": class_name(config["_class_name"], format)}


def class_name(name: str, format: str) -> str:
    """What ``torch`` or ``flax`` calls a class of diffusers or transformers."""
    return ("Flax" if format == "flax" else "") + name.removeprefix("Flax")


def layout_of(config: Mapping[str, Any]) -> str:
    """Whose the class is that a config.json names: ``open-muse``, ``diffusers`` or ``transformers``."""
    name = class_of(config)
    if is_diffusion(config):
        return "transformers" if name.startswith("CLIP") else "diffusers"
    if name == "BertForMaskedLM":
        return "transformers"
    # both have a PaellaVQModel, and name its fields otherwise
    own = {"_diffusers_version", "embed_dim", "latent_channels", "num_vq_embeddings"} & config.keys()
    return "diffusers" if name in ("UVit2DModel", "VQModel") or (name == "PaellaVQModel" and own) else "open-muse"


def flax_stem_of(config: Mapping[str, Any]) -> str | None:
    """What Flax's weights beside a config.json are called; None for classes that nobody else has in Flax."""
    if not is_diffusion(config):
        return None
    return "flax_model" if layout_of(config) == "transformers" else "diffusion_flax_model"


def stem_of(config: Mapping[str, Any]) -> str:
    """What torch's weights beside a config.json are called."""
    stems = {"open-muse": "pytorch_model", "diffusers": "diffusion_pytorch_model", "transformers": "model"}
    return stems[layout_of(config)]
