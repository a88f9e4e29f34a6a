"""What a run can be asked for."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxkit.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """The command line; see ``scripts/run_tests.py --help``.

    Raises:
        ConfigError: if what is asked for makes no sense.
    """

    test_dir: Path = Path("tests")
    pattern: str | None = None
    """None: what pytest's own ``python_files`` says."""
    suites: Sequence[str] = ()
    level: int = 0
    run_config: Path | None = None
    subprocess: bool = False
    result_dir: Path | None = None
    parallel: int | None = 1
    """None: as many as there are GPUs, or else processors."""
    gpus: str | None = None
    timeout: float = 600.0
    retries: int = 0
    shard: tuple[int, int] | None = None
    durations: Path | None = None
    baseline: str = "check"
    reason: str = ""
    arguments: tuple[str, ...] = ()
    """Of pytest."""

    def __post_init__(self):
        if not self.timeout > 0:
            raise ConfigError(f"--timeout {self.timeout:g}: give seconds, more than 0")
        if self.retries < 0:
            raise ConfigError(f"--retries {self.retries}: 0 or more")
        if self.baseline == "record" and not self.reason.strip():
            raise ConfigError("--baseline record: say why with --reason; it is kept in the baseline for who reads it")
        if self.baseline == "check" and self.reason:
            raise ConfigError("--reason goes with --baseline record")
        if self.result_dir and self.result_dir.exists() and not self.result_dir.is_dir():
            raise ConfigError(f"--result_dir {self.result_dir} is no folder")


def workers(text: str) -> int | None:
    """The argparse type of ``--parallel``: a number, or None for ``auto``."""
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of workers nor auto")
    return int(text)


def shard(text: str) -> tuple[int, int]:
    """The argparse type of ``--shard``: ``i/n`` with i from 1 to n."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: write i/n, with i from 1 to n, such as 2/3")
    return int(index), int(count)
