"""What the constants of neurons, connections and rules must satisfy, checked when they are built."""

from collections.abc import Iterable
from typing import Any, SupportsIndex

import jax

Sizes = tuple[SupportsIndex, ...] | SupportsIndex
"""A shape as it may be given: whole numbers of Python or NumPy."""


def require_positive(owner: Any, *names: str) -> None:
    """Checks that fields, numbers or tuples of numbers, are above zero.

    Raises:
        ValueError: naming the class, the field and its value.
    """
    for name in names:
        value = getattr(owner, name)
        if not all(v > 0 for v in (value if isinstance(value, Iterable) else (value,))):
            raise ValueError(f"{type(owner).__name__}: {name} must be above 0, got {value!r}")


def require_not_negative(owner: Any, *names: str) -> None:
    """Checks that fields, numbers, are 0 or more.

    Raises:
        ValueError: naming the class, the field and its value.
    """
    for name in names:
        value = getattr(owner, name)
        if not value >= 0:
            raise ValueError(f"{type(owner).__name__}: {name} must be 0 or more, got {value!r}")


def require_whole(owner: Any, *names: str, least: int = 1, axes: int | None = None) -> None:
    """Checks that fields are whole numbers, or tuples of them.

    Args:
        owner: has the fields.
        names: of the fields.
        least: the least that a number can be.
        axes: the only length of a tuple, 0: none may be given; None: any.

    Raises:
        ValueError: naming the class, the field and its value.
    """
    kind = "a whole number" + {None: " or a tuple of them", 0: ""}.get(axes, f" or {axes} of them")
    for name in names:
        value = getattr(owner, name)
        sizes = as_tuple(value)
        fits = axes is None or not isinstance(value, Iterable) or len(sizes) == axes
        if not fits or not all(isinstance(size, SupportsIndex) and size >= least for size in sizes):
            raise ValueError(f"{type(owner).__name__}: {name} must be {kind}, {least} or more, got {value!r}")


def require_below(owner: Any, low: str, high: str, *, or_equal: bool = False) -> None:
    """Checks that one field lies below another, or at it where ``or_equal``.

    Raises:
        ValueError: naming the class, both fields and their values.
    """
    a, b = getattr(owner, low), getattr(owner, high)
    if not (a < b or (or_equal and a == b)):
        raise ValueError(f"{type(owner).__name__}: {low} must be below {high}, got {a!r} and {b!r}")


def known(x: Any) -> bool:
    """Whether the values of an array or a number can be looked at, by NumPy, and are not being traced."""
    return not isinstance(x, jax.core.Tracer)


def as_tuple(value: Any) -> tuple:
    """A scalar as a tuple of one, a sequence as a tuple."""
    return tuple(value) if isinstance(value, Iterable) else (value,)


def as_shape(sizes: Sizes) -> tuple[int, ...]:
    """A shape as arrays have it."""
    return tuple(map(int, as_tuple(sizes)))
