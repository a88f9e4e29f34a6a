"""Imports well when it is collected, and not when it is run."""

from pathlib import Path

_SEEN = Path("second_import.seen")
if _SEEN.exists():
    raise RuntimeError("the second import fails")
_SEEN.touch()


def test_is_lost():
    pass
