"""Where converted weights come from: a manifest that travels in the metadata of the file."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from interop.files import FileError, Weights
from interop.files.strict_json import parse
from interop.problems import Problems, WeightsError
from interop.rules import Table

_KEY = "jaxkit"
_CHUNK = 1 << 20
_WHOLE = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def written(model: str) -> dict[str, str]:
    """The metadata of weights that come from no file."""
    return {_KEY: json.dumps({"model": model, "versions": _versions()})}


def converted(
    weights: Weights, names: Mapping[str, str], model: str, table: Table, dropped: Iterable[str]
) -> dict[str, str]:
    """The metadata of converted weights: hashes of the files and of every tensor as it lies in them, table, versions.

    ``names`` are those the table knows, each with the file's own. Of ``dropped`` ones the single numbers are kept, so
    that the way back restores them.

    Raises WeightsError for not-a-numbers: weights that a training run has destroyed.
    """
    with ThreadPoolExecutor(1) as other:
        root = weights.path if weights.path.is_dir() else weights.path.parent
        files = other.submit(lambda: {str(path.relative_to(root)): _file_hash(path) for path in weights.files})
        tensors, broken = {}, []
        for name, key in names.items():
            array = weights.read(key)
            tensors[name] = _hash(array)
            if has_nan(array):
                broken.append(f"{key} holds not-a-numbers")
    if broken:
        raise WeightsError(Problems(damaged=broken))
    rows = repr(
        [(torch, flax, sorted((str(name), str(place)) for name, place in kind.items())) for torch, flax, kind in table]
    )
    left_out = {key: weights.read(names[key]) for key in dropped}
    counts = {key: array for key, array in left_out.items() if array.size == 1 and array.dtype.kind in "biu"}
    manifest = {
        "model": model,
        "source": files.result(),
        "table": hashlib.sha256(rows.encode()).hexdigest(),
        "versions": _versions(),
        "tensors": tensors,
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


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_nan(array: np.ndarray) -> bool:
    """Whether a floating-point array holds a not-a-number; looked at in pieces that a core's cache holds."""
    if array.dtype.kind != "f" and array.dtype != np.dtype(ml_dtypes.bfloat16):
        return False
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype == np.dtype(ml_dtypes.bfloat16):
        # Of the bits without the sign, those above infinity's are no number; NumPy's isnan is slow in this type.
        flat = flat.view(np.uint16)
        return any(((flat[i : i + _CHUNK] & 0x7FFF) > 0x7F80).any() for i in range(0, flat.size, _CHUNK))
    return any(np.isnan(flat[i : i + _CHUNK]).any() for i in range(0, flat.size, _CHUNK))


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("jaxkit", "numpy")}
