"""Weights between PyTorch and Flax, both ways, bit for bit; and the proof that both sides compute the same numbers.

Five functions: :func:`load`, :func:`save`, :func:`convert`, :func:`table`, :func:`crosscheck`; see docs/interop.md.
"""

from importlib import import_module
from typing import Any

# Where each is defined; imported when it is asked for, since some need jax and torch and others neither.
_FUNCTIONS = {
    "load": "interop.conversion",
    "save": "interop.conversion",
    "convert": "interop.conversion",
    "table": "interop.tables",
    "crosscheck": "interop.parity",
}
__all__ = ["convert", "crosscheck", "load", "save", "table"]


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module 'interop' has no attribute {name!r}")
    return getattr(import_module(_FUNCTIONS[name]), name)
