"""The folder of a run: whose it is, what it holds already, what it says in the end."""

import contextlib
import datetime
import fcntl
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from jaxkit import checkpoint, parallel
from jaxkit.config import Config, load
from jaxkit.errors import ConfigError
from jaxkit.tracking import read_metrics, write_atomically

PACKAGES = ("jaxkit", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# What a resumed run may do otherwise than it began: none of it changes an update, but for the length of the run.
MAY_CHANGE = {
    "tracking", "data.threads", "data.eval_batch_size", "train.steps", "train.epochs", "train.log_every",
    "train.eval_every", "train.checkpoint_every", "train.keep_last", "train.keep_best", "train.parallel",
}  # fmt: skip
WRITTEN = (
    "checkpoints", "damaged", "tensorboard", "samples", "metrics.jsonl", "results.json", "curves.png", "config.yaml",
    "environment.json", "evaluation_*.json", "nonfinite.json", "nonfinite_batch.npz", "wandb_id",
)  # fmt: skip


@contextlib.contextmanager
def held(folder: Path, wait: bool = False) -> Iterator[None]:
    """Makes the workdir and keeps other runs out of it; with ``wait``, until one that is there has ended.

    Raises:
        ConfigError: if another run is there and ``wait`` is off.
    """
    if jax.process_index():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"--workdir {folder}: cannot be written to: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another run is at work in {folder}; wait for it, or choose another --workdir") from None
        yield


def prepare(folder: Path, config: Config, resume: str, force: bool) -> int | None:
    """Decides where to begin: a saved step, or None for a new run. Leaves ``config.yaml`` and ``environment.json``.

    Args:
        folder: the workdir.
        config: of the run to come.
        resume: ``latest`` (a new run if there is nothing to resume), a step, or ``never``.
        force: whether what is there may be overwritten.

    Raises:
        ConfigError: if the folder holds a run of another config, no run but files one would overwrite, or newer steps
            than the one asked for.
    """
    start = _prepare(folder, config, resume, force) if jax.process_index() == 0 else None
    return parallel.from_first_process(start)


def _prepare(folder: Path, config: Config, resume: str, force: bool) -> int | None:
    found = [path.name for path in _written(folder)]
    if resume == "never" or "config.yaml" not in found:
        if found and not force:
            raise ConfigError(
                f"{folder} already holds {', '.join(found)}; choose another --workdir, or overwrite it with --force"
            )
        _clear(folder)
    else:
        _match(folder, config, resume, force)
    directory = folder / "checkpoints"
    for line in checkpoint.set_damaged_aside(directory):
        print(line, file=sys.stderr)
    steps = checkpoint.saved_steps(directory)
    start = max(steps, default=None)
    if resume not in ("latest", "never"):
        start = _chosen(folder, int(resume), steps, force)
    write_atomically(folder / "config.yaml", config.yaml())
    write_atomically(folder / "environment.json", json.dumps(_environment(config), indent=2))
    return start


def _match(folder: Path, config: Config, resume: str, force: bool) -> None:
    """Compares the config of the run in the folder; clears it where that run cannot be gone on with but overwritten."""
    changes = _changes(load(folder / "config.yaml"), config)
    blocking = [line for key, line in changes.items() if not _may_change(key)]
    if not blocking:
        for line in changes.values():
            print(f"changed since the run began: {line}")
    elif force and resume == "latest":
        _clear(folder)
    else:
        shown = "".join(f"\n  {line}" for line in blocking)
        flags = "--force" if resume == "latest" else "--resume never --force"
        raise ConfigError(
            f"{folder} holds a run of another config:{shown}\nchoose another --workdir, or overwrite it with {flags}"
        )


def _chosen(folder: Path, step: int, steps: list[int], force: bool) -> int:
    """The step to resume from, with the steps after it removed."""
    if step not in steps:
        raise ConfigError(
            f"--resume {step}: {folder} holds no such step; it has {', '.join(map(str, steps)) or 'none'}"
        )
    newer = [s for s in steps if s > step]
    if newer and not force:
        raise ConfigError(
            f"--resume {step}: {folder} holds newer steps too ({', '.join(map(str, newer))}), which this run would "
            "write anew; drop them with --force"
        )
    for s in newer:
        shutil.rmtree(folder / "checkpoints" / str(s))
    return step


def finish(folder: Path, config: Config, train: dict[str, Any]) -> dict[str, Any]:
    """Writes ``results.json``: best and last metrics, what ``train`` tells of the loop, devices, versions."""
    metric, mode = config.ranking()
    records = [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "eval"]
    names = ("step", *type(config.task).METRICS)
    evaluations = [{name: record[name] for name in names if name in record} for record in records]
    sign = 1 if mode == "max" else -1
    ranked = [record for record in evaluations if record[metric] is not None]
    devices = jax.devices()
    results = {
        "best": max(ranked, key=lambda record: (sign * record[metric], record["step"]), default=None),
        "last": evaluations[-1] if evaluations else None,
        "train": train,
        "devices": {"count": len(devices), "kind": devices[0].device_kind, "processes": jax.process_count()},
        "versions": _versions(),
        "config": config.digest(),
    }
    if jax.process_index() == 0:
        write_atomically(folder / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def finished(folder: Path) -> dict[str, Any] | None:
    """The results of a run that came to its end."""
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _may_change(key: str) -> bool:
    return key in MAY_CHANGE or key.split(".")[0] in MAY_CHANGE


def _changes(old: Config, new: Config) -> dict[str, str]:
    """A line for each dotted key whose value differs."""
    return dict(_differences(old.model_dump(mode="json"), new.model_dump(mode="json"), ""))


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    elif old != new:
        yield path, f"{path}: {old!r} -> {new!r}"


def _written(folder: Path) -> list[Path]:
    """What runs have left in the folder."""
    return [path for pattern in WRITTEN for path in folder.glob(pattern)]


def _clear(folder: Path) -> None:
    for path in _written(folder):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _environment(config: Config) -> dict[str, Any]:
    return {
        "config": config.digest(),
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "git": _git(),
        "versions": _versions(),
    }


def _git() -> dict[str, Any] | None:
    """Commit and changed files of the checkout this package runs from; None where there is none, or no git."""
    root = Path(__file__).parent

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": ask("status", "--porcelain", "-uno").splitlines()}
    except (OSError, subprocess.CalledProcessError):
        return None
