"""What the constants of a neuron must satisfy, checked when it is built."""

from collections.abc import Iterable
from typing import Any


def require_positive(owner: Any, *names: str) -> None:
    """Checks that fields, numbers or tuples of numbers, are above zero.

    Raises:
        ValueError: naming the class, the field and its value.
    """
    for name in names:
        value = getattr(owner, name)
        if not all(v > 0 for v in (value if isinstance(value, Iterable) else (value,))):
            raise ValueError(f"{type(owner).__name__}: {name} must be above 0, got {value!r}")


def require_below(owner: Any, low: str, high: str, *, or_equal: bool = False) -> None:
    """Checks that one field lies below another, or at it where ``or_equal``.

    Raises:
        ValueError: naming the class, both fields and their values.
    """
    a, b = getattr(owner, low), getattr(owner, high)
    if not (a < b or (or_equal and a == b)):
        raise ValueError(f"{type(owner).__name__}: {low} must be below {high}, got {a!r} and {b!r}")


def as_tuple(value: Any) -> tuple:
    """A scalar as a tuple of one, a sequence as a tuple."""
    return tuple(value) if isinstance(value, Iterable) else (value,)
