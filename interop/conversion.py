"""Converts weight files between torch and Flax, a tensor at a time."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from interop import configs, manifest
from interop.architecture import Architecture, architecture, require_fit
from interop.diffusion.weights import open_part
from interop.engine import flatten, plan_to_torch, unflatten
from interop.files import Weights, open_weights, write_weights
from interop.files.write import KINDS, write_flax_folder
from interop.job import Job, cast_type, paths, plan_conversion
from interop.layout import Spec
from interop.masked import google
from interop.problems import Problems, WeightsError
from interop.streaming import torch_arrays, torch_specs
from jaxkit.errors import ConfigError

# JAX cuts them to 32 bits, or 64 of a complex number.
_WIDE = ("float64", "int64", "uint64", "complex128")


class Conversion(NamedTuple):
    """What a conversion did, or would do."""

    model: str
    tensors: int
    bytes: int
    notes: list[str]
    blind: dict[str, str]
    """Tensors whose shape cannot tell a wrong layout, and what is in doubt: the table's word until a crosscheck."""

    def lines(self) -> list[str]:
        """What a user should read of it."""
        told = [f"{self.model}: {self.tensors} tensors, {self.bytes:,} bytes", *self.notes]
        if self.blind:
            told.append(f"the shapes of {len(self.blind)} tensors fit other layouts too: crosscheck compares numbers")
        return told


def load(
    source: str | Path,
    model: Any = None,
    *,
    container: str | None = None,
    image_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Reads weights of either framework as Flax variables ``{params: ..., batch_stats: ...}`` of NumPy arrays.

    Args:
        source: any file or folder that :func:`interop.files.open_weights` reads.
        model: what :func:`interop.architecture.architecture` takes; None: guessed from the keys.
        container: which part of a torch checkpoint, such as ``model_ema``.
        image_size: height and width, for models whose weights depend on it.

    Raises:
        WeightsError: if the weights do not fit the model, hold not-a-numbers, or have 64 bits, which JAX would cut to
            32 without a word.
        FileError: if the file is damaged or unsafe.
        ConfigError: if there is no such file or model.
    """
    with open_weights(Path(source), container) as opened:
        weights = _readable(opened, "flax")
        if weights.format == "flax":
            names = paths(weights)
            if model is not None:
                specs = {path: weights.specs[name] for path, name in names.items()}
                require_fit(architecture(model, image_size), specs)
            flat, like = {path: np.array(weights.read(name)) for path, name in names.items()}, None
        else:
            job = plan_conversion(weights, "flax", model, "keep", image_size)
            like = job.found.like({name: weights.specs[key] for name, key in job.names.items()})
            flat = dict(job.arrays())
    wide = [
        f"{name} is {a.dtype}, which JAX narrows to 32 bits; convert with --dtype f32 first"
        for name, a in flat.items()
        if a.dtype.name in _WIDE
    ]
    broken = [f"{name} holds not-a-numbers" for name, a in flat.items() if manifest.has_nan(a)]
    Problems(narrowed=wide, damaged=broken).raise_any()
    return _tree(flat, like)


def save(
    variables: Mapping[str, Any],
    destination: str | Path,
    model: Any,
    format: Literal["torch", "flax"] = "torch",
    *,
    max_shard_size: int | None = None,
    force: bool = False,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Writes Flax variables as a file of either framework; the suffix chooses the kind, no suffix a folder.

    Args:
        variables: ``{params: ..., batch_stats: ...}``, all of the model's.
        destination: a file, or a folder: of torch layouts one as ``save_pretrained`` writes, of Flax's one of Orbax.
        model: what :func:`interop.architecture.architecture` takes.
        format: whose names and layouts the file has.
        max_shard_size: bytes a file of a sharded checkpoint may have.
        force: whether an existing destination is replaced.
        config: what the ``config.json`` of a folder of torch layouts says; without it the one that describes the
            model, where one does.

    Raises:
        WeightsError: if the variables are not of that model.
        ConfigError: if the destination is there already and ``force`` is not given, or there is no such model.
    """
    given = flatten(variables)
    found = architecture(model)
    specs = {path: Spec(tuple(a.shape), np.dtype(a.dtype)) for path, a in given.items()}
    require_fit(found, specs)
    if format == "torch":
        plan = plan_to_torch(specs, found.table)
        specs = torch_specs(plan, given)
        arrays = torch_arrays(plan, lambda path: np.asarray(given[path]), specs)
    else:
        arrays = ((path, np.asarray(a)) for path, a in given.items())
    metadata = manifest.written(found.name) | configs.metadata_of(found.config)
    _write(Path(destination), specs, arrays, found, format, metadata, max_shard_size, force, config)


def convert(
    source: str | Path,
    destination: str | Path,
    to: Literal["flax", "torch"],
    model: Any = None,
    *,
    dtype: Literal["keep", "f32", "bf16", "f16"] = "keep",
    container: str | None = None,
    variant: str | None = None,
    image_size: tuple[int, int] | None = None,
    max_shard_size: int | None = None,
    check: bool = False,
    dry_run: bool = False,
    force: bool = False,
) -> Conversion:
    """Converts a file of either framework to one of the framework ``to``; memory holds a tensor at a time.

    Of the framework that it is of already, names and layouts stay; kind of file, type and shards may be others.

    Args:
        source: any file or folder that :func:`interop.files.open_weights` reads.
        destination: its suffix chooses the kind of file, no suffix a folder.
        to: the framework to convert to.
        model: what :func:`interop.architecture.architecture` takes; None: guessed from the keys.
        dtype: what floating-point tensors are cast to.
        container: which part of a torch checkpoint, such as ``model_ema``.
        variant: of a folder that diffusers or transformers wrote: what stands in its files' names, such as ``fp16``.
        image_size: height and width, for models whose weights depend on it.
        max_shard_size: bytes a file of a sharded checkpoint may have.
        check: whether to read the destination again, convert it back and compare every byte.
        dry_run: whether to stop before anything is written.
        force: whether an existing destination is replaced.

    Raises:
        WeightsError: if the weights do not fit the model, or hold not-a-numbers.
        FileError: if a file is damaged or unsafe.
        ConfigError: if there is no such file or model, or the destination is there already.
    """
    if variant is not None and not Path(source).is_dir():
        raise ConfigError(f"{source} is no folder, which has files of the variant {variant!r}: leave it out")
    with open_part(Path(source), variant) if variant else open_weights(Path(source), container) as opened:
        weights = _readable(opened, to)
        if dry_run:
            return _described(plan_conversion(weights, to, model, dtype, image_size))
        with manifest.digesting(weights) as digests:
            job = plan_conversion(weights, to, model, dtype, image_size)
            done = _described(job)
            metadata = manifest.converted(weights, digests(), job.names, done.model, job.found.table, job.plan.dropped)
            metadata |= configs.metadata_of(job.found.config)
        written = _write(Path(destination), job.specs, job.arrays(), job.found, to, metadata, max_shard_size, force)
        if check:
            # of shards the index comes last
            done.notes.append(_checked(job, written[-1], to, dtype))
        return done


def _readable(weights: Weights, to: str) -> Weights:
    """The weights; those under Google's names, which are Flax's but not ours, under the names of their table."""
    theirs = google.opened(weights)
    if theirs is not None and to == "torch":
        raise ConfigError(f"{weights.path} has Google's names: convert it to-flax, and what comes of that to-torch")
    return theirs or weights


def _write(
    destination: Path,
    specs: Mapping[str, Spec],
    arrays: Iterable[tuple[str, np.ndarray]],
    found: Architecture,
    format: Literal["torch", "flax"],
    metadata: Mapping[str, str],
    max_shard_size: int | None,
    force: bool,
    config: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Writes a file; or a folder, with the config.json of a model that other projects have in this framework."""
    folder, theirs = destination.suffix not in KINDS, format == "flax" and found.flax_stem is not None
    if config is None and folder and (format == "torch" or theirs):
        config = found.config if found.flax_stem is None else configs.of_framework(found.config, format)
    if theirs:
        # as the other project has them
        specs = {path.removeprefix("params/"): spec for path, spec in specs.items()}
        arrays = ((path.removeprefix("params/"), array) for path, array in arrays)
        if folder:
            return write_flax_folder(destination, specs, arrays, force=force, config=config, stem=found.flax_stem)
    return write_weights(
        destination,
        specs,
        arrays,
        format=format,
        metadata=metadata,
        max_shard_size=max_shard_size,
        force=force,
        config=config,
        stem=found.stem,
    )


def _described(job: Job) -> Conversion:
    size = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in job.specs.values())
    notes = list(job.source.notes)
    for reason, keys in _inverted(job.plan.dropped).items():
        notes.append(f"left out {keys[0]}{f' and {len(keys) - 1} like it' if len(keys) > 1 else ''}: {reason}")
    inexact = [move.torch for move in job.plan.moves if any(len(terms) > 1 for terms in move.rule.sums)]
    if inexact:
        notes.append(
            f"summed {' + '.join(inexact[0])} and {len(inexact) - 1} like it: the way back splits it otherwise"
        )
    blind = {path: doubt for move in job.plan.moves if (doubt := move.blindness()) for path in move.flax}
    return Conversion(job.found.name, len(job.specs), size, notes, blind)


def _checked(job: Job, destination: Path, to: str, dtype: str) -> str:
    """Reads what was written, converts it back and compares it with the source; says how many tensors it compared."""
    found = job.found
    if to == "torch":
        # the shapes are known: those of the source
        like = unflatten({path: job.source.specs[key] for path, key in job.names.items()})
        found = found._replace(like=lambda _: like)
    with open_weights(destination) as written:
        model = None if job.source.format == to else found
        returned = plan_conversion(written, job.source.format, model, "keep", None)
        differing, compared = [], 0
        for name, array in returned.arrays():
            if name not in job.names or name in job.plan.dropped:
                continue
            given = job.source.read(job.names[name])
            expected = given.astype(cast_type(given.dtype, dtype), copy=False)
            compared += 1
            if array.shape != expected.shape or array.tobytes() != np.ascontiguousarray(expected).tobytes():
                differing.append(f"{name} does not come back as it was")
    sums = {name for move in job.plan.moves if any(len(t) > 1 for t in move.rule.sums) for name in move.torch}
    differing = [line for line in differing if line.split(" ")[0] not in sums]
    if differing:
        raise WeightsError(Problems(damaged=[*differing, f"{destination} is not to be used: convert again"]))
    return f"checked: {compared} tensors read from {destination} come back bit for bit"


def _inverted(dropped: Mapping[str, str]) -> dict[str, list[str]]:
    reasons = {}
    for key, why in dropped.items():
        reasons.setdefault(why, []).append(key)
    return reasons


def _tree(flat: Mapping[str, Any], like: Mapping[str, Any] | None, prefix: str = "") -> dict[str, Any]:
    """Nested dicts of flat leaves, in the structure of ``like`` where there is one."""
    if like is None:
        return unflatten(flat)
    return {
        name: _tree(flat, node, f"{prefix}{name}/") if isinstance(node, Mapping) else flat[f"{prefix}{name}"]
        for name, node in like.items()
    }
