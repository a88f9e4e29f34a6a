"""Writing weights: one array after the other, checked against what was announced, into files that appear whole."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from interop.files import msgpack, npz, orbax, safetensors, shards, torch_files
from interop.files.atomic import publish, require_free, staged
from interop.files.dtypes import nbytes
from interop.files.errors import listed
from interop.files.folders import NAMES
from interop.files.weights import Format
from interop.layout import Spec
from jaxkit.errors import ConfigError

KINDS = {
    ".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".bin": "torch", ".msgpack": "msgpack",
    ".npz": "npz",
}  # fmt: skip
# which layouts each kind of file can say it has, and the types of tensors it can hold
_FORMATS: dict[str, tuple[Format, ...]] = {
    "safetensors": ("torch", "flax"), "save_pretrained": ("torch",), "torch": ("torch",), "msgpack": ("flax",),
    "npz": ("flax",), "orbax": ("flax",),
}  # fmt: skip
_TYPES = {
    "safetensors": safetensors.WRITABLE, "save_pretrained": safetensors.WRITABLE, "torch": torch_files.WRITABLE,
    "msgpack": msgpack.WRITABLE, "npz": npz.WRITABLE, "orbax": orbax.WRITABLE,
}  # fmt: skip
STEM = "model"
CONFIG = "config.json"


def write_weights(
    destination: str | Path,
    specs: Mapping[str, Spec],
    arrays: Iterable[tuple[str, np.ndarray]],
    *,
    format: Format,
    metadata: Mapping[str, str],
    max_shard_size: int | None,
    force: bool,
    kind: str | None = None,
    config: Mapping[str, Any] | None = None,
    stem: str = STEM,
) -> list[Path]:
    """Writes weights, holding one array at a time; the files are there in full or not at all.

    Args:
        destination: a file, or a folder if it has no suffix.
        specs: shape and type of each tensor, by torch key or ``/``-joined Flax path.
        arrays: the tensors, in the order of ``specs``.
        format: whose names and layouts these are.
        metadata: said in the file; msgpack has no place for it.
        max_shard_size: bytes of tensors in a file; beyond it, .safetensors and folders of them get several files and an
            index. Other kinds are one file.
        force: whether what is there is replaced.
        kind: ``safetensors``, ``torch``, ``msgpack``, ``npz``, ``orbax`` or ``save_pretrained``; told from the suffix
            if None, and a folder is ``orbax`` for Flax, ``save_pretrained`` for torch.
        config: what a ``save_pretrained`` folder's config.json says; without it none is written.
        stem: what the weights in such a folder are called.

    Returns:
        the files and folders written, the index of shards last.

    Raises:
        ConfigError: if something is there and ``force`` is off, or the kind cannot hold this.
        UserError: if the disk is full, or refuses.
    """
    destination = Path(destination)
    kind = kind or _kind(destination, format)
    if config is not None and kind != "save_pretrained":
        raise ConfigError(f"{destination}: only a folder of torch layouts has a {CONFIG}")
    _require_writable(destination, kind, specs, format)
    checked = _checked(specs, arrays)
    if kind == "orbax":
        return _write_orbax(destination, specs, checked, metadata, force)
    planned = shards.planned(specs, max_shard_size)
    if kind == "save_pretrained":
        return _write_pretrained(destination, stem, planned, checked, metadata, force, config)
    if kind == "safetensors":
        stem = destination.name.removesuffix(".safetensors")
        return _write_safetensors(destination.parent, stem, planned, checked, metadata, format, force, None)
    return _write_file(destination, kind, specs, checked, metadata, force)


def write_flax_folder(
    folder: Path,
    specs: Mapping[str, Spec],
    arrays: Iterable[tuple[str, np.ndarray]],
    *,
    force: bool,
    config: Mapping[str, Any],
    stem: str,
) -> list[Path]:
    """Writes a folder as ``save_pretrained`` of Flax classes does; arguments, result and errors as `write_weights`."""
    require_free([folder], force)
    name = f"{stem}.msgpack"
    if others := sorted({path.name for path in folder.iterdir()} - {CONFIG, name}) if folder.is_dir() else []:
        raise ConfigError(
            f"{folder} holds {listed(others)}, which would be lost: remove them, or choose another folder"
        )
    with staged(folder.parent, folder, _total(specs)) as hidden:
        whole = hidden / folder.name
        whole.mkdir()
        _write_config(whole, config)
        write_weights(
            whole / name, specs, arrays, format="flax", metadata={}, max_shard_size=None, force=False, kind="msgpack"
        )
        publish(hidden, {whole: folder})
    return [folder / CONFIG, folder / name]


def _kind(destination: Path, format: Format) -> str:
    if destination.suffix in KINDS:
        return KINDS[destination.suffix]
    if destination.suffix and not destination.is_dir():
        known = ", ".join(KINDS)
        raise ConfigError(f"{destination}: files of this suffix are not written; choose {known}, or a folder")
    return "orbax" if format == "flax" else "save_pretrained"


def _require_writable(destination: Path, kind: str, specs: Mapping[str, Spec], format: Format) -> None:
    if kind not in _FORMATS:
        raise ConfigError(f"{destination}: there is no kind of file {kind!r}; choose one of {', '.join(_FORMATS)}")
    if format not in _FORMATS[kind]:
        fitting = ", ".join(name for name, formats in _FORMATS.items() if format in formats)
        raise ConfigError(f"{destination}: a file of kind {kind} has no {format} layouts; choose one of {fitting}")
    for name, spec in specs.items():
        if str(spec.dtype) not in _TYPES[kind]:
            raise ConfigError(f"{destination}: {name} is {spec.dtype}, which a file of kind {kind} cannot hold")
        if format == "flax" and not all(name.split("/")):
            raise ConfigError(f"{destination}: {name!r} is no path of a Flax variable")
        if kind in ("safetensors", "orbax") and format == "flax" and "." in name:
            raise ConfigError(
                f"{destination}: {name} has a dot, which parts names in this file; choose .msgpack or .npz"
            )
    if format == "flax":
        parents = {parent for name in specs for parent in _parents(name)}
        if both := [name for name in specs if name in parents]:
            raise ConfigError(f"{destination}: {listed(both)} is an array and holds others")


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _checked(specs: Mapping[str, Spec], arrays: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """Passes each array on as files have it, contiguous and little-endian, if it is the one announced.

    An array is let go before the next is asked for, here and in every writer: ``zip`` and ``enumerate`` would keep it.
    """
    arrays = iter(arrays)
    for expected, spec in specs.items():
        name, array = next(arrays, ("nothing", np.empty(0)))
        little = array.dtype.newbyteorder("<")
        if (expected, spec) != (name, Spec(array.shape, little)):
            raise ValueError(f"{expected} {spec} was announced, and {name} {array.dtype} {array.shape} came")
        yield name, np.asarray(array, little, order="C")
        del array
    for name, _ in arrays:
        raise ValueError(f"{name} was not announced, and came")


def _total(specs: Mapping[str, Spec]) -> int:
    return sum(map(nbytes, specs.values()))


def _write_file(
    destination: Path,
    kind: str,
    specs: Mapping[str, Spec],
    arrays: Iterator[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
    force: bool,
) -> list[Path]:
    require_free([destination], force)
    if destination.is_dir():
        raise ConfigError(f"{destination} is a folder; name a file")
    with staged(destination.parent, destination, _total(specs)) as folder:
        part = folder / destination.name
        if kind == "msgpack":
            msgpack.write_file(part, specs, arrays)
        else:
            writer = torch_files if kind == "torch" else npz
            writer.write_file(part, specs, arrays, metadata)
        publish(folder, {part: destination})
    return [destination]


def _write_orbax(
    destination: Path,
    specs: Mapping[str, Spec],
    arrays: Iterator[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
    force: bool,
) -> list[Path]:
    empty = destination.is_dir() and not any(destination.iterdir())
    require_free([destination], force or empty)
    if destination.exists() and not (empty or orbax.is_checkpoint(destination)):
        raise ConfigError(
            f"{destination} is no Orbax checkpoint, and is not replaced by one; remove it, or choose another"
        )
    with staged(destination.parent, destination, _total(specs)) as folder:
        orbax.write_folder(folder / destination.name, specs, arrays, metadata)
        publish(folder, {folder / destination.name: destination})
    return [destination]


def _write_safetensors(
    folder: Path,
    stem: str,
    planned: list[dict[str, Spec]],
    arrays: Iterator[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
    format: Format,
    force: bool,
    config: Mapping[str, Any] | None,
) -> list[Path]:
    """Writes one file or several into a folder, with a config where there is one."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder")
    old = shards.family(folder, stem)
    if config is not None:
        _require_alone(folder, old)
    require_free([*old, *([folder / CONFIG] if config is not None else [folder / f"{stem}.safetensors"])], force)
    with staged(folder, folder / stem, sum(map(_total, planned))) as hidden:
        written = shards.write(hidden, stem, planned, arrays, metadata, format)
        if config is not None:
            written.insert(0, _write_config(hidden, config))
        final = [folder / path.name for path in written]
        publish(hidden, dict(zip(written, final, strict=True)), [path for path in old if path not in final])
    return final


def _write_config(folder: Path, config: Mapping[str, Any]) -> Path:
    with (folder / CONFIG).open("xb") as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())
    return folder / CONFIG


def _require_alone(folder: Path, own: list[Path]) -> None:
    """Refuses a folder with weights that its new config would not describe: readers might take those."""
    if others := [name for name in NAMES if (folder / name).exists() and folder / name not in own]:
        raise ConfigError(f"{folder} holds other weights, {listed(others)}: remove them, or choose another folder")


def _write_pretrained(
    folder: Path,
    stem: str,
    planned: list[dict[str, Spec]],
    arrays: Iterator[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
    force: bool,
    config: Mapping[str, Any] | None,
) -> list[Path]:
    """Writes into ``folder``; where there is none, it appears with all that is in it."""
    if folder.exists():
        return _write_safetensors(folder, stem, planned, arrays, metadata, "torch", force, config)
    require_free([folder], force)
    with staged(folder.parent, folder, sum(map(_total, planned))) as hidden:
        whole = hidden / folder.name
        whole.mkdir()
        written = _write_safetensors(whole, stem, planned, arrays, metadata, "torch", force, config)
        publish(hidden, {whole: folder})
    return [folder / path.name for path in written]
