"""Orbax checkpoints: a folder with a tree of names, and an array store for each leaf.

Orbax itself restores a tree at once. The stores are zarr, in plain folders or in one OCDBT database, and TensorStore
reads them one by one. Written are plain, uncompressed ones: their only chunk is the bytes of the array.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from interop.files.dtypes import DTYPES, EXTENDED, nbytes, raw, shape_problem
from interop.files.errors import FileError, listed
from interop.files.strict_json import parse, require_printable, text_map
from interop.files.weights import Entry, Weights
from interop.layout import Spec

TREE, CHECKPOINT = "_METADATA", "_CHECKPOINT_METADATA"
WRITABLE = frozenset(DTYPES) - {"float8_e8m0fnu"}  # TensorStore's zarr does not have it
_HANDLER = "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"
# Orbax compresses by zstd, which makes no less than 4 bytes of 128 KiB.
_COMPRESSION = 1 << 15
_EMPTY = ("None", "Dict", "List", "Tuple", "NamedTuple")


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` is one item's tree of arrays."""
    return (folder / TREE).is_file()


def open_folder(folder: Path) -> Weights:
    """Opens the arrays of a checkpoint.

    Raises:
        FileError: if its tree is damaged, or an array of it is missing or of a type that is not read.
    """
    described = parse((folder / TREE).read_bytes(), folder / TREE, "tree")
    names, others = _named(described, folder)
    open_store = _stores(folder, bool(described.get("use_ocdbt", True)), bool(described.get("use_zarr3")))
    opening = {name: open_store(stored) for name, stored in names.items()}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    most = _COMPRESSION * sum(file.stat().st_size for file in files)
    entries = {}
    for name, future in opening.items():
        store = _result(future, folder, name)
        if store.dtype.name not in DTYPES:
            raise FileError(folder, f"its type {store.dtype.name} is not read", name)
        spec = Spec(tuple(store.shape), DTYPES[store.dtype.name])
        if problem := shape_problem(spec.shape, spec.dtype):
            raise FileError(folder, problem, name)
        if nbytes(spec) > most:
            raise FileError(folder, f"its shape takes {nbytes(spec):,} bytes, more than its files can hold", name)
        entries[name] = Entry(spec, partial(_read, store, folder, name))
    if not entries:
        raise FileError(folder, "no arrays are in the checkpoint")
    return Weights(
        folder,
        "flax",
        entries,
        files=files,
        metadata=_metadata(folder),
        notes=[f"left out, being no tensors: {listed(others)}"] if others else [],
    )


def _named(described: Mapping[str, Any], folder: Path) -> tuple[dict[str, str], list[str]]:
    """The name of each array with that of its store, and the leaves that are none."""
    tree, names, others = described.get("tree_metadata"), {}, []
    if not isinstance(tree, dict):
        raise FileError(folder / TREE, "it has no tree_metadata")
    for entry, leaf in tree.items():
        try:
            keys, kind = [str(step["key"]) for step in leaf["key_metadata"]], leaf["value_metadata"]["value_type"]
        except (TypeError, KeyError):
            raise FileError(folder / TREE, "its entry in the tree is damaged", entry) from None
        name = "/".join(keys)
        require_printable(name, folder / TREE)
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise FileError(folder / TREE, "the path leads out of its folder", entry)
        if kind == "string":
            others.append(f"{name} (string)")
        elif kind not in _EMPTY:
            names[name] = ".".join(keys)
    return names, others


def _stores(folder: Path, database: bool, zarr3: bool) -> Callable[[str], Any]:
    """What begins to open the store of a name."""
    import tensorstore

    context = tensorstore.Context({"cache_pool#tree": {"total_bytes_limit": 100_000_000}})
    root = folder.absolute()

    def open_store(name: str) -> Any:
        place = {"driver": "file", "path": f"{root}/{name}/"}
        if database:
            base = {"driver": "file", "path": f"{root}/"}
            place = {"driver": "ocdbt", "base": base, "path": f"{name}/", "cache_pool": "cache_pool#tree"}
        # Orbax stores zeros too: a chunk that is not there was lost
        spec = {"driver": "zarr3" if zarr3 else "zarr", "kvstore": place, "fill_missing_data_reads": False}
        return tensorstore.open(spec, open=True, read=True, context=context)

    return open_store


def _result(future: Any, folder: Path, name: str) -> Any:
    try:
        return future.result()
    except Exception as error:
        reason = str(error).split("[")[0].strip()[:200]
        raise FileError(folder, f"its bytes cannot be read ({reason})", name) from error


def _read(store: Any, folder: Path, name: str) -> np.ndarray:
    return _result(store.read(order="C"), folder, name)


def _metadata(folder: Path) -> dict[str, str]:
    path = folder / CHECKPOINT
    if not path.is_file():
        return {}
    custom = parse(path.read_bytes(), path, "metadata").get("custom_metadata") or {}
    if isinstance(custom, dict):
        custom = {key: value for key, value in custom.items() if isinstance(value, str)}
    return text_map(custom, path, "custom_metadata")


def write_folder(
    folder: Path, specs: Mapping[str, Spec], arrays: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str]
) -> None:
    """Writes a new folder that Orbax's StandardCheckpointer restores."""
    folder.mkdir()
    leaves = {}
    for name in specs:
        keys = name.split("/")
        place = {"key_metadata": [{"key": key, "key_type": 2} for key in keys]}
        leaves[str(tuple(keys))] = place | {"value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False}}
    tree = {"tree_metadata": leaves, "use_ocdbt": False, "use_zarr3": False, "custom_metadata": None}
    checkpoint = {"item_handlers": _HANDLER, "metrics": {}, "performance_metrics": {}}
    dates = {"init_timestamp_nsecs": None, "commit_timestamp_nsecs": None}
    _write_json(folder / CHECKPOINT, {**checkpoint, **dates, "custom_metadata": dict(metadata)})
    _write_json(folder / TREE, {**tree, "store_array_data_equal_to_fill_value": True})
    for name, array in arrays:
        _write_store(folder / name.replace("/", "."), array)
        del array


def _write_store(store: Path, array: np.ndarray) -> None:
    store.mkdir()
    kind = str(array.dtype) if str(array.dtype) in EXTENDED else array.dtype.str
    layout = {"zarr_format": 2, "order": "C", "compressor": None, "filters": None, "fill_value": None}
    chunks = [max(1, size) for size in array.shape]
    described = {"dtype": kind, "shape": array.shape, "chunks": chunks, "dimension_separator": "."}
    _write_json(store / ".zarray", {**layout, **described})
    if array.size:
        with (store / (".".join("0" * array.ndim) or "0")).open("xb") as file:
            file.write(raw(array))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("xb") as file:
        file.write(json.dumps(content).encode())
