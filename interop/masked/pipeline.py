"""Whole pipelines of diffusers: aMUSEd's transformer and tokenizer, beside a text encoder and a scheduler."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn

from interop.configs import read_config
from interop.files import FileError
from interop.files.atomic import publish, require_free, staged
from interop.masked.folders import load_folder, save_folder
from jaxkit.errors import ConfigError

INDEX = "model_index.json"
_OURS = ("transformer", "vqvae")
_THEIRS = ("scheduler", "text_encoder", "tokenizer")
# CLIP's where a config.json leaves them out
_TEXT = {"hidden_size": 512, "projection_dim": 512}

Model = tuple[nn.Module, Mapping[str, Any]]


def load_pipeline(path: str | Path) -> dict[str, Model]:
    """Reads ``transformer`` and ``vqvae`` of an aMUSEd folder, each a module and its variables.

    Raises as :func:`interop.masked.folders.load_folder`, and ConfigError for another pipeline.
    """
    path = Path(path)
    _require_amused(path)
    return {name: load_folder(path / name) for name in _OURS}


def save_pipeline(
    transformer: Model,
    vqvae: Model,
    path: str | Path,
    source: str | Path,
    *,
    sample_size: int | None = None,
    force: bool = False,
) -> None:
    """Writes an aMUSEd folder, which ``AmusedPipeline.from_pretrained`` loads; there in full or not at all.

    Args:
        transformer: a MaskGiTUViT and its variables.
        vqvae: a VQGAN or MoVQ and its variables.
        path: the folder.
        source: an aMUSEd folder whose scheduler, text encoder and tokenizer are copied, byte for byte.
        sample_size: the side of the grid that the pipeline samples, by default aMUSEd's.
        force: whether a pipeline's folder that is there is replaced.

    Raises:
        ConfigError: if something is there, the parts do not go together, or diffusers has no place for one.
        WeightsError: if variables are not their module's.
        FileError: if a part of ``source`` is missing or damaged.
    """
    path, source = Path(path), Path(source)
    _require_amused(source)
    for name in _THEIRS:
        if not (source / name).is_dir():
            raise FileError(source, f"the pipeline has no folder {name}")
    _require_match(transformer[0], vqvae[0], source)
    require_free([path], force)
    if path.exists() and not (path / INDEX).is_file():
        raise ConfigError(f"{path} is no pipeline, and is not replaced by one; remove it, or choose another")
    copied = sum(file.stat().st_size for name in _THEIRS for file in (source / name).rglob("*") if file.is_file())
    with staged(path.parent, path, copied) as hidden:
        whole = hidden / path.name
        whole.mkdir()
        for name in _THEIRS:
            shutil.copytree(source / name, whole / name)
        shutil.copy(source / INDEX, whole / INDEX)
        save_folder(*transformer, whole / "transformer", "diffusers", sample_size=sample_size)
        save_folder(*vqvae, whole / "vqvae", "diffusers")
        publish(hidden, {whole: path})


def _require_amused(path: Path) -> None:
    name = read_config(path / INDEX).get("_class_name")
    if not str(name).startswith("Amused"):
        raise ConfigError(f"{path} holds a {name}, and only aMUSEd's pipelines are read")


def _require_match(transformer: nn.Module, vqvae: nn.Module, source: Path) -> None:
    """Raises ConfigError unless tokens and texts are the same to all parts."""
    for part, kinds in ((transformer, ("MaskGiTUViT",)), (vqvae, ("VQGAN", "MoVQ"))):
        if type(part).__name__ not in kinds:
            raise ConfigError(f"aMUSEd has a {' or '.join(kinds)} where {type(part).__name__} was given")
    text = _TEXT | read_config(source / "text_encoder" / "config.json")
    scheduler = read_config(source / "scheduler" / "scheduler_config.json")
    pairs = (
        ("codebook_size", transformer.codebook_size, "num_embeddings of the vqvae", vqvae.num_embeddings),
        # the pipeline looks codes up as if they had the latents' channels
        ("quantized_embed_dim", vqvae.quantized_embed_dim, "its z_channels", vqvae.z_channels),
        ("mask_token_id", transformer.mask_token_id, "that of the scheduler", scheduler.get("mask_token_id")),
        ("encoder_hidden_size", transformer.encoder_hidden_size, "hidden_size of the texts", text["hidden_size"]),
        ("cond_embed_dim", transformer.cond_embed_dim, "projection_dim of the texts", text["projection_dim"]),
    )
    apart = [f"{name} {ours} is not {whose}, {theirs}" for name, ours, whose, theirs in pairs if ours != theirs]
    if apart:
        raise ConfigError(f"transformer, vqvae and {source} do not go together: {'; '.join(apart)}")
