"""The types of tensors that files hold, by the name NumPy, torch and Flax agree on."""

import math

import ml_dtypes
import numpy as np

from interop.layout import Spec

_BEYOND_NUMPY = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(name)
    for name in (
        "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
        "bool", "complex64", "complex128",
    )
} | {name: np.dtype(getattr(ml_dtypes, name)) for name in _BEYOND_NUMPY}  # fmt: skip
EXTENDED = frozenset(_BEYOND_NUMPY)
"""Names of the types that ``ml_dtypes`` adds: other programs may not know them."""
MAX_AXES = 64
"""Of a NumPy array."""


def is_floating(dtype: np.dtype) -> bool:
    """Whether a type has floating-point numbers, real ones; NumPy does not know it of those it lacks."""
    return dtype.kind == "f" or dtype.name in EXTENDED


def nbytes(spec: Spec) -> int:
    """Bytes of a tensor, in Python's integers: they do not overflow."""
    return math.prod(spec.shape) * spec.dtype.itemsize


def raw(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array; NumPy gives none of the types it does not know."""
    return array.reshape(-1).view(np.uint8).data


def shape_problem(shape: object, dtype: np.dtype) -> str | None:
    """Says why ``shape``, as found in a file, is not that of an array; None if it is."""
    if not isinstance(shape, list | tuple) or not all(type(size) is int and size >= 0 for size in shape):
        return f"its shape {str(shape)[:100]} is no list of sizes"
    if len(shape) > MAX_AXES:
        return f"it has {len(shape)} axes, more than the {MAX_AXES} of NumPy"
    # an empty array may still name sizes that no computer counts to
    if math.prod(size or 1 for size in shape) * dtype.itemsize >= 2**63:
        return f"its shape {str(list(shape))[:100]} is larger than any memory"
    return None
