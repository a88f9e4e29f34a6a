"""Masked-image models in folders: ``module, variables = load_folder(path)``, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import linen as nn

from interop.architecture import Architecture, require_fit
from interop.configs import described, read_config
from interop.conversion import load, save
from interop.engine import flatten, plan_to_torch
from interop.files import open_weights, write_weights
from interop.files.write import CONFIG, KINDS
from interop.layout import Spec
from interop.masked import google
from interop.masked.layouts import LAYOUTS, architecture_of, config_of, module_of, shapes
from interop.streaming import torch_arrays, torch_specs
from jaxkit.errors import ConfigError
from jaxkit.nn.quantizer import settled

Layout = Literal["open-muse", "diffusers", "transformers", "google"]
_PIPELINE = "model_index.json"
_TYPES = "params/token_type_embeddings/embedding"


def load_folder(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Reads a module and its variables, nested dicts of NumPy arrays.

    Args:
        path: a folder with a config.json and weights, of open-muse (averaged ones too), diffusers or transformers; a
            Flax checkpoint of Google's; or a file that ``scripts/convert.py to-flax`` wrote of one of these.

    Raises:
        ConfigError: if there is no such path, or its config.json describes nothing that jaxkit has.
        WeightsError: if config.json and weights do not fit, or these hold not-a-numbers.
        FileError: if a file is damaged or unsafe.
    """
    found = architecture_at(Path(path))
    return module_of(found.config), load(path, found)


def architecture_at(path: Path) -> Architecture:
    """Finds what is at a path that :func:`load_folder` reads, from its config and the names; raises as that does."""
    if (path / _PIPELINE).is_file():
        raise ConfigError(f"{path} is a pipeline's folder: name its transformer or vqvae, or read it by load_pipeline")
    if (path / CONFIG).is_file():
        return architecture_of(read_config(path / CONFIG))
    with open_weights(path) as weights:
        if (found := google.architecture(google.opened(weights) or weights)) is not None:
            return found
        config = described(weights)
    if config is None:
        raise ConfigError(f"{path}: neither a {CONFIG} nor names of Google's checkpoints tell what it is of")
    return architecture_of(config)


def save_folder(
    module: nn.Module,
    variables: Mapping[str, Any],
    path: str | Path,
    layout: Layout | None = None,
    *,
    sample_size: int | None = None,
    force: bool = False,
) -> None:
    """Writes a module and its variables, in full or not at all.

    A codebook of moving averages is written as the plain one it stands for.

    Args:
        module: of ``jaxkit.models.masked`` or ``jaxkit.models.tokenizers``.
        variables: all of the module's.
        path: a folder, for its config.json and weights; with Google's layout, which has no config, a .msgpack file.
        layout: whose names and layouts: ``open-muse``, ``diffusers``, ``transformers`` or ``google``; by default the
            first of these that the module has.
        sample_size: the side of the grid that diffusers' pipelines sample, by default aMUSEd's; of UVit2DModel alone.
        force: whether what is there is replaced.

    Raises:
        ConfigError: if something is there and ``force`` is off, or the layout has no place for the module.
        WeightsError: if the variables are not the module's.
    """
    path, layout = Path(path), layout or LAYOUTS.get(type(module).__name__, ("",))[0]
    config = config_of(module, layout, sample_size)
    variables = settled(variables)
    if layout == "google":
        _save_google(module, flatten(variables), path, force)
    elif path.suffix in KINDS:
        raise ConfigError(f"{path}: a model and its {CONFIG} are a folder, whose name has no {path.suffix}")
    else:
        save(variables, path, architecture_of(config), force=force)


def _save_google(module: nn.Module, given: Mapping[str, Any], path: Path, force: bool) -> None:
    if path.suffix != ".msgpack":
        raise ConfigError(f"{path}: Google's layout is a .msgpack file")
    if _TYPES in given and np.any(np.asarray(given[_TYPES]) != 0):
        raise ConfigError(f"{path}: Google's transformer has no {_TYPES}, and these are not 0")
    specs = {name: Spec(tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in given.items()}
    table = google.table(module)
    require_fit(Architecture(type(module).__name__, table, lambda _: shapes(module)), specs)
    plan = plan_to_torch(specs, table)
    arrays = torch_arrays(plan, lambda name: np.asarray(given[name]), planned := torch_specs(plan, given))
    write_weights(
        path,
        {google.path_of(name): spec for name, spec in planned.items()},
        ((google.path_of(name), array) for name, array in arrays),
        format="flax",
        metadata={},
        max_shard_size=None,
        force=force,
    )
