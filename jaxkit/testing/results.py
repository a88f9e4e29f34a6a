"""What was collected, and what became of it."""

from typing import NamedTuple

BAD = ("failed", "error", "crashed", "timeout", "missing", "xpassed")
"""Results that fail a run."""
SHOWN = (*BAD, "stale", "flaky")
"""Results that somebody should read; ``stale`` proves nothing, in either way."""
WORDS = (*SHOWN, "xfailed", "skipped", "passed")
"""All results; ``xpassed`` is a success that was not expected, ``flaky`` one that needed another try."""


class Test(NamedTuple):
    """A test as it was collected."""

    id: str
    file: str
    """Its absolute path."""
    level: int = 0
    models: tuple[str, ...] = ()
    timeout: float | None = None
    """Seconds, of its own marker."""
    numeric: bool = False
    """Whether it compares with a numeric baseline: such a test has one try."""
    environment: str = "default"


class Result(NamedTuple):
    """What became of a test, of one of its subtests, or of a file that gave none."""

    name: str
    result: str
    """One of :data:`WORDS`."""
    info: str
    """In a line: why."""
    start: float
    stop: float
    """Seconds since 1970."""
    models: tuple[str, ...] = ()
    level: int = 0
    output: str = ""
    """Traceback, log and what was printed; of what is not abnormal, nothing."""
    gpu: str = ""
    """Its use after a slow test."""

    @property
    def seconds(self) -> float:
        """From the start of its first fixture to the end of its last."""
        return self.stop - self.start

    @property
    def bad(self) -> bool:
        """Whether it fails the run."""
        return self.result in BAD
