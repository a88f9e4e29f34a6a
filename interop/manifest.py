"""Where converted weights come from: a manifest that travels in the metadata of the file."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np

from interop.files import FileError, Weights
from interop.files.dtypes import EXTENDED, is_floating
from interop.files.strict_json import parse
from interop.problems import Problems
from interop.rules import Table

_KEY = "jaxkit"
_CHUNK = 1 << 20
_WHOLE = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def written(model: str) -> dict[str, str]:
    """The metadata of weights that come from no file."""
    return {_KEY: json.dumps({"model": model, "versions": _versions()})}


class Digests(NamedTuple):
    """What a file holds: SHA-256 of its files by path, and of its tensors by key; keys that hold not-a-numbers."""

    files: dict[str, str]
    tensors: dict[str, str]
    broken: list[str]


@contextmanager
def digesting(weights: Weights) -> Iterator[Callable[[], Digests]]:
    """Reads a file in the background from now on, until the context ends; gives a function that waits for the digests.

    That function raises FileError if the file turns out to be damaged.
    """
    root = weights.path if weights.path.is_dir() else weights.path.parent
    stop, tensors, broken = Event(), {}, []

    def digest_tensors() -> None:
        for key in weights.specs:
            if stop.is_set():
                return
            array = weights.read(key)
            tensors[key] = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()
            if has_nan(array):
                broken.append(key)
            del array

    with ThreadPoolExecutor(2) as background:
        reading = background.submit(digest_tensors)
        files = background.submit(lambda: {str(p.relative_to(root)): _file_hash(p, stop) for p in weights.files})

        def wait() -> Digests:
            reading.result()
            return Digests(files.result(), tensors, broken)

        try:
            yield wait
        finally:
            stop.set()


def converted(
    weights: Weights, digests: Digests, names: Mapping[str, str], model: str, table: Table, dropped: Iterable[str]
) -> dict[str, str]:
    """The metadata of converted weights: hashes of the files and of every tensor as it lies in them, table, versions.

    ``names`` are those the table knows, each with the file's own. Of ``dropped`` ones the single numbers are kept, so
    that the way back restores them.

    Raises WeightsError for not-a-numbers: weights that a training run has destroyed.
    """
    Problems(damaged=[f"{key} holds not-a-numbers" for key in digests.broken]).raise_any()
    rows = repr(
        [(torch, flax, sorted((str(name), str(place)) for name, place in kind.items())) for torch, flax, kind in table]
    )
    left_out = {key: weights.read(names[key]) for key in dropped}
    counts = {key: array for key, array in left_out.items() if array.size == 1 and array.dtype.kind in "biu"}
    manifest = {
        "model": model,
        "source": digests.files,
        "table": hashlib.sha256(rows.encode()).hexdigest(),
        "versions": _versions(),
        "tensors": {name: digests.tensors[key] for name, key in names.items()},
        "dropped": {key: [str(array.dtype), array.tolist()] for key, array in counts.items()},
    }
    return {_KEY: json.dumps(manifest)}


def read(weights: Weights) -> dict[str, Any]:
    """The manifest of a file; empty if it has none.

    Raises FileError for one that was not written here: the file may come from anywhere.
    """
    text = weights.metadata.get(_KEY)
    if text is None:
        return {}
    found = parse(text.encode(), weights.path, "manifest")
    kept = found.get("dropped", {})
    if not isinstance(found.get("model"), str) or not isinstance(kept, dict):
        raise FileError(weights.path, "its manifest does not say which model it is of, and what was left out", _KEY)
    for key, entry in kept.items():
        if not _is_number(entry):
            raise FileError(weights.path, "its manifest keeps something else than a whole number in range", key)
    return found


def _is_number(entry: Any) -> bool:
    """Whether an entry of ``dropped`` is the name of a type of one whole number, and a number of it, maybe in lists."""
    match entry:
        case [str(name), value] if name in _WHOLE:
            while isinstance(value, list) and len(value) == 1:
                (value,) = value
            limits = np.iinfo(name) if name != "bool" else None
            fits = limits is not None and type(value) is int and limits.min <= value <= limits.max
            return fits or (limits is None and type(value) is bool)
        case _:
            return False


def _file_hash(path: Path, stop: Event) -> str:
    digest, piece = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while (size := file.readinto(piece)) and not stop.is_set():
            digest.update(piece[:size])
    return digest.hexdigest()


def has_nan(array: np.ndarray) -> bool:
    """Whether an array holds a not-a-number; looked at in pieces that a core's cache holds."""
    if not (is_floating(array.dtype) or array.dtype.kind == "c"):
        return False
    flat = np.ascontiguousarray(array).reshape(-1)
    pieces = (flat[i : i + _CHUNK] for i in range(0, flat.size, _CHUNK))
    if flat.dtype.name == "bfloat16":
        # Of the bits without the sign, those above infinity's are no number; NumPy's isnan is slow in this type.
        return any(((piece.view(np.uint16) & 0x7FFF) > 0x7F80).any() for piece in pieces)
    short = flat.dtype.name in EXTENDED
    return any(np.isnan(piece.astype(np.float32) if short else piece).any() for piece in pieces)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("jaxkit", "numpy")}
