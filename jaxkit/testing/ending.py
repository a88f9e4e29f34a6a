"""What a worker process left behind: its events, its log, and how it ended."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxkit.testing.results import Test

_TAIL, _HEAD = 20_000, 4_000
# of faulthandler's traces: how pytest came to call a test
_BELOW = re.compile(r'(?:^  File "[^"\n]*(?:[/\\](?:_pytest|pluggy)[/\\]|[/\\]testing[/\\]worker\.py)[^\n]*\n)+', re.M)


@dataclass(frozen=True)
class Ending:
    """All that a worker process left behind."""

    files: tuple[str, ...]
    tests: tuple[Test, ...] | None
    """Those it was to run; None: it was to collect."""
    environment: str
    events: list[dict[str, Any]]
    code: int | None
    """Of its exit; None: the runner ended it."""
    fate: str
    """How it ended, in words."""
    verdict: str
    """The result of whatever it was at when it died: crashed, timeout, or missing where the runner was stopped."""
    log: Path
    terminal: Path
    gpu: dict[str, str]
    """Its use after slow tests, by id."""
    started: float
    ended: float

    @property
    def orderly(self) -> bool:
        """Whether pytest came to its end with every test behind it."""
        return self.exit_event is not None and self.exit_event["code"] in (0, 1, 5)

    @property
    def exit_event(self) -> dict[str, Any] | None:
        """The last word of a process that came to its end."""
        last = self.events[-1] if self.events else {}
        return last if last.get("event") == "exit" else None

    @property
    def importing(self) -> str | None:
        """The file that was being imported at the end."""
        last = self.events[-1] if self.events else {}
        return last["file"] if last.get("event") == "collecting" else None

    @cached_property
    def reports(self) -> dict[str, list[dict[str, Any]]]:
        """The reports of each test that has some, by id."""
        found: dict[str, list[dict[str, Any]]] = {}
        for event in self.events:
            if event["event"] == "report":
                found.setdefault(event["id"], []).append(event)
        return found

    def output(self, start: int = 0, stop: int | None = None) -> str:
        """What was printed between two lengths of the log, in the middle of it left out if it is much."""
        stop = self.log.stat().st_size if stop is None else stop
        left = stop - start - _HEAD - _TAIL
        with self.log.open("rb") as file:
            file.seek(start)
            if left <= 0:
                return file.read(max(0, stop - start)).decode(errors="replace")
            head = file.read(_HEAD).decode(errors="replace")
            file.seek(stop - _TAIL)
            return f"{head}\n... {left:,} bytes ...\n{file.read(_TAIL).decode(errors='replace')}"

    def everything(self) -> str:
        """What pytest itself and the process said."""
        internal = [event["text"] for event in self.events if event["event"] == "internal"]
        said = self.terminal.read_text(encoding="utf-8", errors="replace") if self.terminal.exists() else ""
        return without_pytest("\n".join([*internal, said[-_TAIL:], self.output()]))


def without_pytest(text: str) -> str:
    """Leaves out of a faulthandler's trace how pytest came to call a test."""
    return _BELOW.sub("  ...\n", text)
