"""How long tests took: what batches and shards are balanced by."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from jaxkit.errors import ConfigError
from jaxkit.testing.results import Result
from jaxkit.testing.texts import write_whole

_RAN = ("passed", "failed", "flaky", "xfailed", "xpassed", "stale")


class Durations:
    """Seconds by test, kept in a JSON file from run to run.

    Args:
        path: of the file, which need not exist.
        root: what the ids of tests are relative to.

    Raises:
        ConfigError: if the file holds something else.
    """

    def __init__(self, path: Path, root: Path):
        self._path, self._root, self._seconds = path, root, {}
        if path.exists():
            try:
                self._seconds = {str(name): float(value) for name, value in json.loads(path.read_text()).items()}
            except (ValueError, AttributeError, TypeError) as error:
                raise ConfigError(f"{path}: no JSON of seconds by test ({error}); remove it") from error

    def of_tests(self) -> dict[str, float]:
        """Seconds by id."""
        return self._seconds

    def of_files(self) -> dict[str, float]:
        """Seconds by absolute path."""
        sums: dict[str, float] = defaultdict(float)
        for name, seconds in self._seconds.items():
            sums[str(self._root / name.partition("::")[0])] += seconds
        return dict(sums)

    def stamp(self, files: Sequence[Path]) -> str:
        """A hash of what shards are made by: equal stamps, equal shards."""
        known = self.of_files()
        lines = [f"{file.relative_to(self._root)} {known.get(str(file))}" for file in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]

    def keep(self, results: Iterable[Result], ids: Mapping[str, Collection[str]]) -> None:
        """Adds those of results that ran to their end, and drops files and tests that are gone.

        Args:
            results: of tests.
            ids: of all tests of each file that was collected, by its absolute path.

        Raises:
            OSError: if the file cannot be written.
        """
        new = {result.name: round(result.seconds, 3) for result in results if result.result in _RAN}
        both = {**self._seconds, **new}
        current = {file: set(found) for file, found in ids.items()}
        self._seconds = {name: both[name] for name in sorted(both) if self._there(name, current)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, json.dumps(self._seconds, indent=0) + "\n")

    def _there(self, name: str, ids: Mapping[str, Collection[str]]) -> bool:
        """Whether there still is such a test, as far as is known."""
        file = self._root / name.partition("::")[0]
        return name in ids[str(file)] if str(file) in ids else file.exists()
