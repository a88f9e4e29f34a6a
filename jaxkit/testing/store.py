"""Baselines on disk: a page of JSON that a reviewer reads, and the values beside it; never a pickle."""

import hashlib
import io
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxkit.errors import UserError
from jaxkit.tracking import write_atomically

SCHEMA = 2
_WHOLE = 32
"""Values: an array of no more is kept whole, of a larger one a seeded sample of half as many."""
_SAMPLE = _WHOLE // 2
# over all values; the projection is their sum with random weights, which no permutation leaves as it is
MOMENTS = ("largest", "mean", "spread", "projection")


class Kept(NamedTuple):
    """What is kept of an array."""

    dtype: str
    shape: tuple[int, ...]
    nan: int
    inf: int
    moments: tuple[float, ...]
    """Those of :data:`MOMENTS`, of the finite values."""
    values: np.ndarray
    """All of them in order, or those at :func:`positions`."""


class Baseline(NamedTuple):
    """Everything that was recorded."""

    kept: dict[str, Kept]
    configuration: dict[str, dict[str, str]]
    environment: dict[str, str]
    tolerances: dict[str, float]
    """By role: of the largest value of what is compared."""
    about: dict[str, str]
    """When, of which commit, and why it was recorded."""


class BaselineDamaged(UserError):
    """The files of a baseline are not what was written."""


def keep(name: str, array: np.ndarray) -> Kept:
    """Sums an array up: counts of what is not finite, moments, and values at seeded positions."""
    flat = np.asarray(array).ravel()
    # a complex number counts as two
    wide = flat.astype(np.complex128).view(np.float64) if np.iscomplexobj(flat) else flat.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    weights = 2 * np.random.default_rng(zlib.crc32(name.encode())).random(finite.size) - 1
    moments = (
        float(np.abs(finite).max(initial=0)),
        float(finite.mean()) if finite.size else 0.0,
        float(finite.std()) if finite.size else 0.0,
        float(weights @ finite) / math.sqrt(finite.size or 1),
    )
    counts = int(np.isnan(wide).sum()), int(np.isinf(wide).sum())
    # nine digits tell one float32 from the next
    moments = tuple(float(f"{moment:.9g}") for moment in moments)
    return Kept(flat.dtype.name, np.shape(array), *counts, moments, flat[positions(name, flat.size)])


def positions(name: str, size: int) -> np.ndarray:
    """The places of an array of ``size`` that are kept: all, or a sample that the name alone decides."""
    if size <= _WHOLE:
        return np.arange(size)
    drawn = np.random.default_rng(zlib.crc32(name.encode()) + 1).random(_SAMPLE)
    return np.unique((drawn * size).astype(np.int64))


def save(path: Path, baseline: Baseline) -> None:
    """Writes ``path``, a JSON file, and the values beside it.

    The values' file is named after its contents and the page is replaced last: a reader finds the old pair or the new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    dtypes = sorted({kept.dtype for kept in baseline.kept.values()})
    # as bytes: numpy's own files know no bfloat16
    joined = {
        dtype: np.frombuffer(
            b"".join(kept.values.tobytes() for kept in baseline.kept.values() if kept.dtype == dtype), np.uint8
        )
        for dtype in dtypes
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **joined)
    stamp = hashlib.sha256(buffer.getvalue()).hexdigest()
    values = path.with_name(f"{path.stem}.{stamp[:12]}.npz")
    part = values.with_name(f".{values.name}.{os.getpid()}")
    part.write_bytes(buffer.getvalue())
    part.replace(values)
    rows = {name: [kept.dtype, kept.shape, kept.nan, kept.inf, kept.moments] for name, kept in baseline.kept.items()}
    head = {
        "schema": SCHEMA,
        "about": baseline.about,
        "environment": baseline.environment,
        "tolerances": baseline.tolerances,
        "configuration": baseline.configuration,
        "values": {"file": values.name, "sha256": stamp},
    }
    head["checksum"] = _checksum(head, rows)
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    text = json.dumps(head, indent=1)[:-2] + ',\n "arrays": {\n' + ",\n".join(lines) + "\n }\n}\n"
    write_atomically(path, text)
    for old in path.parent.glob(f"{path.stem}.{'?' * 12}.npz"):
        if old != values:
            old.unlink()


def load(path: Path) -> Baseline:
    """Reads a baseline.

    Raises:
        BaselineDamaged: if a file of it is missing, was changed, or is of another version of this format.
    """
    try:
        page = _page(path)
        values = path.parent / page["values"]["file"]
        if not values.exists():
            # recorded anew since the page was read
            page = _page(path)
            values = path.parent / page["values"]["file"]
        data = values.read_bytes()
        if hashlib.sha256(data).hexdigest() != page["values"]["sha256"]:
            raise BaselineDamaged(f"{path}: {values.name} is not the file that was recorded; record it anew")
        kept = _split(page["arrays"], data)
        sections = (page["configuration"], page["environment"], page["tolerances"], page["about"])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise BaselineDamaged(f"{path} is damaged ({error!r}); restore it, or record it anew") from error
    return Baseline(kept, *sections)


def _page(path: Path) -> dict[str, Any]:
    page = json.loads(path.read_text(encoding="utf-8"))
    if page["schema"] != SCHEMA:
        raise BaselineDamaged(f"{path} has schema {page['schema']}, this is {SCHEMA}; record it anew")
    written = page.pop("checksum")
    rows = page.pop("arrays")
    if written != _checksum(page, rows):
        raise BaselineDamaged(f"{path} is not what was recorded: it was changed by hand; restore it, or record it anew")
    return {**page, "arrays": rows}


def _checksum(head: dict[str, Any], rows: dict[str, Any]) -> str:
    """Of all that the page says, however it is laid out."""
    return hashlib.sha256(json.dumps([head, rows], sort_keys=True).encode()).hexdigest()


def _split(rows: dict[str, Any], data: bytes) -> dict[str, Kept]:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        left = {dtype: file[dtype].view(_dtype(dtype)) for dtype in file.files}
    kept = {}
    for name, (dtype, shape, nan, inf, moments) in rows.items():
        count = len(positions(name, math.prod(shape)))
        kept[name] = Kept(dtype, tuple(shape), nan, inf, tuple(moments), left[dtype][:count])
        left[dtype] = left[dtype][count:]
    return kept


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)
