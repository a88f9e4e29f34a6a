"""What a training run of jaxkit may start from: weights of either framework, or a training run of torch."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from interop.architecture import Architecture, stripped
from interop.configs import class_of, read_config
from interop.conversion import load
from interop.diffusion.folders import Pipeline, load_part, load_pipeline
from interop.diffusion.hub import pipeline_folder
from interop.embeddings.reading import read
from interop.engine import flatten, unflatten
from interop.files import Weights, open_weights
from interop.files.torch_files import open_file, require_torch
from interop.files.write import CONFIG
from interop.layers import Dropped, Kind
from interop.layout import Spec
from interop.problems import Problems
from interop.rules import Table, compiled, match, written
from interop.tables import table
from jaxkit.config import Config, trained_model
from jaxkit.errors import ConfigError
from jaxkit.models.diffusion import config as diffusion
from jaxkit.models.masked import TRANSFORMERS
from jaxkit.models.tokenizers import TOKENIZERS
from jaxkit.nn.quantizer import settled
from jaxkit.tasks.task import Readers

if TYPE_CHECKING:
    from jaxkit.step import TrainState

_HEAD = re.compile(r"params/(aux\d+/)?head/.*")
_AUTOENCODER, _CLASSES = "autoencoder_kl", ("AutoencoderKL", "FlaxAutoencoderKL")
_AUXILIARY = re.compile(r"\w+/(aux\d+)/.*")


def read_weights(path: str, model: str, initial: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Puts the weights in a file in place of a network's initial ones, for fine-tuning.

    Where the file has another number of classes the layers ``head``, the network's and its auxiliary ones', keep their
    initial values; so do auxiliary heads that the file has not. Those that the network has not are left out.

    Of a masked-image model or an autoencoder_kl everything is taken, and the config.json must describe a network of the
    same shapes.

    Args:
        path: any file or folder that :func:`interop.files.open_weights` reads, of either framework; of a masked-image
            model what :func:`interop.masked.folders.load_folder` reads, of an autoencoder_kl its folder.
        model: a name of the zoo, of a tokenizer or transformer of masked-image models, or autoencoder_kl.
        initial: the network's variables, nested dicts ``{params: ..., batch_stats: ...}``.

    Returns:
        the variables, of the types of ``initial``, and lines that say what was taken and what was not.

    Raises:
        WeightsError: for any other difference; for integers, values of 64 bits, and not-a-numbers.
        FileError: if the file is damaged or unsafe.
        ConfigError: if there is no such file, or it is of another kind of model.
    """
    if model in TOKENIZERS or model in TRANSFORMERS:
        return _masked(path, model, initial)
    if model == _AUTOENCODER:
        return _autoencoder(path, initial)
    leaves, rows = flatten(initial), table(model)
    with open_weights(Path(path)) as weights:
        held, told = _held(weights, rows)
        layout = weights.format
    bias = held.get("params/head/bias")
    own = leaves["params/head/bias"].shape[0]
    classes = bias.shape[0] if bias is not None and len(bias.shape) == 1 else own

    auxiliary, theirs = _auxiliary(leaves), _auxiliary(held)
    absent, left_out = auxiliary - theirs, theirs if not auxiliary else set()
    wanted = {name: _sized(name, leaf, classes) for name, leaf in leaves.items() if _module(name) not in absent}
    taken = [name for name in wanted if classes == own or not _HEAD.fullmatch(name)]
    expected = dict(wanted)
    if layout == "flax":
        expected |= {name: spec for name, spec in held.items() if _module(name) in left_out}
    elif left_out:
        rows = tuple((torch, flax, _dropped(kind) if flax.startswith("aux") else kind) for torch, flax, kind in rows)

    found = flatten(load(path, Architecture(model, rows, lambda _: unflatten(expected))))
    _require_floating({name: found[name] for name in taken})
    filled = {name: jnp.asarray(found[name], leaf.dtype) if name in taken else leaf for name, leaf in leaves.items()}

    said = [f"{path}: {len(taken)} of {len(leaves)} arrays"]
    if classes != own:
        said.append(f"head starts afresh: {classes} classes there, {own} here")
    said += [f"{name} starts afresh: the file has none" for name in sorted(absent)]
    said += [f"{name} is left out: the network has none" for name in sorted(left_out)]
    return unflatten(filled), ["; ".join(said), *(f"{path}: {line}" for line in told)]


def read_pipeline(name: str, variant: str | None = None, revision: str | None = None) -> Pipeline:
    """Reads the networks of a Stable Diffusion pipeline, of a folder or a name of the model hub.

    Raises what :func:`interop.diffusion.folders.load_pipeline` and :func:`interop.diffusion.hub.pipeline_folder` do.
    """
    return load_pipeline(pipeline_folder(name, variant, revision), variant)


def read_embedding(path: str, token: str) -> tuple[np.ndarray, ...]:
    """Reads the vectors of a learned word, ``[n d]`` of each text encoder; of a file of several, of the one so named.

    Raises what :func:`interop.embeddings.reading.read` does.
    """
    (found,) = read(path, token)
    return found.rows


READERS = Readers(read_weights, read_pipeline, read_embedding)


def torch_run(
    path: Path, config: Config, examples: int, rate: Callable[[int], Any], start: "TrainState", frozen: str
) -> tuple["TrainState", list[str]]:
    """Makes the state, of NumPy arrays, from which a run of jaxkit goes on where a torch run stopped.

    Args:
        path: what the torch run saved (:func:`interop.resume.checkpoint`). Its epochs, if it counts no steps, have as
            many updates as a ``DataLoader`` has batches, the last of which may be small.
        config: of the run in jaxkit.
        examples: to train on.
        rate: the learning rate by step.
        start: the state at step 0.
        frozen: not looked at.

    Returns:
        the state, and lines: where it stands, and each setting of torch's optimizer that ``config`` has not.

    Raises:
        WeightsError, OptimizerStateError: if network or optimizer are others.
        FileError: if the file is damaged or unsafe.
        ConfigError: if there is no such file, or the task trains no network of the zoo alone.
    """
    from interop.resume import checkpoint, resume_in_jaxkit

    model = trained_model(config.task)
    if model is None:
        raise ConfigError(f"--from-torch {path}: the task {config.task.name!r} trains no network that torch has too")
    if not path.is_file():
        raise ConfigError(f"--from-torch {path}: there is no such file")
    open_file(path, None).close()  # says what is wrong with it, if anything is
    saved = require_torch().load(path, map_location="cpu", weights_only=True)
    source, rows = checkpoint(saved, math.ceil(examples / config.data.batch_size)), table(model.name)
    names, told = stripped(list(source.model), rows)
    source = source._replace(model={name: source.model[key] for name, key in names.items()})
    state, differences = resume_in_jaxkit(source, start, rows, config.optimizer, rate)
    return state, [f"{path}: goes on from step {state.step}", *(f"{path}: {line}" for line in [*told, *differences])]


def _masked(path: str, model: str, initial: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Puts a masked-image model's weights in place of the initial ones; a codebook of averages starts at theirs."""
    from interop.masked.folders import architecture_at
    from interop.masked.layouts import module_of, name_of, shapes

    found = architecture_at(Path(path))
    module = module_of(found.config)
    if name_of(module) != model:
        raise ConfigError(f"{path} holds a {found.name}, which is {name_of(module)} here, and no {model}")
    _require_same({name: tuple(leaf.shape) for name, leaf in flatten(settled(initial)).items()}, shapes(module))
    arrays, leaves = flatten(load(path, found)), flatten(initial)
    _require_floating(arrays)
    filled = {name: jnp.asarray(arrays[_origin(name)], leaf.dtype) for name, leaf in leaves.items() if _origin(name)}
    for name in filled:
        if name.startswith("codebook/") and name.endswith("/sums"):
            filled[name] = filled[name] * leaves[f"{name.removesuffix('sums')}sizes"][:, None]
    return unflatten(leaves | filled), [f"{path}: {found.name}, {len(arrays)} arrays"]


def _autoencoder(path: str, initial: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Puts an autoencoder's weights in place of the initial ones; says what their config has that no shape shows."""
    config = read_config(Path(path) / CONFIG)
    if class_of(config) not in _CLASSES:
        raise ConfigError(f"{path} holds a {class_of(config)}, and no {_CLASSES[0]}")
    leaves = flatten(initial)
    module = diffusion.from_config(config)
    _require_same({name: tuple(leaf.shape) for name, leaf in leaves.items()}, diffusion.shapes(module))
    arrays = flatten(load_part(path).variables)
    _require_floating(arrays)
    filled = {name: jnp.asarray(arrays[name], leaf.dtype) for name, leaf in leaves.items()}
    told = f"norm_num_groups is {module.norm_num_groups} there, scaling_factor {module.scaling_factor}"
    return unflatten(filled), [f"{path}: {_CLASSES[0]}, {len(arrays)} arrays; {told}"]


def _origin(name: str) -> str | None:
    """The leaf of a frozen tokenizer that one of a trained one starts from: a moving codebook is a parameter there."""
    if not name.startswith("codebook/"):
        return name
    module, _, leaf = name.removeprefix("codebook/").rpartition("/")
    return None if leaf == "sizes" else f"params/{module}/embedding"


def _require_same(own: Mapping[str, tuple[int, ...]], theirs: Mapping[str, Any]) -> None:
    """Raises WeightsError unless a network's leaves are of the shapes that a config.json describes."""
    given = {name: tuple(leaf.shape) for name, leaf in flatten(theirs).items()}
    Problems(
        missing=[name for name in own if name not in given],
        unexpected=[name for name in given if name not in own],
        misshapen=[
            f"{name} {list(shape)} in config.json for {list(own[name])}"
            for name, shape in given.items()
            if own.get(name, shape) != shape
        ],
    ).raise_any()


def _require_floating(arrays: Mapping[str, Any]) -> None:
    whole = [f"{name} is {a.dtype}, no floating-point numbers" for name, a in arrays.items() if not _is_floating(a)]
    Problems(damaged=whole).raise_any()


def _is_floating(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _held(weights: Weights, rows: Table) -> tuple[dict[str, Spec], list[str]]:
    """The Flax paths that a file has leaves for, with the shapes as they are there; and what is odd about the file."""
    if weights.format == "flax":
        patterns = [pattern for rule in compiled(rows) for pattern in rule.flax]
        known = {name: spec for name, spec in weights.specs.items() if any(match(p, name) for p in patterns)}
        return known, weights.notes
    names, notes = stripped(list(weights.specs), rows)
    held = {
        written(rule.flax[0], found.groupdict()): weights.specs[key]
        for rule in compiled(rows)
        for name, key in names.items()
        if (found := match(rule.torch[0], name))
    }
    return held, [*weights.notes, *notes]


def _module(name: str) -> str | None:
    """The auxiliary head that a leaf is of."""
    found = _AUXILIARY.fullmatch(name)
    return found and found[1]


def _auxiliary(names: Iterable[str]) -> set[str]:
    return {module for name in names if (module := _module(name))}


def _sized(name: str, leaf: Any, classes: int) -> Spec:
    """What a leaf is like in a network of so many classes; they are the last axis of every head's arrays."""
    shape = (*leaf.shape[:-1], classes) if _HEAD.fullmatch(name) else tuple(leaf.shape)
    return Spec(shape, np.dtype(leaf.dtype))


def _dropped(kind: Kind) -> Kind:
    return dict.fromkeys(kind, Dropped("the network has no auxiliary heads"))
