"""How far two arrays are apart, and how far they may be."""

import math
from typing import NamedTuple

import ml_dtypes
import numpy as np

# What is compared in float32, relative to the size of the values.
TOLERANCES = {"forward": 1e-5, "gradients": 1e-4, "training": 1e-5}
# What is compared in a short type, in units of the reference's own rounding. Torch rounds an activation's derivative
# once; XLA may round each of the operations it is made of.
RATIOS = {"forward": 2.0, "gradients": 4.0, "training": 2.0}


class Precision(NamedTuple):
    """A floating type both sides run in; ``short`` ones are judged by the reference's own rounding."""

    name: str
    numpy: np.dtype
    bits: np.dtype
    short: bool = False
    share: float = 1.0
    """Of the tolerance."""


PRECISIONS = {
    # Not less than a tenth: a model may give its logits in float32 in any case.
    "f64": Precision("float64", np.dtype(np.float64), np.dtype(np.int64), share=0.1),
    "f32": Precision("float32", np.dtype(np.float32), np.dtype(np.int32)),
    "bf16": Precision("bfloat16", np.dtype(ml_dtypes.bfloat16), np.dtype(np.int16), short=True),
    "f16": Precision("float16", np.dtype(np.float16), np.dtype(np.int16), short=True),
}


class Difference(NamedTuple):
    """Two arrays compared, place by place. ``error`` is what is judged: it may not exceed ``limit``.

    In float32 and float64 ``error`` is ``max_abs / scale``. In a short type it is the ratio

        R = |port - exact|₂ / max(|reference - exact|₂, u |exact|₂, u √n scale)

    of the port's distance from torch's float32 result to torch's own distance from it, of n values. ``u``, the type's
    unit of rounding, keeps a reference that is exact by luck from demanding exactness; the scale counts only where one
    is given.
    """

    max_abs: float
    scale: float
    relative_l2: float
    cosine: float
    ulp: float
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the arrays are as near as they must be; what is not a number never is."""
        return self.error <= self.limit


def limit(kind: str, precision: Precision, size: int | None = None) -> float:
    """What an error of a kind (forward, gradients, training) may be; that of a ratio of ``size`` values.

    Two roundings of few values are unequal by chance: the ratio of their squares is F-distributed.
    """
    if not precision.short:
        return TOLERANCES[kind] * precision.share
    return RATIOS[kind] * (1 + 4 / math.sqrt(size) if size else 1)


def compare(
    port: np.ndarray,
    reference: np.ndarray,
    precision: Precision,
    kind: str,
    exact: np.ndarray | None = None,
    scale: float | None = None,
) -> Difference:
    """Compares the port's array with the reference's of the same shape, by the limits of a kind.

    ``exact`` is the reference in float32, given where the precision is a short one. ``scale`` is the size that errors
    are relative to; default: the reference's largest value. Against zeros the error is absolute.
    """
    a, b = np.asarray(port, np.float64).ravel(), np.asarray(reference, np.float64).ravel()
    apart = a - b
    distance = float(np.abs(apart).max(initial=0))
    size = float(np.abs(b).max(initial=0)) if scale is None else float(scale)
    error = distance / (size or 1.0)
    if precision.short:
        error = _ratio(a, b, np.asarray(exact, np.float64).ravel(), precision, scale or 0.0)
    norms = np.linalg.norm(a), np.linalg.norm(b)
    return Difference(
        max_abs=distance,
        scale=size,
        relative_l2=float(np.linalg.norm(apart) / (norms[1] or 1.0)),
        cosine=float(a @ b / (norms[0] * norms[1])) if all(norms) else float(norms[0] == norms[1]),
        ulp=_ulp(np.asarray(port), np.asarray(reference), precision) if math.isfinite(distance) else math.inf,
        error=error,
        limit=limit(kind, precision, a.size),
    )


def mismatch(precision: Precision) -> Difference:
    """What is said of outputs of different shapes: infinitely far apart."""
    return Difference(math.inf, math.nan, math.inf, math.nan, math.inf, math.inf, limit("forward", precision))


def severity(difference: Difference) -> float:
    """The error in units of its limit; infinite where it is not a number."""
    share = difference.error / difference.limit
    return math.inf if math.isnan(share) else share


def _ratio(port: np.ndarray, reference: np.ndarray, exact: np.ndarray, precision: Precision, scale: float) -> float:
    unit = float(ml_dtypes.finfo(precision.numpy).eps) / 2
    least = unit * max(np.linalg.norm(exact), scale * math.sqrt(exact.size))
    own, distance = max(np.linalg.norm(reference - exact), least), np.linalg.norm(port - exact)
    return float(distance / own) if own else float(distance and math.inf)


def _ulp(a: np.ndarray, b: np.ndarray, precision: Precision) -> float:
    """The largest distance in units in the last place: numbers of the type that lie between the two."""
    first, second = (_ordered(np.ascontiguousarray(x, precision.numpy), precision) for x in (a, b))
    upper, lower = np.maximum(first, second).astype(np.uint64), np.minimum(first, second).astype(np.uint64)
    return float((upper - lower).max(initial=0))


def _ordered(values: np.ndarray, precision: Precision) -> np.ndarray:
    """Numbers the values of a type in their order, both zeros being 0."""
    bits = values.view(precision.bits).astype(np.int64)
    return np.where(bits < 0, np.iinfo(precision.bits).min - bits, bits)
