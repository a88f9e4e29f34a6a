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
from typing import Any, NamedTuple

import jax

from jaxkit import checkpoint, parallel
from jaxkit.config import Config, load, with_sources
from jaxkit.errors import ConfigError
from jaxkit.tracking import read_metrics, write_atomically

PACKAGES = ("jaxkit", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# What a resumed run may do otherwise than it began: none of it changes an update, but for the length of the run, which
# the schedule depends on, and for dropout under pmap, which draws other masks than under jit.
MAY_CHANGE = {
    "tracking", "data.threads", "data.eval_batch_size", "train.steps", "train.epochs", "train.log_every",
    "train.log_gradients", "train.eval_every", "train.checkpoint_every", "train.keep_last", "train.keep_best",
    "train.parallel", "train.sample_every", "train.early_stop", "task.sampler", "task.validation_prompts",
    "task.validation_images",
}  # fmt: skip
WRITTEN = (
    "checkpoints", "damaged", "tensorboard", "samples", "metrics.jsonl", "results.json", "curves.png", "config.yaml",
    "environment.json", "evaluation_*.json", "nonfinite.json", "nonfinite_batch.npz", "wandb_id",
    "pictures", "learned_embeds*.safetensors",
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


class Plan(NamedTuple):
    """Where a run is to begin, and what it would overwrite in its workdir."""

    start: int | None
    """A saved step; None for a new run."""
    clear: bool = False
    """Whether all that an earlier run wrote goes."""
    newer: tuple[int, ...] = ()
    """Saved steps after ``start`` that go."""


def plan(folder: Path, config: Config, resume: str, force: bool) -> Plan:
    """Decides where to begin. Changes nothing, but for checkpoints found damaged, which are set aside.

    Args:
        folder: the workdir.
        config: of the run to come.
        resume: ``latest`` (a new run if there is nothing to resume), a step, or ``never``.
        force: whether what is there may be overwritten.

    Raises:
        ConfigError: if the folder holds a run of another config, no run but files one would overwrite, or newer steps
            than the one asked for.
    """
    first = _plan(folder, config, resume, force) if jax.process_index() == 0 else Plan(None)
    return first._replace(start=parallel.from_first_process(first.start))


def _plan(folder: Path, config: Config, resume: str, force: bool) -> Plan:
    found = [path.name for path in _written(folder)]
    if resume == "never" or "config.yaml" not in found:
        if found and not force:
            raise ConfigError(
                f"{folder} already holds {', '.join(found)}; choose another --workdir, or overwrite it with --force"
            )
        if resume not in ("latest", "never"):
            raise ConfigError(f"--resume {resume}: {folder} holds no run, hence no such step; it has none")
        return Plan(None, clear=True)
    if not _goes_on(folder, config, resume, force):
        return Plan(None, clear=True)
    for line in checkpoint.set_damaged_aside(folder / "checkpoints"):
        print(line, file=sys.stderr)
    steps = checkpoint.saved_steps(folder / "checkpoints")
    if resume == "latest":
        return Plan(max(steps, default=None))
    return Plan(int(resume), newer=_newer(folder, int(resume), steps, force))


def _goes_on(folder: Path, config: Config, resume: str, force: bool) -> bool:
    """Whether the run in the folder has this config, but for what may change; False if it may be overwritten."""
    both = (load(folder / "config.yaml"), config)
    changes = _changes(*(with_sources(one, lambda source: source.model_copy(update={"pinned": None})) for one in both))
    blocking = [line for key, line in changes.items() if not _may_change(key)]
    if not blocking:
        for line in changes.values():
            print(f"changed since the run began: {line}")
        return True
    if force and resume == "latest":
        return False
    shown = "".join(f"\n  {line}" for line in blocking)
    flags = "--force" if resume == "latest" else "--resume never --force"
    raise ConfigError(
        f"{folder} holds a run of another config:{shown}\nchoose another --workdir, or overwrite it with {flags}"
    )


def _newer(folder: Path, step: int, steps: list[int], force: bool) -> tuple[int, ...]:
    """The saved steps after ``step``, which is itself saved."""
    if step not in steps:
        raise ConfigError(
            f"--resume {step}: {folder} holds no such step; it has {', '.join(map(str, steps)) or 'none'}"
        )
    newer = tuple(s for s in steps if s > step)
    if newer and not force:
        raise ConfigError(
            f"--resume {step}: {folder} holds newer steps too ({', '.join(map(str, newer))}), which this run would "
            "write anew; drop them with --force"
        )
    return newer


def claim(folder: Path, config: Config, pinned: Config, plan: Plan) -> None:
    """Removes what the plan overwrites and leaves ``config.yaml`` and ``environment.json``: the run has begun.

    ``pinned``, the config with the checkpoints it reads, is what is written; ``config``, as given, is what is hashed.
    """
    if jax.process_index() == 0:
        if plan.clear:
            _clear(folder)
        for step in plan.newer:
            shutil.rmtree(folder / "checkpoints" / str(step))
        write_atomically(folder / "config.yaml", pinned.yaml())
        write_atomically(folder / "environment.json", json.dumps(_environment(config), indent=2))
    parallel.from_first_process(None)  # the others wait until it is done


def finish(folder: Path, config: Config, train: dict[str, Any], scores: dict[str, float]) -> dict[str, Any]:
    """Writes ``results.json``: scores, best and last metrics, what ``train`` tells of the loop, devices, versions."""
    metric, mode = config.ranking()
    records = [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "eval"]
    names = ("step", *type(config.task).METRICS)
    evaluations = [{name: record[name] for name in names if name in record} for record in records]
    sign = 1 if mode == "max" else -1
    ranked = [record for record in evaluations if record[metric] is not None]
    devices = jax.devices()
    results = {
        **scores,
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


def summary(results: dict[str, Any]) -> str:
    """Says in a line what ``results.json`` holds of the best step, or of the last where none was finite."""
    word = "best" if results["best"] else "last"
    found = {name: "not finite" if value is None else f"{value:.4g}" for name, value in results[word].items()}
    shown = ", ".join(f"{name} {value}" for name, value in found.items() if name != "step")
    return f"{word}, at step {results[word]['step']}: {shown}"


def finished(folder: Path) -> dict[str, Any] | None:
    """The results of a run that came to its end, if they can be read."""
    try:
        return json.loads((folder / "results.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


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
