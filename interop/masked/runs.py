"""Runs of jaxkit's tasks over tokens, as the module and the variables that folders are written of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from interop.masked.adapters import load_adapted
from interop.masked.folders import Layout, save_folder
from interop.masked.layouts import shapes
from jaxkit.config import Config, load
from jaxkit.data.sources import open_source
from jaxkit.errors import ConfigError
from jaxkit.experiment import best_or_last, load_step, load_weights
from jaxkit.nn.quantizer import settled
from jaxkit.tasks import image_tokens
from jaxkit.tasks.masked_network import Captioned, build_module
from jaxkit.tasks.task import Context


def export_run(
    workdir: str | Path, path: str | Path, layout: Layout | None = None, step: int | None = None, force: bool = False
) -> list[str]:
    """Writes what a run has trained as a folder of another project; returns lines to print.

    Takes and raises what :func:`load_run` and :func:`interop.masked.folders.save_folder` do.
    """
    module, variables, side = load_run(workdir, step)
    uvit = type(module).__name__ == "MaskGiTUViT"
    size = {"sample_size": side} if uvit and layout == "diffusers" else {}
    save_folder(module, variables, path, layout, force=force, **size)
    return [f"{path}: {type(module).__name__}, {sum(leaf.size for leaf in jax.tree.leaves(variables)):,} parameters"]


def load_run(workdir: str | Path, step: int | None = None) -> tuple[nn.Module, dict[str, Any], int]:
    """Reads the network of a run of the task ``maskgit`` or ``tokenizer``, averaged where it was.

    Args:
        workdir: of the run, whose data is where it was. An adapter is merged into the network it was trained beside.
        step: of the checkpoint; None: the best.

    Returns:
        the module, its variables, nested dicts of NumPy arrays, and the height of the grid of tokens.

    Raises:
        ConfigError: if there is no such run or step, it is of another task, or captions' own embeddings were learned,
            which other projects have no place for.
    """
    workdir = Path(workdir)
    if not (workdir / "config.yaml").is_file():
        raise ConfigError(f"{workdir}: no run is there ({workdir / 'config.yaml'} does not exist)")
    config = load(workdir / "config.yaml")
    if config.task.name not in ("maskgit", "tokenizer"):
        raise ConfigError(f"{workdir} is of the task {config.task.name}, and no maskgit or tokenizer")
    source = open_source(config.data)
    context = Context(source.num_classes, load_weights, image_shape=source.image_shape, captions=source.captions)
    step = best_or_last(workdir, config) if step is None else step
    read = _tokenizer if config.task.name == "tokenizer" else _transformer
    module, variables, side = read(workdir, config, context, step)
    return module, jax.tree.map(np.asarray, variables), side


def _tokenizer(workdir: Path, config: Config, context: Context, step: int) -> tuple[nn.Module, Mapping[str, Any], int]:
    module = image_tokens.build(config.task.model, context)
    images = jnp.zeros((1, *context.image_shape))
    variables = dict(jax.eval_shape(module.init, jax.random.key(0), images))
    like = {"params": {"tokenizer": variables.pop("params")}, "state": {"tokenizer": variables}}
    found = load_step(workdir / "checkpoints", step, like, partly=True)
    whole = {"params": found["params"]["tokenizer"], **found["state"]["tokenizer"]}
    frozen = image_tokens.build(config.task.model, context, frozen=True)
    return frozen, settled(whole), image_tokens.grid(module, context.image_shape)[0]


def _transformer(
    workdir: Path, config: Config, context: Context, step: int
) -> tuple[nn.Module, Mapping[str, Any], int]:
    task = config.task
    grid = image_tokens.grid(image_tokens.build(task.tokenizer.model, context, frozen=True), context.image_shape)
    if task.adapter is not None:
        return *load_adapted(workdir, step), grid[0]
    module = build_module(task, context, image_tokens.codebook_size(task.tokenizer.model), grid)
    if isinstance(module, Captioned):
        raise ConfigError(f"{workdir}: has embeddings of captions of its own, which no other project has a place for")
    found = load_step(workdir / "checkpoints", step, {"params": shapes(module)["params"], "state": {}})
    return module, {"params": found["params"]}, grid[0]
