"""Environments for tests that need other packages: made once for what they require, laid over the interpreter's own."""

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from jaxkit.errors import UserError
from jaxkit.testing.plan import Environment

_READY = "ready"
# another file of requirements or constraints, in one of pip's four spellings
_INCLUDED = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[\s=]*(\S+)", re.M)


class EnvironmentFailed(UserError):
    """An environment could not be made; the message has what pip said."""


def python_of(environment: Environment, folder: Path) -> str:
    """The interpreter of an environment, which is made if need be; this one where nothing is required.

    It sees the packages of this interpreter behind its own, and nothing is ever installed into this one.

    Args:
        environment: what it requires.
        folder: of all environments; each has a folder named after the hash of what it requires.

    Raises:
        EnvironmentFailed: if it cannot be made.
    """
    if not (environment.requirements or environment.dependencies):
        return sys.executable
    place = folder / key(environment)
    python = place / "bin" / "python"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{place.name}.lock").open("w") as lock:
        # two runners want the same environment: the second waits
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / _READY).exists():
            shutil.rmtree(place, ignore_errors=True)
            _call([sys.executable, "-m", "venv", "--without-pip", str(place)])
            _lay_over(place)
            files = [part for file in environment.requirements for part in ("-r", str(file))]
            quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
            _call([str(python), "-m", "pip", "install", *quiet, *files, *environment.dependencies])
            (place / _READY).touch()
    return str(python)


def key(environment: Environment) -> str:
    """The hash of all that an environment depends on: what it requires, word for word, and this interpreter."""
    parts = [sys.version, sys.prefix, *environment.dependencies]
    parts += [text for file in environment.requirements for text in _texts(file, set())]
    # each with its length: no two lists make the same text
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()[:16]


def _texts(file: Path, seen: set[Path]) -> Iterator[str]:
    """A file of requirements, and those that it includes."""
    if file in seen or not file.is_file():
        return
    seen.add(file)
    text = file.read_text(encoding="utf-8")
    yield text
    for name in _INCLUDED.findall(text):
        yield from _texts(file.parent / name, seen)


def _lay_over(place: Path) -> None:
    """Lets the environment see this interpreter's packages, behind its own."""
    site = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    below = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # addsitedir reads their .pth files as well, where editable installs are
    lines = [f"import site; site.addsitedir({path!r})" for path in sorted(below)]
    (site / "_below.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _call(command: list[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise EnvironmentFailed(
            f"{' '.join(command)} ended with {finished.returncode}:\n{finished.stdout}{finished.stderr}"
        )
