"""A conversion planned: what is written, in which order, and what it is made of."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from interop import configs, manifest
from interop.architecture import Architecture, architecture, described_by, guess, require_fit, stripped
from interop.engine import Plan, check_tied, flatten, plan_to_flax, plan_to_torch, unflatten
from interop.files import Weights
from interop.files.dtypes import is_floating
from interop.files.folders import MODEL
from interop.layout import Spec
from interop.masked import google
from interop.streaming import cast_array, moved, torch_arrays, torch_specs
from jaxkit.errors import ConfigError
from jaxkit.models import MODELS

DTYPES = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16), "f16": np.dtype(np.float16)}


class Job(NamedTuple):
    """A plan over an open file: what is written, in order, and from what; ``names`` maps the table's to the file's."""

    source: Weights
    names: dict[str, str]
    found: Architecture
    plan: Plan
    specs: dict[str, Spec]
    arrays: Callable[[], Iterator[tuple[str, np.ndarray]]]


def plan_conversion(weights: Weights, to: str, model: Any, dtype: str, image_size: tuple[int, int] | None) -> Job:
    """Plans the conversion of an open file to a framework; of the same one, to write the same tensors anew.

    Arguments and errors are those of :func:`interop.conversion.convert`.
    """
    if weights.format == to:
        return _copy(weights, model, dtype, image_size)
    model = model or _described(weights)
    return (_to_torch if to == "torch" else _to_flax)(weights, model, dtype, image_size)


def _copy(weights: Weights, model: Any, dtype: str, image_size: tuple[int, int] | None) -> Job:
    """Plans to write the same tensors anew."""
    weights.notes.append(f"names and layouts are {weights.format}'s already and stay as they are")
    if model is not None:
        found = architecture(model, image_size)
        _require_fit(weights, found)
    elif (config := configs.described(weights)) is not None:
        stems = configs.stem_of(config), configs.flax_stem_of(config)
        found = Architecture(configs.class_of(config), (), unflatten, config, *stems)
    else:
        found = Architecture(_recorded(weights) or "weights", (), unflatten)
    found, plan = found._replace(table=(), like=unflatten), Plan([], {}, {}, {}, {})
    theirs = weights.format == "flax" and found.flax_stem is not None
    names = paths(weights) if theirs else {name: name for name in weights.specs}
    cast = {
        name: Spec(weights.specs[key].shape, cast_type(weights.specs[key].dtype, dtype)) for name, key in names.items()
    }

    def arrays():
        for name, spec in cast.items():
            yield name, cast_array(name, weights.read(names[name]), spec.dtype)

    return Job(weights, names, found, plan, cast, arrays)


def _to_torch(weights: Weights, model: Any, dtype: str, image_size: tuple[int, int] | None) -> Job:
    origin = manifest.read(weights)
    names = paths(weights)
    specs = {path: weights.specs[name] for path, name in names.items()}
    found = architecture(model or _known(weights, specs, "flax", image_size), image_size)
    require_fit(found, specs)
    plan = plan_to_torch(specs, found.table)
    kept = origin.get("dropped", {}).items()
    restored = {key: np.array(value, dtype) for key, (dtype, value) in kept if key in plan.refills}
    planned = torch_specs(plan, specs, restored)
    cast = {name: Spec(spec.shape, cast_type(spec.dtype, dtype)) for name, spec in planned.items()}

    def arrays():
        return torch_arrays(plan, lambda path: weights.read(names[path]), cast, restored)

    return Job(weights, names, found, plan, cast, arrays)


def _to_flax(weights: Weights, model: Any, dtype: str, image_size: tuple[int, int] | None) -> Job:
    names, notes = stripped(list(weights.specs), architecture(model).table if model else None)
    weights.notes += [note for note in notes if note not in weights.notes]
    given = {name: weights.specs[key] for name, key in names.items()}
    found = architecture(model or _known(weights, given, "torch", image_size), image_size)
    like = found.like(given)
    plan = plan_to_flax(given, found.table, like)
    leaves = flatten(like)
    planned = {path: Spec(move.flax_shape, given[move.torch[0]].dtype) for move in plan.moves for path in move.flax}
    planned |= {path: Spec(tuple(leaves[path].shape), np.dtype(leaves[path].dtype)) for path in plan.filled}
    cast = {name: Spec(spec.shape, cast_type(spec.dtype, dtype)) for name, spec in planned.items()}

    def arrays():
        for alias, key in plan.tied.items():
            check_tied(alias, key, weights.read(names[alias]), weights.read(names[key]))
        yield from moved(plan.moves, True, lambda key: weights.read(names[key]), cast)
        for path, fill in plan.filled.items():
            yield path, np.full(cast[path].shape, fill.fill, cast[path].dtype)

    return Job(weights, names, found, plan, cast, arrays)


def paths(weights: Weights) -> dict[str, str]:
    """Maps Flax paths to a file's names; transformers and diffusers save what is under ``params`` alone."""
    if any(name.startswith("params/") for name in weights.specs):
        return {name: name for name in weights.specs}
    note = "read the names as those under 'params'"
    weights.notes += [note] if note not in weights.notes else []
    return {f"params/{name}": name for name in weights.specs}


def _described(weights: Weights) -> Architecture | None:
    """What the names of Google's checkpoints or a config.json say that weights are of."""
    if (found := google.architecture(weights)) is not None:
        return found
    if (config := configs.described(weights)) is None:
        return None
    return described_by(config, weights)


def _require_fit(weights: Weights, found: Architecture) -> None:
    """Raises WeightsError unless a file's tensors are all of the architecture's."""
    if weights.format == "flax":
        require_fit(found, {path: weights.specs[name] for path, name in paths(weights).items()})
        return
    names, _ = stripped(list(weights.specs), found.table)
    given = {name: weights.specs[key] for name, key in names.items()}
    plan_to_flax(given, found.table, found.like(given))


def _known(weights: Weights, specs: Mapping[str, Spec], layout: str, image_size: tuple[int, int] | None) -> str:
    """The model that the file says it is of; else the one that its keys fit."""
    if (name := _recorded(weights)) is None:
        name = guess(specs, layout, image_size)
        weights.notes.append(f"guessed the model from names and shapes: {name}")
    elif name not in MODELS:
        raise ConfigError(f"{weights.path} is of {name}, a model of your own: name it with --model FILE.py:NAME")
    return name


def _recorded(weights: Weights) -> str | None:
    return manifest.read(weights).get("model") or weights.metadata.get(MODEL)


def cast_type(dtype: np.dtype, to: str) -> np.dtype:
    """The type that a tensor of ``dtype`` is written as: only floating-point ones are cast; ``keep`` casts none."""
    return DTYPES[to] if is_floating(dtype) and to != "keep" else dtype
