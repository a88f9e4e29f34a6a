"""Weights in several files under an index that says which tensor is in which."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np

from interop.files import safetensors
from interop.files.dtypes import nbytes
from interop.files.errors import FileError, listed
from interop.files.strict_json import parse, text_map
from interop.files.weights import Entry, Format, Weights
from interop.layout import Spec

SUFFIX = ".index.json"
MAX_INDEX = 100_000_000


def open_index(path: Path, open_shard: Callable[[Path], Weights]) -> Weights:
    """Opens all files of an index.

    Raises:
        FileError: if a shard is missing or outside the index's folder, or a tensor is not exactly where it says.
    """
    if path.stat().st_size > MAX_INDEX:
        raise FileError(path, f"an index of more than {MAX_INDEX:,} bytes is not read")
    index = parse(path.read_bytes(), path, "index")
    places = text_map(index.get("weight_map"), path, "weight_map")
    shards = {name: _shard(path, name, key) for key, name in reversed(places.items())}
    with ExitStack() as opened:
        found: dict[str, Weights] = {}
        for name in sorted(shards):
            found[name] = opened.enter_context(open_shard(shards[name]))
        keys = {name: {_key(weights, n): n for n in weights.specs} for name, weights in found.items()}
        _require_as_listed(path, places, keys)
        formats = {weights.format for weights in found.values()}
        if len(formats) != 1:
            raise FileError(path, "its shards must all hold torch layouts or all Flax layouts, and at least one tensor")
        entries: dict[str, Entry] = {}
        readers = {name: weights.entries() for name, weights in found.items()}
        for key, name in places.items():
            entries[keys[name][key]] = readers[name][keys[name][key]]
        stated = text_map(_plain(index.get("metadata")), path, "metadata")
        shared = {key: text for weights in found.values() for key, text in weights.metadata.items()}
        notes = [note for weights in found.values() for note in weights.notes]
        return Weights(
            path,
            formats.pop(),
            entries,
            files=[path, *(shards[name] for name in sorted(shards))],
            metadata={**stated, **shared},
            notes=dict.fromkeys([f"{len(found)} files under {path.name}", *notes]),
            opened=opened.pop_all(),
        )


def _plain(metadata: object) -> dict[str, str]:
    """The texts and numbers of an index's metadata, where it has any."""
    if not isinstance(metadata, dict):
        return {}
    return {key: str(value) for key, value in metadata.items() if isinstance(value, str | int | float)}


def _key(weights: Weights, name: str) -> str:
    """A tensor's name as the file and its index have it."""
    return name.replace("/", ".") if weights.format == "flax" else name


def _shard(index: Path, name: str, key: str) -> Path:
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise FileError(index, f"weight_map leads to {ascii(name)[:100]}; only names of files beside it are read", key)
    path = index.parent / name
    if not path.is_file():
        raise FileError(index, f"it is said to be in {name}, which is not there", key, "get that file too")
    # the model hub's cache keeps the bytes of a snapshot in one fixed place beside it
    folder = index.parent.resolve()
    if path.resolve().parent not in (folder, folder.parent.parent / "blobs"):
        raise FileError(index, f"{name} is a link out of the folder", key, "put the file itself there")
    return path


def _require_as_listed(path: Path, places: Mapping[str, str], keys: Mapping[str, Mapping[str, str]]) -> None:
    for key, name in places.items():
        if key not in keys[name]:
            raise FileError(path, f"it is said to be in {name}, and is not", key)
    for name, held in keys.items():
        stray = [key for key in held if places.get(key) != name]
        if stray:
            listing = listed(stray)
            raise FileError(path, f"{name} holds tensors that the index does not place there: {listing}", stray[0])


def planned(specs: Mapping[str, Spec], max_size: int | None) -> list[dict[str, Spec]]:
    """Cuts tensors, in order, into shards of at most ``max_size`` bytes; a larger tensor has one of its own."""
    shards: list[dict[str, Spec]] = [{}]
    filled = 0
    for name, spec in specs.items():
        if max_size is not None and shards[-1] and filled + nbytes(spec) > max_size:
            shards.append({})
            filled = 0
        shards[-1][name] = spec
        filled += nbytes(spec)
    return shards


def write(
    folder: Path,
    stem: str,
    shards: list[dict[str, Spec]],
    arrays: Iterator[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
    format: Format,
) -> list[Path]:
    """Writes ``stem.safetensors`` in ``folder``, or its shards and then their index; the files, in that order."""
    if len(shards) == 1:
        path = folder / f"{stem}.safetensors"
        safetensors.write_file(path, shards[0], arrays, metadata, format)
        return [path]
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, specs in zip(names, shards, strict=True):
        safetensors.write_file(folder / name, specs, islice(arrays, len(specs)), metadata, format)
    next(arrays, None)  # whatever ends the arrays otherwise than announced is raised here, before anything is in place
    specs = [spec for shard in shards for spec in shard.values()]
    keys = {
        key.replace("/", ".") if format == "flax" else key: name
        for name, shard in zip(names, shards, strict=True)
        for key in shard
    }
    totals = {"total_size": sum(map(nbytes, specs)), "total_parameters": sum(math.prod(spec.shape) for spec in specs)}
    index = folder / f"{stem}.safetensors{SUFFIX}"
    with index.open("xb") as file:
        file.write((json.dumps({"metadata": totals, "weight_map": keys}, indent=2) + "\n").encode())
    return [folder / name for name in [*names, index.name]]


def family(folder: Path, stem: str) -> list[Path]:
    """The files in ``folder`` that :func:`write` may have made for ``stem``."""
    pattern = re.compile(rf"{re.escape(stem)}(-\d{{5}}-of-\d{{5}})?\.safetensors({re.escape(SUFFIX)})?")
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name)) if folder.is_dir() else []
