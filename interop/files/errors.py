"""What a weight file can have wrong with it, and how it is said: which file, which key, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from jaxkit.errors import ConfigError, UserError


class FileError(UserError):
    """A weight file is damaged, unsafe, or of a kind that is not read.

    Args:
        path: of the file or folder.
        problem: what is wrong.
        key: the tensor or entry it is about.
        remedy: what to do.
    """

    exit_code = 4

    def __init__(self, path: Path, problem: str, key: str | None = None, remedy: str = "get or export the file again"):
        self.path, self.key = path, key
        super().__init__(
            f"{path}: {problem}; {remedy}" if key is None else f"{path}: {shown(key)}: {problem}; {remedy}"
        )


def shown(name: str) -> str:
    """A name out of a file, fit for a terminal: whatever does not print is escaped, what is long is cut."""
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= 200 else f"{name[:200]}..."


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names with commas between them; of many, the first."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def missing(path: Path) -> ConfigError:
    """That there is no such file, with the most similar name in its folder."""
    folder = path.parent
    if not folder.is_dir():
        return ConfigError(f"{path} does not exist, nor does its folder {folder}")
    nearest = get_close_matches(path.name, [other.name for other in folder.iterdir()], n=1, cutoff=0)
    return ConfigError(f"{path} does not exist" + (f"; the nearest name there is {nearest[0]}" if nearest else ""))
