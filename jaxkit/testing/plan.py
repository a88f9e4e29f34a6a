"""What is run where: test files, the run config, shards, and batches of files for one process each."""

import configparser
import os
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from jaxkit.errors import ConfigError
from jaxkit.spelling import nearest
from jaxkit.testing.results import Test

_INI_FILES = {
    "pytest.toml": "[pytest]", ".pytest.toml": "[pytest]", "pytest.ini": "", ".pytest.ini": "",
    "pyproject.toml": "[tool.pytest", "tox.ini": "[pytest]", "setup.cfg": "[tool:pytest]",
}  # fmt: skip
PYTHON_FILES = ("test_*.py", "*_test.py")
"""How pytest takes test files to be named where nothing says otherwise."""
_LEAST_SECONDS = 60.0
"""Of a batch that could be smaller: a process takes some seconds to import what tests need."""
_USUAL_SECONDS, _LEVEL_FACTOR = 0.25, 8.0
"""Of a test of level 0, and how much longer one of the next takes: the means of our own suite."""


class Environment(NamedTuple):
    """Packages that some tests need in other versions than the rest."""

    requirements: tuple[Path, ...] = ()
    """Files for ``pip install -r``."""
    dependencies: tuple[str, ...] = ()
    """What ``pip install`` takes."""
    tests: tuple[str, ...] = ()


class RunConfig(NamedTuple):
    """The run config: which files have a process of their own, and which an environment."""

    isolated: tuple[str, ...] = ()
    environments: Mapping[str, Environment] = {"default": Environment()}


class Batch(NamedTuple):
    """Files for one process."""

    tests: tuple[Test, ...]
    seconds: float
    """That are expected."""


def read_config(path: Path) -> RunConfig:
    """Reads a run config.

    Raises:
        ConfigError: if it is no such file, has an unknown key, or a value of another kind.
    """
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: no YAML: {error}") from error
    _known(path, "", raw, ("isolated", "envs"))
    found = {"default": Environment()}
    _known(path, "envs", raw.get("envs") or {}, None)
    for name, section in (raw.get("envs") or {}).items():
        section, where = section or {}, f"envs.{name}"
        _known(path, where, section, Environment._fields)
        lists = {key: _strings(path, f"{where}.{key}", section.get(key)) for key in Environment._fields}
        files = tuple(path.parent / file for file in lists["requirements"])
        for file in files:
            if not file.is_file():
                raise ConfigError(f"{path}: {where}.requirements: there is no file {file}")
        found[name] = Environment(files, lists["dependencies"], lists["tests"])
    return RunConfig(_strings(path, "isolated", raw.get("isolated")), found)


def _known(path: Path, where: str, section: Any, keys: Sequence[str] | None) -> None:
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {where or 'the file'} must have keys, such as {', '.join(keys or ('default',))}")
    for key in section:
        if keys is not None and key not in keys:
            inside = f"in {where} " if where else ""
            raise ConfigError(f"{path}: {inside}there is no key {key!r}{nearest(str(key), keys)}")


def _strings(path: Path, where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value or [], list) or not all(isinstance(item, str) for item in value or []):
        raise ConfigError(f"{path}: {where} must be a list of strings")
    return tuple(value or [])


def discover(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Finds the test files below a folder, in order, through links too, under the names they have there.

    Hidden folders and virtual environments are no part of it.

    Raises:
        ConfigError: if there are none.
    """
    if not folder.is_dir():
        raise ConfigError(f"--test_dir {folder}: there is no such folder")
    found = []
    for parent, folders, files in os.walk(folder.resolve(), followlinks=True):
        if os.path.islink(parent) and os.path.realpath(parent) in map(os.path.realpath, Path(parent).parents):
            # a link to a folder around it has no end
            folders.clear()
            continue
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".")
            and name not in ("__pycache__", "node_modules")
            and not Path(parent, name, "pyvenv.cfg").exists()
        ]
        found += [Path(parent, name) for name in files if any(fnmatch(name, pattern) for pattern in patterns)]
    if not found:
        named = " or ".join(map(repr, patterns))
        raise ConfigError(f"--test_dir {folder}: no file in it or below is named like {named}")
    return sorted(found)


def chosen(files: Sequence[Path], names: Iterable[str], where: str) -> list[Path]:
    """The files that some names mean: a path or the end of one; a file name alone means all files of that name.

    Raises:
        ConfigError: if a name means none of them.
    """
    found = set()
    for name in names:
        parts = Path(name).parts
        meant = [file for file in files if file.parts[-len(parts) :] == parts]
        if not meant:
            near = nearest(name, {file.name for file in files} | {"/".join(file.parts[-2:]) for file in files})
            raise ConfigError(f"{where}: none of the {len(files)} test files is {name!r}{near}")
        found.update(meant)
    return [file for file in files if file in found]


def assigned(files: Sequence[Path], config: RunConfig) -> dict[Path, str]:
    """The environment of each file.

    Raises:
        ConfigError: if an environment names a file that is not there, or two name the same.
    """
    places: dict[Path, str] = {}
    for name, environment in config.environments.items():
        for file in chosen(files, environment.tests, f"envs.{name}.tests"):
            if file in places:
                raise ConfigError(f"envs.{name}.tests: {file.name} belongs to {places[file]} already")
            places[file] = name
    return {file: places.get(file, "default") for file in files}


def shard(files: Sequence[Path], seconds: Mapping[str, float], index: int, count: int) -> list[Path]:
    """The ``index``-th (from 1) of ``count`` parts that take about as long: the longest file first, to the emptiest.

    A file that ``seconds`` does not have counts as the mean of those that it has. Every machine must be given the
    same files and seconds.
    """
    usual = statistics.fmean(seconds.values()) if seconds else 1.0
    costs = {file: seconds.get(str(file), usual) for file in files}
    loads, parts = [0.0] * count, [[] for _ in range(count)]
    for file in sorted(files, key=lambda file: (-costs[file], str(file))):
        emptiest = min(range(count), key=lambda i: (loads[i], i))
        loads[emptiest] += costs[file]
        parts[emptiest].append(file)
    return sorted(parts[index - 1])


def batches(
    tests: Sequence[Test], seconds: Mapping[str, float], workers: int, alone: frozenset[str] = frozenset()
) -> list[Batch]:
    """Spreads tests over processes, a file whole in one of them, the longest first.

    Batches shrink towards the end, so that workers end together: each is half a worker's share of what is left. Files
    that would be imported under the same name never share a process.

    Args:
        tests: of one environment.
        seconds: of tests, by id, where known; others count as the mean of those of their level.
        workers: that take batches.
        alone: files that have a process of their own.
    """
    usual = _usual(tests, seconds)
    files: dict[str, list[Test]] = {}
    for test in tests:
        files.setdefault(test.file, []).append(test)
    costs = {file: sum(seconds.get(test.id, usual[test.level]) for test in those) for file, those in files.items()}
    ordered = sorted(files, key=lambda file: (-costs[file], file))
    made = [[file] for file in ordered if file in alone]
    rest = [file for file in ordered if file not in alone]
    left = sum(costs[file] for file in rest)
    least = min(_LEAST_SECONDS, left / workers)
    while rest:
        target = max(least, left / (2 * workers))
        batch: dict[str, str] = {}
        for file in list(rest):
            module = module_name(Path(file))
            fits = not batch or sum(costs[other] for other in batch.values()) + costs[file] <= target
            if fits and module not in batch:
                batch[module] = file
                rest.remove(file)
        left -= sum(costs[file] for file in batch.values())
        made.append(list(batch.values()))
    grouped = [
        Batch(tuple(test for file in batch for test in files[file]), sum(costs[f] for f in batch)) for batch in made
    ]
    return sorted(grouped, key=lambda batch: -batch.seconds)


def _usual(tests: Sequence[Test], seconds: Mapping[str, float]) -> dict[int, float]:
    """How long a test of a level takes of which nothing is known."""
    known: dict[int, list[float]] = {test.level: [] for test in tests}
    for test in tests:
        known[test.level] += [seconds[test.id]] if test.id in seconds else []
    return {
        level: statistics.fmean(found) if found else _USUAL_SECONDS * _LEVEL_FACTOR**level
        for level, found in known.items()
    }


def module_name(path: Path) -> str:
    """The name that pytest imports a file under: with those of the packages around it."""
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").exists() and folder != folder.parent:
        parts.append(folder.name)
        folder = folder.parent
    return ".".join(reversed(parts))


class Root(NamedTuple):
    """Where pytest is run for the tests in a folder."""

    folder: Path
    arguments: tuple[str, ...]
    """That keep pytest from looking for itself: from the files of another batch it would find another root."""
    python_files: tuple[str, ...] = PYTHON_FILES
    """How test files are named there."""


def pytest_root(folder: Path) -> Root:
    """Finds the nearest configuration of pytest, in a folder or around it.

    Raises:
        ConfigError: if it cannot be read.
    """
    folder = folder.resolve()
    for parent in (folder, *folder.parents):
        for name, section in _INI_FILES.items():
            file = parent / name
            if file.is_file() and section in (text := file.read_text(encoding="utf-8", errors="replace")):
                return Root(parent, (f"--rootdir={parent}", f"--config-file={file}"), _python_files(file, text))
    root = Path.cwd() if folder.is_relative_to(Path.cwd()) else folder
    return Root(root, (f"--rootdir={root}",))


def _python_files(file: Path, text: str) -> tuple[str, ...]:
    """What a configuration of pytest says of the names of test files."""
    try:
        if file.suffix == ".toml":
            read = tomllib.loads(text)
            tool = read if file.name != "pyproject.toml" else read.get("tool", {})
            section = tool.get("pytest", {})
            found = section.get("ini_options", section).get("python_files")
        else:
            parser = configparser.RawConfigParser(strict=False)
            parser.read_string(text)
            found = parser.get("tool:pytest" if file.name == "setup.cfg" else "pytest", "python_files", fallback=None)
    except (tomllib.TOMLDecodeError, configparser.Error) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    return tuple(found.split() if isinstance(found, str) else found or PYTHON_FILES)
