"""What a mistyped name may have meant."""

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """``, did you mean 'x'?`` for the name most like this one; empty if none is."""
    near = difflib.get_close_matches(name, names, 1, 0.5)
    return f", did you mean {near[0]!r}?" if near else ""
