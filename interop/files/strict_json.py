"""JSON as its standard has it: no key twice, no NaN, UTF-8; an object at the top."""

import json
from pathlib import Path
from typing import Any

from interop.files.errors import FileError, shown


def parse(raw: bytes, path: Path, what: str) -> dict[str, Any]:
    """Reads a JSON object that ``path`` holds as its ``what``.

    Raises:
        FileError: if it is none; a key that is there twice is named.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = {}
        for key, value in pairs:
            if key in found:
                raise FileError(path, f"is twice in the {what}, and which one is meant cannot be told", key)
            found[key] = value
        return found

    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"the {what} is no valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise FileError(path, f"the {what} is no JSON object")
    return found


def text_map(value: Any, path: Path, what: str) -> dict[str, str]:
    """Checks that ``value`` maps text to text, as ``what`` must.

    Raises:
        FileError: if not; the entry is named.
    """
    if not isinstance(value, dict):
        raise FileError(path, f"{what} is no JSON object")
    for key, text in value.items():
        if not isinstance(text, str) or not _encodable(key + text):
            raise FileError(path, f"{what} must map text to text, and maps it to {ascii(text)[:100]}", key)
    return value


def require_printable(name: str, path: Path) -> None:
    """Refuses the name of a tensor that could not be shown: no model has one, and terminals obey some."""
    if not name.isprintable():
        raise FileError(path, f"the name {shown(name)} of a tensor has characters that do not print")


def _encodable(text: str) -> bool:
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _refuse(constant: str) -> None:
    raise ValueError(f"it has {constant}")
