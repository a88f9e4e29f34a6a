"""Runs of jaxkit's tasks over tokens, as the module and the variables that folders are written of."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from interop.configs import read_config
from interop.masked.adapters import load_adapted, merged
from interop.masked.folders import Layout, save_folder
from interop.masked.layouts import shapes
from interop.masked.pipeline import save_pipeline
from interop.starts import READERS
from jaxkit.config import Config, run_config
from jaxkit.data import Source
from jaxkit.data.captions import open_tokenizer
from jaxkit.data.sources import open_source
from jaxkit.errors import ConfigError
from jaxkit.experiment import best_or_last, load_step, load_weights, precision
from jaxkit.inference import Restored, restored
from jaxkit.models.text import text_encoder
from jaxkit.nn.quantizer import settled
from jaxkit.starts import digest
from jaxkit.tasks import image_tokens
from jaxkit.tasks.masked_network import Captioned, build_module
from jaxkit.tasks.task import Context


def export_run(
    workdir: str | Path,
    path: str | Path,
    layout: Layout | None = None,
    step: int | None = None,
    force: bool = False,
    pipeline: str | Path | None = None,
) -> list[str]:
    """Writes what a run has trained as a folder of another project; returns lines to print.

    Args:
        workdir, step: as :func:`load_run` takes them.
        path, layout, force: as :func:`interop.masked.folders.save_folder` takes them.
        pipeline: None; or an aMUSEd folder: a whole one is written, with the run's network and tokenizer, and the text
            encoder, its tokenizer and the scheduler of this.

    Raises:
        ConfigError, WeightsError, FileError: what those two do; of a pipeline also what
            :func:`interop.masked.pipeline.save_pipeline` does, and for a run that AmusedPipeline samples otherwise.
    """
    if pipeline is not None:
        return _export_pipeline(Path(workdir), Path(path), Path(pipeline), step, force)
    module, variables, grid = load_run(workdir, step)
    diffusers = type(module).__name__ == "MaskGiTUViT" and layout == "diffusers"
    save_folder(module, variables, path, layout, force=force, **({"sample_size": grid[0]} if diffusers else {}))
    return [_said(Path(path), module, variables), *(_not_square(grid) if diffusers else ())]


def _export_pipeline(workdir: Path, path: Path, source: Path, step: int | None, force: bool) -> list[str]:
    config = run_config(workdir)
    _require_amused(workdir, config)
    with precision(config):
        run = restored(workdir, config, step, READERS)
        context = _context(run.source)
        images = jnp.zeros((1, *context.image_shape))
        # what the run has of it may be the half that decodes
        variables = image_tokens.trained(config.task.tokenizer, context, jax.random.PRNGKey(0), images)
    vqvae = image_tokens.build(config.task.tokenizer.model, context, frozen=True)
    _require_texts(source, config, run)
    grid = image_tokens.grid(vqvae, context.image_shape)
    if config.task.adapter is not None:
        transformer = merged(config.task, run.variables)
    else:
        module = build_module(config.task, context, image_tokens.codebook_size(config.task.tokenizer.model), grid)
        transformer = module, {"params": jax.tree.map(np.asarray, run.variables.params)}
    parts = transformer, (vqvae, jax.tree.map(np.asarray, variables))
    save_pipeline(*parts, path, source, sample_size=grid[0], force=force)
    names = zip(("transformer", "vqvae"), parts, strict=True)
    return [*(_said(path / name, *part) for name, part in names), *_not_square(grid)]


def _require_amused(workdir: Path, config: Config) -> None:
    """Raises ConfigError unless AmusedPipeline does with the network what the run did in training."""
    task = config.task
    if task.name != "maskgit" or task.model.name != "uvit":
        what = f"{task.model.name} of the task {task.name}" if hasattr(task, "model") else f"task {task.name}"
        raise ConfigError(f"{workdir}: aMUSEd's pipeline has a uvit of the task maskgit, and this run a {what}")
    for key, value, theirs in (
        ("condition.encoder.penultimate", task.condition.encoder.penultimate, True),
        ("condition.encoder.mask_padding", task.condition.encoder.mask_padding, False),
        ("masking.noise", task.masking.noise, "mask"),
    ):
        if value != theirs:
            raise ConfigError(f"{workdir}: task.{key} is {value}, and aMUSEd's pipeline samples as of {theirs}")


def _require_texts(source: Path, config: Config, run: Restored) -> None:
    """Raises ConfigError if a pipeline reads captions otherwise than the run did, as far as that has read any."""
    captions, encoder = getattr(config.data, "captions", None), config.task.condition.encoder
    frozen = run.variables.frozen
    if captions is not None:
        words = source / "tokenizer"
        length = read_config(words / "tokenizer_config.json").get("model_max_length")
        options = {"tokenizer": str(words), "max_length": length, "pad_token": None}
        theirs = open_tokenizer(captions.model_copy(update=options)).identity
        if theirs != run.source.captions.identity:
            raise ConfigError(f"{words} reads captions as {theirs}; the run has {run.source.captions.identity}")
    if "text_encoder" in frozen:
        theirs = text_encoder(encoder.kind, source / "text_encoder", penultimate=encoder.penultimate)[1]()
        if digest(theirs) != digest(frozen["text_encoder"]):
            raise ConfigError(f"{source / 'text_encoder'} is another than that which told the run, {encoder.folder}")


def _said(path: Path, module: nn.Module, variables: Mapping[str, Any]) -> str:
    return f"{path}: {type(module).__name__}, {sum(leaf.size for leaf in jax.tree.leaves(variables)):,} parameters"


def _not_square(grid: tuple[int, int]) -> list[str]:
    """What diffusers' config has no place for: its ``sample_size`` is one side of a square."""
    if grid[0] == grid[1]:
        return []
    return [f"sample_size is {grid[0]}, but the grid {grid[0]} x {grid[1]} tokens: give pipelines its height and width"]


def load_run(workdir: str | Path, step: int | None = None) -> tuple[nn.Module, dict[str, Any], tuple[int, int]]:
    """Reads the network of a run of the task ``maskgit`` or ``tokenizer``, averaged where it was.

    Args:
        workdir: of the run, whose data is where it was. An adapter is merged into the network it was trained beside.
        step: of the checkpoint; None: the best.

    Returns:
        the module, its variables, nested dicts of NumPy arrays, and the height and width of the grid of tokens.

    Raises:
        ConfigError: if there is no such run or step, it is of another task, or captions' own embeddings were learned,
            which other projects have no place for.
    """
    workdir = Path(workdir)
    config = run_config(workdir)
    if config.task.name not in ("maskgit", "tokenizer"):
        raise ConfigError(f"{workdir} is of the task {config.task.name}, and no maskgit or tokenizer")
    context = _context(open_source(config.data))
    step = best_or_last(workdir, config) if step is None else step
    read = _tokenizer if config.task.name == "tokenizer" else _transformer
    module, variables, grid = read(workdir, config, context, step)
    return module, jax.tree.map(np.asarray, variables), grid


def _context(source: Source) -> Context:
    return Context(
        source.num_classes,
        partial(load_weights, readers=READERS),
        read_weights=READERS.weights,
        image_shape=source.image_shape,
        captions=source.captions,
    )


def _tokenizer(
    workdir: Path, config: Config, context: Context, step: int
) -> tuple[nn.Module, Mapping[str, Any], tuple[int, int]]:
    module = image_tokens.build(config.task.model, context)
    images = jnp.zeros((1, *context.image_shape))
    variables = dict(jax.eval_shape(module.init, jax.random.key(0), images))
    like = {"params": {"tokenizer": variables.pop("params")}, "state": {"tokenizer": variables}}
    found = load_step(workdir / "checkpoints", step, like, partly=True)
    whole = {"params": found["params"]["tokenizer"], **found["state"]["tokenizer"]}
    frozen = image_tokens.build(config.task.model, context, frozen=True)
    return frozen, settled(whole), image_tokens.grid(module, context.image_shape)


def _transformer(
    workdir: Path, config: Config, context: Context, step: int
) -> tuple[nn.Module, Mapping[str, Any], tuple[int, int]]:
    task = config.task
    grid = image_tokens.grid(image_tokens.build(task.tokenizer.model, context, frozen=True), context.image_shape)
    if task.adapter is not None:
        return *load_adapted(workdir, step), grid
    module = build_module(task, context, image_tokens.codebook_size(task.tokenizer.model), grid)
    if isinstance(module, Captioned):
        raise ConfigError(f"{workdir}: has embeddings of captions of its own, which no other project has a place for")
    found = load_step(workdir / "checkpoints", step, {"params": shapes(module)["params"], "state": {}})
    return module, {"params": found["params"]}, grid
