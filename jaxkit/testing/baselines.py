"""Numeric baselines: what a model computed when somebody said that it was right, and what it computes now."""

import math
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxkit import __version__
from jaxkit.errors import UserError
from jaxkit.testing.capture import Records
from jaxkit.testing.store import MOMENTS, Baseline, Kept, keep, load, positions, save

TOLERANCES = {
    "before": 1e-6, "forward": 5e-6, "loss": 5e-6, "gradient": 5e-5, "after": 1e-5, "state": 1e-5, "optimizer": 5e-5,
    "rng": 0.0,
}  # fmt: skip
"""By role: how far values may be apart, in units of the largest; float32 on another processor stays within a fifth."""
_SHOWN = 12
# A gradient may be 0 but for roundings, as of a bias in front of a normalisation: these compare within their layer.
_OF_LAYER = ("gradient", "optimizer")
# Means of squared gradients, as optax and torch call them: of a gradient g that is within t G, the layer's largest, the
# square is within 2 t g G.
_SQUARES = {"nu", "exp_avg_sq", "max_exp_avg_sq", "square_avg"}


_HOW = (
    "If what it computes now is right, record it: scripts/run_tests.py --baseline record --reason '...', or "
    "NUMERIC_BASELINE=record NUMERIC_BASELINE_REASON='...' pytest"
)


class BaselineMissing(UserError):
    """There is no baseline to compare with."""


class BaselineDiffers(UserError):
    """What is computed is not what was recorded."""


class BaselineStale(UserError):
    """What was recorded comes from another environment: the numbers of this one prove nothing."""


class Difference(NamedTuple):
    """Why an array, or a module, is not the recorded one."""

    name: str
    what: str


def check(records: Records, path: Path, tolerances: Mapping[str, float] | None = None) -> None:
    """Compares with the baseline at ``path``; ``tolerances``, by role, go before those it was recorded with.

    Raises:
        BaselineMissing: if there is none.
        BaselineStale: if it was recorded in another environment, whatever the numbers.
        BaselineDiffers: if names, dtypes, shapes, counts of NaN and infinity, values, or the fields of modules differ.
        BaselineDamaged: if its files are not what was written.
    """
    if not path.exists():
        raise BaselineMissing(f"there is no baseline {path}. {_HOW}")
    recorded = load(path)
    recorded = recorded._replace(tolerances={**recorded.tolerances, **(tolerances or {})})
    found = differences(recorded, records)
    changed = [
        f"{name} {recorded.environment.get(name, 'none')} then, {records.environment.get(name, 'none')} now"
        for name in sorted(recorded.environment.keys() | records.environment.keys())
        if recorded.environment.get(name) != records.environment.get(name)
    ]
    if changed:
        numbers = f"{len(found)} differences" if found else "no difference"
        said = f"{path.name} comes from another environment ({', '.join(changed)}), and shows {numbers}"
        raise BaselineStale(f"STALE: {said}. {_HOW}")
    if found:
        lines = [f"  {difference.name}: {difference.what}" for difference in found[:_SHOWN]]
        more = [f"  ... and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        head = f"{len(found)} differences from {path.name} ({recorded.about['reason']}), in order of execution:"
        raise BaselineDiffers("\n".join([head, *lines, *more, _HOW]))


def record(records: Records, path: Path, reason: str, tolerances: Mapping[str, float] | None = None) -> None:
    """Writes what was computed as the baseline at ``path``.

    Args:
        records: of a run that is right.
        path: a JSON file; the values lie beside it.
        reason: why, for who reads it later.
        tolerances: by role, in place of :data:`TOLERANCES`.

    Raises:
        UserError: without a reason, or a tolerance of one of the roles.
    """
    if not reason.strip():
        raise UserError(f"{path}: a baseline is recorded with a reason (NUMERIC_BASELINE_REASON, or --reason)")
    limits = {**TOLERANCES, **(tolerances or {})}
    unknown = sorted({name.partition("/")[0] for name in records.arrays} - limits.keys())
    if unknown:
        raise UserError(f"{path}: give tolerances of {', '.join(unknown)}; known are those of {', '.join(limits)}")
    about = {
        "reason": reason.strip(),
        "recorded": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(path.parent),
        "jaxkit": __version__,
    }
    kept = {name: keep(name, array) for name, array in records.arrays.items()}
    save(path, Baseline(kept, records.configuration, records.environment, limits, about))


def differences(recorded: Baseline, records: Records) -> list[Difference]:
    """All that is not as it was, in order of execution: modules first, then arrays."""
    found = list(_configurations(recorded.configuration, records.configuration))
    now = {name: keep(name, array) for name, array in records.arrays.items()}
    found += [Difference(name, "is gone") for name in recorded.kept if name not in now]
    found += [Difference(name, "is new") for name in now if name not in recorded.kept]
    sizes = _of_layers(recorded.kept)
    for name, kept in recorded.kept.items():
        if name in now:
            role = name.partition("/")[0]
            what = _difference(name, kept, now[name], recorded.tolerances[role], sizes.get(name, kept.moments[0]))
            found += [Difference(name, what)] if what else []
    return found


def _configurations(then: Mapping[str, Mapping], now: Mapping[str, Mapping]) -> Iterator[Difference]:
    for module in [*then, *(module for module in now if module not in then)]:
        before, after = then.get(module, {}), now.get(module, {})
        for field in sorted(before.keys() | after.keys()):
            if before.get(field) != after.get(field):
                yield Difference(f"{module}.{field}", f"was {before.get(field)}, is {after.get(field)}")


def _of_layers(kept: Mapping[str, Kept]) -> dict[str, float]:
    """What each array that is compared within its layer is measured by: the largest value there."""
    largest: dict[str, float] = {}
    names = [name for name in kept if name.partition("/")[0] in _OF_LAYER]
    for name in names:
        layer = name.rpartition("/")[0]
        largest[layer] = max(largest.get(layer, 0.0), kept[name].moments[0])
    sizes = {}
    for name in names:
        *parts, _ = name.split("/")
        own, layers = kept[name].moments[0], largest["/".join(parts)]
        sizes[name] = (math.sqrt(own * layers) or layers) if _SQUARES.intersection(parts) else layers
    return sizes


def _difference(name: str, then: Kept, now: Kept, tolerance: float, size: float) -> str:
    """Why two arrays are not the same, the coarsest reason first; empty if they are."""
    for what, before, after in (
        ("dtype", then.dtype, now.dtype),
        ("shape", then.shape, now.shape),
        ("NaN", then.nan, now.nan),
        ("infinite", then.inf, now.inf),
    ):
        if before != after:
            return f"{what} {before} then, {after} now"
    limit = max(tolerance, _rounding(then.dtype) if tolerance else 0.0) * (size or 1.0)
    a, b = _wide(now.values), _wide(then.values)
    # infinities of one sign, and what is no number on both sides, are no distance apart
    same, finite = (a == b) | (np.isnan(a) & np.isnan(b)), np.isfinite(a) & np.isfinite(b)
    apart = np.where(same, 0.0, np.inf)
    apart[finite] = np.abs(a[finite] - b[finite])
    if (apart > limit).any():
        return _values(name, then, a, b, apart, limit)
    for moment, before, after in zip(MOMENTS, then.moments, now.moments, strict=True):
        if abs(after - before) > limit:
            return f"the values that are kept agree, {moment} does not: {before:.7g} then, {after:.7g} now"
    return ""


def _values(name: str, then: Kept, a: np.ndarray, b: np.ndarray, apart: np.ndarray, limit: float) -> str:
    """How far values are apart, where they are finite, and where first."""
    place = int(np.argmax(apart > limit))
    index = np.unravel_index(positions(name, int(np.prod(then.shape)))[place], then.shape)
    first = f"first at [{', '.join(map(str, index))}]: {b[place]:.8g} then, {a[place]:.8g} now"
    a, b = (values[np.isfinite(a) & np.isfinite(b)] for values in (a, b))
    size = np.maximum(np.maximum(np.abs(a), np.abs(b)), np.finfo(np.float32).tiny)
    ulp = (np.abs(a - b) / (np.exp2(np.floor(np.log2(size))) * _unit(then.dtype))).max(initial=0)
    norms = np.linalg.norm(a), np.linalg.norm(b)
    cosine = float(np.vdot(a, b).real / (norms[0] * norms[1])) if all(norms) else float(norms[0] == norms[1])
    relative = np.linalg.norm(a - b) / (norms[1] or 1.0)
    return (
        f"max |d| {apart.max():.3g} (limit {limit:.3g}), {ulp:.3g} ULP, relative L2 {relative:.3g}, "
        f"cosine {cosine:.6f}; {first}"
    )


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)


def _unit(dtype: str) -> float:
    """The distance of two neighbouring numbers of a type around 1."""
    return float(ml_dtypes.finfo(dtype).eps) if "float" in dtype or "complex" in dtype else 1.0


def _rounding(dtype: str) -> float:
    """What a short type cannot tell: a few of its own roundings."""
    return 4 * _unit(dtype) if dtype in ("bfloat16", "float16") else 0.0


def _commit(folder: Path) -> str:
    """The commit that the code is of; empty outside a repository."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""
