"""What the names in a file of textual inversion mean, in the dialect of whichever program wrote it."""

from collections.abc import Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from interop.embeddings.embedding import Embedding, counts_problem, rows_problem, shape_problem
from interop.embeddings.pickles import PARAMETERS
from interop.files.dtypes import is_floating
from interop.files.errors import FileError, listed, shown
from interop.files.weights import Entry

CLIP_WORDS = 49408
"""Rows of the table of CLIP's text encoders before a word is added."""
TABLE = "embeddings.token_embedding.weight"
XL = ("clip_l", "clip_g")
_NAMELESS = ("emb_params", "emp_params")
_OUTPUT = "_out"
_REMEDY = "name a file of textual inversion"


def embeddings(
    content: Any, path: Path, metadata: Mapping[str, str], name: str, words: int = CLIP_WORDS
) -> list[Embedding]:
    """Finds the learned words in what a file holds.

    Args:
        content: an entry, or a dict of entries by name; see :func:`interop.embeddings.pickles.content`.
        path: of the file.
        metadata: what the file says about itself.
        name: of a word that the file does not name.
        words: rows of a text encoder's table before the first learned one.

    Raises:
        FileError: if it is no dialect that is known, or vectors cannot be used.
    """
    about = {key: text for key, text in metadata.items() if key not in ("format", "token")}
    name = metadata.get("token") or name
    if isinstance(content, Entry):
        return [Embedding(name, (_rows(content, path, None),), about)]
    if not isinstance(content, Mapping):
        raise FileError(path, f"it holds a {type(content).__name__}, no vectors", remedy=_REMEDY)
    if PARAMETERS in content:
        return _of_webui(content, path, name)
    tensors = {key: value for key, value in content.items() if isinstance(value, Entry)}
    if not tensors:
        held = listed(key for key in content if isinstance(key, str))
        raise FileError(path, f"no vectors are in it, but {held or 'nothing'}", remedy=_REMEDY)
    if tables := [key for key in tensors if key.endswith(TABLE)]:
        return [Embedding(name, (_learned(tensors[tables[0]], path, tables[0], words),), about)]
    plain = {key: entry for key, entry in tensors.items() if not _is_output(key)}
    if not plain:
        problem = f"only vectors behind the text encoder are in it, {listed(tensors)}, which no one else loads"
        raise FileError(path, problem, remedy=_REMEDY)
    if len(plain) < len(tensors):
        about["left_out"] = ", ".join(key for key in tensors if key not in plain)
    if set(plain) & set(XL):
        return [Embedding(name, _of_xl(plain, path), about)]
    if len(plain) == 1 and (key := next(iter(plain))) in _NAMELESS:
        return [Embedding(name, (_rows(plain[key], path, key),), about)]
    return [Embedding(first, (_joined(plain, keys, path),), about) for first, keys in _runs(plain).items()]


def _is_output(key: str) -> bool:
    """Whether a tensor is of OneTrainer's vectors that are added after the text encoder, which no one else loads."""
    return key.removesuffix(_OUTPUT) in (*XL, *_NAMELESS) and key.endswith(_OUTPUT)


def _of_webui(content: Mapping[str, Any], path: Path, name: str) -> list[Embedding]:
    """Reads the dialect of AUTOMATIC1111, and of the paper's own code, whose word may be ``*``."""
    parameters = content[PARAMETERS]
    entries = isinstance(parameters, Mapping) and all(isinstance(value, Entry) for value in parameters.values())
    if not entries or not parameters or not all(isinstance(key, str) for key in parameters):
        raise FileError(path, "it must map words to tensors", PARAMETERS, _REMEDY)
    kept = {key: content.get(key) for key in ("step", "sd_checkpoint", "sd_checkpoint_name")}
    about = {key: str(value) for key, value in kept.items() if isinstance(value, str | int)}
    about = {key: text for key, text in about.items() if text.isprintable()}
    own = content.get("name")
    named = own if isinstance(own, str) and own and len(parameters) == 1 else None
    return [
        Embedding(named or (name if key == "*" else key), (_rows(entry, path, key),), about)
        for key, entry in parameters.items()
    ]


def _of_xl(tensors: Mapping[str, Entry], path: Path) -> tuple[np.ndarray, ...]:
    """Reads the vectors of both text encoders; some programs name those of Stable Diffusion 1 ``clip_l`` alone."""
    if stray := set(tensors) - set(XL):
        raise FileError(path, f"stands beside {listed(set(XL) & set(tensors))}, and no program writes it", min(stray))
    if XL[0] not in tensors:
        raise FileError(path, f"it has vectors {XL[1]} and none {XL[0]}, of the first text encoder")
    rows = tuple(_rows(tensors[key], path, key) for key in XL if key in tensors)
    if problem := counts_problem(rows):
        raise FileError(path, problem)
    return rows


def _learned(table: Entry, path: Path, key: str, words: int) -> np.ndarray:
    """Takes the rows that a whole table has beyond its words."""
    if len(table.spec.shape) != 2 or table.spec.shape[0] <= words:
        problem = f"its shape {list(table.spec.shape)} is of no table with rows beyond the {words:,} of its words"
        raise FileError(path, problem, key, "name a checkpoint whose text encoder has learned a word")
    learned = table.read()[words:]
    return _rows(Entry(table.spec._replace(shape=learned.shape), lambda: learned), path, key)


def _runs(tensors: Mapping[str, Entry]) -> dict[str, list[str]]:
    """Groups ``word, word_1, word_2`` of one vector each; any other name is a word of its own."""
    single = {key for key, entry in tensors.items() if entry.spec.shape[:-1] in ((), (1,))}
    runs: dict[str, list[str]] = {}
    continued: set[str] = set()
    # the shorter of two names is the one that the longer may go on from
    for key in sorted(tensors, key=len):
        if key in continued:
            continue
        more = list(takewhile(single.__contains__, (f"{key}_{i}" for i in count(1)))) if key in single else []
        continued.update(more)
        runs[key] = [key, *more]
    return {key: runs[key] for key in tensors if key in runs}


def _joined(tensors: Mapping[str, Entry], keys: list[str], path: Path) -> np.ndarray:
    parts = [_rows(tensors[key], path, key) for key in keys]
    for key, part in zip(keys, parts, strict=True):
        if part.shape[1] != parts[0].shape[1]:
            raise FileError(path, f"it has {part.shape[1]} numbers, and {shown(keys[0])} {parts[0].shape[1]}", key)
    return np.concatenate(parts)


def _rows(entry: Entry, path: Path, key: str | None) -> np.ndarray:
    """Reads vectors as [n d] float32. Raises FileError if they are none, or not all numbers."""
    if not is_floating(entry.spec.dtype):
        raise FileError(path, f"its type is {entry.spec.dtype}, and vectors are floating-point numbers", key, _REMEDY)
    if problem := shape_problem(entry.spec.shape):
        raise FileError(path, problem, key, _REMEDY)
    with np.errstate(over="ignore"):
        rows = np.array(np.atleast_2d(entry.read()), np.float32)
    if problem := rows_problem(rows):
        raise FileError(path, problem, key, "take a step saved before training went wrong")
    return rows
