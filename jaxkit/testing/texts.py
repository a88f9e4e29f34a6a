"""Text that tests have printed, fit for others to read; and files that are written whole."""

import os
import re
import time
from pathlib import Path

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
# what XML 1.0 has no place for, and no terminal should be sent
_FORBIDDEN = re.compile("[^\t\n\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(text: str) -> str:
    """Drops a terminal's escapes, and puts � for what is no character of a text."""
    return _FORBIDDEN.sub("\ufffd", _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def clock(moment: float) -> str:
    """A moment of the day in UTC, to the millisecond."""
    return f"{time.strftime('%H:%M:%S', time.gmtime(moment))}.{int(moment % 1 * 1000):03d}"


def stamp(moment: float) -> str:
    """A moment in UTC as ISO 8601 has it."""
    return f"{time.strftime('%Y-%m-%d', time.gmtime(moment))}T{clock(moment)}Z"


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that is there in full or not at all.

    As :func:`jaxkit.tracking.write_atomically` does, which the runner cannot ask: it would import jax.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
