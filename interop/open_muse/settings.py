"""A config of open-muse's trainer, flattened, and what is wrong with it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from interop.open_muse.keys import KEYS
from jaxkit.errors import ConfigError
from jaxkit.spelling import nearest

NETWORK = "model.transformer."


class Settings:
    """A flattened config that is asked for its values; what is wrong with them is put together."""

    def __init__(self, raw: Mapping[str, Any], folder: Path, devices: int):
        self.folder, self.devices, self.told, self.problems = folder, devices, [], []
        if not isinstance(raw, Mapping):
            raise ConfigError("open-muse's config: is no mapping")
        values = dict(_flat(raw))
        self.values = {key: self._resolved(key, value, values) for key, value in values.items()}
        self.network = {
            key.removeprefix(NETWORK): value
            for key, value in self.values.items()
            if key.startswith(NETWORK) and key not in KEYS
        }
        for key, value in self.values.items():
            if key.startswith(NETWORK) and key not in KEYS:
                continue
            if not key.startswith("mask_schedule.params.") and key not in KEYS:
                self.problems.append(f"{key}: unknown key{nearest(key, KEYS)}")
            elif value == "???":
                self.problems.append(f"{key}: is to be filled in")
            elif key in KEYS and KEYS[key].only is not None and value not in KEYS[key].only:
                self.problems.append(f"{key}: {value!r} is not offered: {KEYS[key].why}")

    def raise_any(self) -> None:
        """Raises ConfigError with every problem found so far, if there is one."""
        if self.problems:
            raise ConfigError("open-muse's config: " + "".join(f"\n  {problem}" for problem in self.problems))

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or ``default``."""
        return self.values.get(key, default)

    def need(self, key: str) -> Any:
        """The value of a key that no default is known of."""
        if self.values.get(key) is None:
            self.problems.append(f"{key}: is missing")
        return self.values.get(key)

    def one(self, key: str, kinds: Mapping[str, str], default: str) -> str:
        """What the value of a key is called here."""
        value = self.get(key, default)
        if value not in kinds:
            self.problems.append(f"{key}: {value!r} is none of {', '.join(kinds)}")
        return kinds.get(value, next(iter(kinds.values())))

    def local(self, key: str) -> str:
        """A folder on disk for weights; a name on the hub is to be downloaded."""
        name = str(self.need(key))
        if Path(name).is_absolute() or Path(name).is_dir():
            if not Path(name).exists():
                self.told.append(f"{key}: {name} is not on this machine")
            return name
        place = f"weights/{PurePosixPath(name).name}"
        self.told.append(f"{key}: download {name} to {place}")
        return place

    def _resolved(self, key: str, value: Any, values: Mapping[str, Any]) -> Any:
        found = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if found is None:
            return value
        if found[1] not in values:
            self.problems.append(f"{key}: {value} refers to a key that is not there")
        return values.get(found[1])


def _flat(raw: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in raw.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
