"""Stable Diffusion's folders: ``unet``, ``vae``, ``text_encoder``, ``scheduler`` and ``tokenizer`` under one index."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from interop import manifest
from interop.architecture import Architecture, require_fit
from interop.configs import read_config
from interop.conversion import save
from interop.diffusion.layouts import architecture_of
from interop.diffusion.weights import open_part
from interop.engine import unflatten
from interop.files import FileError, Weights
from interop.files.write import CONFIG
from interop.job import paths, plan_conversion
from interop.problems import Problems
from jaxkit.errors import ConfigError

INDEX = "model_index.json"
SCHEDULER = "scheduler_config.json"
_PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "FlaxStableDiffusionPipeline",
    "FlaxStableDiffusionXLPipeline",
)
_TEXT = ("text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer", "tokenizer_2")


class Part(NamedTuple):
    """A network of a pipeline."""

    config: Mapping[str, Any]
    """Its config.json."""
    variables: dict[str, Any]
    """``{"params": ...}``, NumPy arrays of the types they are stored in."""


class Pipeline(NamedTuple):
    """What a pipeline's folder holds."""

    path: Path
    text_encoders: tuple[Part, ...]
    tokenizers: tuple[Path, ...]
    """A folder for each text encoder."""
    unet: Part
    vae: Part
    scheduler: Mapping[str, Any]
    """Its config."""
    zeros_for_empty: bool
    """Whether an empty negative prompt is zeros, and not what the text encoders make of it."""


def load_pipeline(path: str | Path, variant: str | None = None) -> Pipeline:
    """Reads the networks of a folder of Stable Diffusion 1, 2 or XL, which torch or Flax may have written.

    Args:
        path: a folder with a model_index.json.
        variant: what stands in the names of the weight files, such as ``fp16``.

    Raises:
        ConfigError: for another pipeline, or a network that jaxkit has not.
        WeightsError: if weights are not those of their config.json.
        FileError: if a part is missing, or a file is damaged or unsafe.
    """
    path = Path(path)
    index = require_pipeline(path)
    # a part that a pipeline leaves out is listed as [null, null]
    there = {part for part, library in index.items() if isinstance(library, list) and library[0] is not None}
    text = [name for name in _TEXT if name in there]
    for part in (*text, *(_TOKENIZERS[_TEXT.index(name)] for name in text), "unet", "vae", "scheduler"):
        if not (path / part).is_dir():
            raise FileError(path, f"the pipeline has no folder {part}", remedy="get the whole pipeline")
    return Pipeline(
        path,
        tuple(load_part(path / name, variant) for name in text),
        tuple(path / _TOKENIZERS[_TEXT.index(name)] for name in text),
        load_part(path / "unet", variant),
        load_part(path / "vae", variant),
        read_config(path / "scheduler" / SCHEDULER),
        len(text) > 1 and bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def require_pipeline(path: Path) -> dict[str, Any]:
    """Reads the index of a pipeline of Stable Diffusion. Raises ConfigError if it is of another."""
    index = read_config(path / INDEX)
    if (name := index.get("_class_name")) not in _PIPELINES:
        raise ConfigError(f"{path} holds a {name}; there are {', '.join(_PIPELINES)}")
    return index


def load_part(folder: str | Path, variant: str | None = None) -> Part:
    """Reads the config and the variables of one network; arguments and errors as :func:`load_pipeline`."""
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    with open_part(folder, variant) as weights:
        return Part(config, _variables(weights, architecture_of(config, weights)))


def save_part(part: Part, folder: str | Path, *, force: bool = False) -> None:
    """Writes a network as torch's diffusers or transformers read it, in full or not at all.

    ``force`` replaces a folder that is there. Raises ConfigError if one is and it is off, and WeightsError if the
    variables are not the config's.
    """
    save(part.variables, folder, architecture_of(part.config), force=force)


def _variables(weights: Weights, found: Architecture) -> dict[str, Any]:
    """Reads the variables of an architecture. Raises WeightsError if the file has others, or not-a-numbers."""
    if weights.format == "flax":
        names = paths(weights)
        require_fit(found, {path: weights.specs[name] for path, name in names.items()})
        flat = {path: np.array(weights.read(name)) for path, name in names.items()}
    else:
        flat = dict(plan_conversion(weights, "flax", found, "keep", None).arrays())
    Problems(damaged=[f"{name} holds not-a-numbers" for name, a in flat.items() if manifest.has_nan(a)]).raise_any()
    return unflatten(flat)
