"""What a training run of jaxkit may start from: weights of either framework, or a training run of torch."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from interop.architecture import Architecture, stripped
from interop.conversion import load
from interop.engine import flatten, unflatten
from interop.files import Weights, open_weights
from interop.files.torch_files import open_file, require_torch
from interop.layers import Dropped, Kind
from interop.layout import Spec
from interop.problems import Problems
from interop.rules import Table, compiled, match, written
from interop.tables import table
from jaxkit.config import Config, trained_model
from jaxkit.errors import ConfigError

if TYPE_CHECKING:
    from jaxkit.train import TrainState

_HEAD = re.compile(r"params/(aux\d+/)?head/.*")
_AUXILIARY = re.compile(r"\w+/(aux\d+)/.*")


def read_weights(path: str, model: str, initial: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Puts the weights in a file in place of a network's initial ones, for fine-tuning.

    Where the file has another number of classes the layers ``head``, the network's and its auxiliary ones', keep their
    initial values; so do auxiliary heads that the file has not. Those that the network has not are left out.

    Args:
        path: any file or folder that :func:`interop.files.open_weights` reads, of either framework.
        model: a name of the zoo.
        initial: the network's variables, nested dicts ``{params: ..., batch_stats: ...}``.

    Returns:
        the variables, of the types of ``initial``, and lines that say what was taken and what was not.

    Raises:
        WeightsError: for any other difference; for integers, values of 64 bits, and not-a-numbers.
        FileError: if the file is damaged or unsafe.
        ConfigError: if there is no such file.
    """
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
    whole = [name for name in taken if not jnp.issubdtype(found[name].dtype, jnp.floating)]
    Problems(damaged=[f"{name} is {found[name].dtype}, no floating-point numbers" for name in whole]).raise_any()
    filled = {name: jnp.asarray(found[name], leaf.dtype) if name in taken else leaf for name, leaf in leaves.items()}

    said = [f"{path}: {len(taken)} of {len(leaves)} arrays"]
    if classes != own:
        said.append(f"head starts afresh: {classes} classes there, {own} here")
    said += [f"{name} starts afresh: the file has none" for name in sorted(absent)]
    said += [f"{name} is left out: the network has none" for name in sorted(left_out)]
    return unflatten(filled), ["; ".join(said), *(f"{path}: {line}" for line in told)]


def torch_run(
    path: Path, config: Config, examples: int, rate: Callable[[int], Any], start: "TrainState"
) -> tuple["TrainState", list[str]]:
    """Makes the state, of NumPy arrays, from which a run of jaxkit goes on where a torch run stopped.

    Args:
        path: what the torch run saved (:func:`interop.resume.checkpoint`). Its epochs, if it counts no steps, have as
            many updates as a ``DataLoader`` has batches, the last of which may be small.
        config: of the run in jaxkit.
        examples: to train on.
        rate: the learning rate by step.
        start: the state at step 0.

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
