"""Whole pipelines of Stable Diffusion, from torch's classes to Flax's and back."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from interop.configs import class_name, of_framework, read_config, write_config
from interop.conversion import Conversion, convert
from interop.diffusion.folders import INDEX, SCHEDULER, require_pipeline
from interop.files.atomic import publish, require_free, staged
from jaxkit.errors import ConfigError

_NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")
_COPIED = ("tokenizer", "tokenizer_2", "feature_extractor")
# what diffusers' schedulers have in Flax, without the "Flax" before their names; the first stands in for others
_SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "KarrasVeScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler",
)  # fmt: skip


def convert_any(
    source: str | Path, destination: str | Path, to: Literal["flax", "torch"], **options: Any
) -> Conversion:
    """Converts a pipeline's folder as :func:`convert_pipeline`, and all else as :func:`interop.conversion.convert`.

    Raises:
        ConfigError: for an option that a pipeline has no use for, and what these two raise.
    """
    if not _is_pipeline(Path(source)):
        return convert(source, destination, to, **options)
    for name in ("model", "container", "image_size"):
        if name in options:
            raise ConfigError(f"--{name.replace('_', '-')}: {source} is a whole pipeline, which says it; leave it out")
    return convert_pipeline(source, destination, to, **options)


def convert_pipeline(
    source: str | Path,
    destination: str | Path,
    to: Literal["flax", "torch"],
    *,
    dtype: Literal["keep", "f32", "bf16", "f16"] = "keep",
    variant: str | None = None,
    max_shard_size: int | None = None,
    check: bool = False,
    dry_run: bool = False,
    force: bool = False,
) -> Conversion:
    """Converts a folder of Stable Diffusion 1, 2 or XL to the classes of a framework, whole or not at all.

    Networks are converted, tokenizers copied, and the scheduler's class named anew. A safety checker, whose network
    jaxkit has not, is left out.

    Args:
        source: a folder with a model_index.json.
        destination: a folder.
        to: the framework, whose diffusers opens what is written.
        dtype, max_shard_size, check, dry_run: as :func:`interop.conversion.convert` takes them.
        variant: what stands in the names of the weight files, such as ``fp16``; the files written are of none.
        force: whether a pipeline that is there is replaced.

    Returns:
        what was done, of all networks together.

    Raises:
        ConfigError: for another pipeline, a network that jaxkit has not, or if something is at ``destination``.
        WeightsError, FileError: as :func:`interop.conversion.convert`.
    """
    source, destination = Path(source), Path(destination)
    index = require_pipeline(source)
    options = {"dtype": dtype, "variant": variant, "max_shard_size": max_shard_size, "check": check}
    if dry_run:
        parts = {
            name: convert(source / name, destination / name, to, **options, dry_run=True) for name in _networks(index)
        }
        return _together(index, to, parts, [])
    require_free([destination], force)
    if destination.exists() and not _is_pipeline(destination):
        raise ConfigError(f"{destination} is no pipeline, and is not replaced by one; remove it, or choose another")
    if destination.exists() and destination.samefile(source):
        raise ConfigError(f"{destination} is the pipeline that is to be converted; choose another folder")
    with staged(destination.parent, destination, 0) as hidden:
        whole = hidden / destination.name
        whole.mkdir()
        parts = {name: convert(source / name, whole / name, to, **options) for name in _networks(index)}
        index, notes = _rest(source, whole, index, to)
        write_config(whole / INDEX, index)
        publish(hidden, {whole: destination})
    # where it was read is not where it is
    for part in parts.values():
        part.notes[:] = [note.replace(str(whole), str(destination)) for note in part.notes]
    return _together(index, to, parts, notes)


def _is_pipeline(path: Path) -> bool:
    return (path / INDEX).is_file()


def _networks(index: Mapping[str, Any]) -> list[str]:
    return [name for name in _NETWORKS if _there(index.get(name))]


def _there(entry: Any) -> bool:
    """Whether an entry of an index is a part that the pipeline has: one that it leaves out is [null, null]."""
    return isinstance(entry, list) and len(entry) == 2 and entry[-1] is not None


def _rest(source: Path, whole: Path, index: Mapping[str, Any], to: str) -> tuple[dict[str, Any], list[str]]:
    """Writes what is no network; the index of the new pipeline, and what there is to say."""
    found, notes = of_framework(index, to), []
    for name, entry in index.items():
        if name in _networks(index):
            found[name] = [entry[0], class_name(entry[1], to)]
        elif name == "scheduler":
            found[name], note = _scheduler(source / name, whole / name, to)
            notes += note
        elif name in _COPIED and _there(entry):
            shutil.copytree(source / name, whole / name)
        elif isinstance(entry, list) and len(entry) == 2:
            if _there(entry):
                notes.append(f"left out {name}, a {entry[1]}: give the pipeline one of your own, or none")
            # Flax's pipelines open without a part only if its class alone is null
            found[name] = ["diffusers", None] if to == "flax" else [None, None]
    if "requires_safety_checker" in found:
        found["requires_safety_checker"] = False
    return found, notes


def _scheduler(source: Path, folder: Path, to: str) -> tuple[list[str], list[str]]:
    """Writes a scheduler's config; its entry in the index, and what there is to say."""
    config, notes = read_config(source / SCHEDULER), []
    name = str(config.get("_class_name")).removeprefix("Flax")
    if to == "flax" and name not in _SCHEDULERS:
        notes.append(f"{name} is none of Flax's schedulers; {_SCHEDULERS[0]} stands in, with the same noise")
        name = _SCHEDULERS[0]
    name = class_name(name, to)
    folder.mkdir()
    write_config(folder / SCHEDULER, {**config, "_class_name": name})
    return ["diffusers", name], notes


def _together(index: Mapping[str, Any], to: str, parts: Mapping[str, Conversion], notes: list[str]) -> Conversion:
    return Conversion(
        class_name(index["_class_name"], to),
        sum(part.tensors for part in parts.values()),
        sum(part.bytes for part in parts.values()),
        [*(f"{name}: {note}" for name, part in parts.items() for note in part.notes), *notes],
        {f"{name}/{path}": doubt for name, part in parts.items() for path, doubt in part.blind.items()},
    )
