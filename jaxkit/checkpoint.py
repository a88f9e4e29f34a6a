"""Checkpoints of a run: Orbax writes them in the background, and the checksums of what it wrote go in with them.

Orbax notices a half-written checkpoint but not an altered one. So the checksum of every file is put beside the files,
inside the folder that Orbax renames as its last act: a checkpoint has its checksums, or does not exist.
"""

import contextlib
import hashlib
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxkit import parallel
from jaxkit.errors import UserError
from jaxkit.parts import asked_for, with_strays

CHECKSUMS = "checksums.json"
REPLACED = "replaced-"


class CheckpointError(UserError):
    """A checkpoint could not be written, or none that is whole can be read."""


class Checkpoints:
    """The folders ``<directory>/<step>`` of a run: its newest and its best checkpoints.

    Args:
        directory: made if need be.
        keep_last: how many of the newest to keep.
        keep_best: how many of the best to keep besides; ties go to the newer.
        metric: the metric, among those given to :meth:`save`, that ranks them.
        mode: whether more (``max``) or less (``min``) of it is better.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_last: int,
        keep_best: int,
        metric: str,
        mode: Literal["max", "min"],
    ):
        _quieten()
        # By default each device writes a slice of a replicated array, and a program is compiled to cut every slice.
        whole = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        ocp.type_handlers.register_type_handler(jax.Array, whole, override=True)
        self.directory = Path(directory).absolute()
        put_back_replaced(self.directory)
        self._writing: int | None = None
        self._rank = lambda metrics: _rank(metrics, metric, mode)
        best = preservation_policy.BestN(get_metric_fn=self._rank, n=keep_best, keep_checkpoints_without_metrics=False)
        kept = preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(keep_last), best])
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=kept,
                # without it Orbax forgets the metrics of a run's checkpoints, hence which is best, when the run resumes
                best_fn=self._rank,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
            ),
        )

    def save(self, step: int, items: dict[str, PyTree], meta: dict[str, Any], metrics: dict[str, float] | None) -> None:
        """Starts to write a checkpoint; returns once the arrays may change again, long before they are on disk.

        A step saved before is replaced: a run cut off in an evaluation saves that step anew, with its metrics.

        Raises:
            CheckpointError: if this or the previous one could not be written.
        """
        self.wait()
        self._require_space(step, items)
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items() if jax.tree.leaves(tree)}
        with self._named_failure(step):
            self._writing = step
            if step in self._manager.all_steps():
                if jax.process_index() == 0:
                    (self.directory / str(step)).rename(self.directory / f"{REPLACED}{step}")
                parallel.from_first_process(None)  # no process looks before the folder is gone
                self._manager.reload()
            arguments = ocp.args.Composite(meta=ocp.args.JsonSave({**meta, "metrics": metrics}), **trees)
            ranked = metrics if metrics is not None and self._rank(metrics) is not None else None
            self._manager.save(step, args=arguments, metrics=ranked, force=True)

    def wait(self) -> None:
        """Returns once the last checkpoint is on disk.

        Raises:
            CheckpointError: if it could not be written.
        """
        with self._named_failure(self._writing):
            self._manager.wait_until_finished()
        put_back_replaced(self.directory)

    def close(self) -> None:
        """Waits for the last checkpoint and ends the threads that write."""
        self.wait()
        self._manager.close()

    def _write_checksums(self) -> None:
        if jax.process_index():
            return
        # Orbax does not say which folder it is about to rename: it is the unfinished one of the step being written.
        folder = next(path for path in self.directory.glob(f"{self._writing}.*tmp*") if path.is_dir())
        text = json.dumps(_checksums(folder), indent=0)
        (folder / CHECKSUMS).write_text(text)

    def _require_space(self, step: int, items: dict[str, PyTree]) -> None:
        """Fails before anything is written where there is no room for all: halfway it is reported less clearly."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            with self._named_failure(step):
                raise OSError(f"No space left: it needs {needed:,} bytes and {free:,} are free")

    @contextlib.contextmanager
    def _named_failure(self, step: int | None):
        try:
            yield
        except Exception as error:
            good = max((s for s in saved_steps(self.directory) if s != step), default=None)
            kept = f"the one of step {good} is whole" if good is not None else "there is no earlier one"
            reason = str(error).strip().rsplit(": ", 1)[-1][:300]
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.directory} ({reason}); {kept}"
            ) from error


def put_back_replaced(directory: Path) -> None:
    """Removes checkpoints that a newer one of their step has replaced; puts back those whose replacement failed."""
    for replaced in directory.glob(f"{REPLACED}*") if jax.process_index() == 0 else ():
        final = directory / replaced.name.removeprefix(REPLACED)
        if final.is_dir():
            shutil.rmtree(replaced)
        else:
            replaced.rename(final)


def saved_steps(directory: str | Path) -> list[int]:
    """The steps that have a finished checkpoint under ``directory``, rising."""
    return sorted(int(path.name) for path in Path(directory).glob("[0-9]*") if path.name.isdigit())


def best_step(directory: str | Path, metric: str, mode: Literal["max", "min"]) -> int | None:
    """The saved step that is best by a metric; the newest of equals; None if no checkpoint has it, or all have NaN.

    Raises:
        CheckpointError: if the metrics of one cannot be read.
    """
    ranks = [(_rank(meta(directory, step)["metrics"], metric, mode), step) for step in saved_steps(directory)]
    return max(((rank, step) for rank, step in ranks if rank is not None), default=(None, None))[1]


def damage(folder: str | Path) -> str | None:
    """Says what is wrong with the checkpoint in ``folder``: a missing, altered or cut file. None if it is whole."""
    folder = Path(folder)
    try:
        expected = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError):
        return f"{CHECKSUMS} is missing or unreadable"
    found = _checksums(folder)
    for name, checksum in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != checksum:
            return f"{name} was altered or cut"
    return None


def set_damaged_aside(directory: str | Path) -> list[str]:
    """Moves damaged checkpoints from ``<directory>/<step>`` to ``<directory>/../damaged/<step>``; one line for each."""
    directory = Path(directory)
    put_back_replaced(directory)
    lines = []
    for step in saved_steps(directory):
        reason = damage(directory / str(step))
        if reason is None:
            continue
        aside = directory.parent / "damaged" / str(step)
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            (directory / str(step)).rename(aside)
        lines.append(f"checkpoint {directory / str(step)} is damaged ({reason}); moved to {aside}")
    return lines


def restore(
    directory: str | Path, step: int, like: dict[str, PyTree], partly: bool = False
) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """Reads items of a checkpoint onto the devices of ``like``'s arrays (shapes go to the first), and its meta data.

    ``partly``: arrays that only the checkpoint has are read and left out.

    Raises:
        CheckpointError: if it is missing, damaged, or holds other arrays than ``like``.
    """
    folder = Path(directory).absolute() / str(step)
    if not folder.is_dir():
        steps = ", ".join(map(str, saved_steps(directory))) or "none"
        raise CheckpointError(f"there is no checkpoint of step {step} in {directory}; the steps saved are: {steps}")
    reason = damage(folder)
    if reason:
        raise CheckpointError(f"checkpoint {folder} is damaged: {reason}")
    _quieten()
    handlers = {name: ocp.StandardCheckpointHandler() for name in like}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(meta=ocp.JsonCheckpointHandler(), **handlers)) as checkpointer:
        saved = checkpointer.metadata(folder).item_metadata
        trees = {name: saved[name].tree if holds(directory, step, name) else None for name in like}
        wanted = {name: with_strays(tree, trees[name]) if partly else tree for name, tree in like.items()}
        problems = [line for name, tree in wanted.items() for line in _differences(name, trees[name], tree)]
        if problems:
            raise CheckpointError(
                f"checkpoint {folder} is of another model or optimizer than this config's: {len(problems)} differences"
                + "".join(f"\n  {line}" for line in problems)
            )
        targets = {name: jax.tree.map(_target, tree) for name, tree in wanted.items() if jax.tree.leaves(tree)}
        arguments = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
        found = checkpointer.restore(folder, ocp.args.Composite(meta=ocp.args.JsonRestore(), **arguments))
    restored = {name: found[name] if name in targets else tree for name, tree in like.items()}
    if partly:
        restored = {name: asked_for(restored[name], tree) for name, tree in like.items()}
    return restored, found["meta"]


def meta(directory: str | Path, step: int) -> dict[str, Any]:
    """Reads what :meth:`Checkpoints.save` was given besides arrays, with ``metrics`` among it.

    Raises:
        CheckpointError: if it cannot be read.
    """
    folder = Path(directory) / str(step)
    try:
        return json.loads((folder / "meta" / "metadata").read_text())
    except (OSError, ValueError):
        raise CheckpointError(f"checkpoint {folder} is damaged: {damage(folder)}") from None


def holds(directory: str | Path, step: int, item: str) -> bool:
    """Whether a checkpoint has an item of this name."""
    return (Path(directory) / str(step) / item).is_dir()


def _quieten() -> None:
    # Orbax logs every phase of a save, every item not asked for, and a failure five times with its traceback; ours
    # reaches the user once.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _differences(item: str, saved: PyTree | None, like: PyTree) -> list[str]:
    """One line for every array that only one side has, or that has two shapes or types."""
    old, new = _signatures(saved), _signatures(like)
    missing = [f"missing in the checkpoint: {item}/{path}" for path in new if path not in old]
    stray = [f"only in the checkpoint: {item}/{path}" for path in old if path not in new]
    both = [path for path in new if path in old and old[path] != new[path]]
    return missing + stray + [f"{item}/{path} is {old[path]} in the checkpoint, {new[path]} here" for path in both]


def _signatures(tree: PyTree | None) -> dict[str, str]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{tuple(leaf.shape)} {leaf.dtype}"
        for path, leaf in leaves
    }


def _target(leaf) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _rank(metrics: dict[str, float] | None, metric: str, mode: str) -> float | None:
    """More is better; None where the metric is missing or NaN."""
    value = (metrics or {}).get(metric, math.nan)
    if math.isnan(value):
        return None
    return value if mode == "max" else -value


def _checksums(folder: Path) -> dict[str, str]:
    """The checksum of every file but Orbax's own marks at the top, which it completes after ours are written."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
    return {str(path.relative_to(folder)): _checksum(path) for path in files}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
