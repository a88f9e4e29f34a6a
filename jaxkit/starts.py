"""Where a new run starts from, if not from chance: pretrained weights, another run, or one of another framework."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxkit import checkpoint
from jaxkit.config import Config
from jaxkit.errors import ConfigError
from jaxkit.optimizer import AverageState
from jaxkit.step import TrainState, restored_state, saved_items
from jaxkit.tasks.task import Task, Variables
from jaxkit.train import Run


def warmed(task: Task) -> Task:
    """The task whose ``init`` has its pretrained weights in place already, and says which; itself where it has none."""
    if task.warm_start is None:
        return task

    def init(key, batch) -> Variables:
        variables, lines = task.warm_start(task.init(key, batch))
        say(lines)
        return variables

    return task._replace(init=init)


def begun(begin: Callable, job: Run, state: TrainState, frozen: str) -> TrainState:
    """The state that ``begin(rate, state, frozen)`` leads to from step 0, on every device; says where that is.

    Raises:
        ConfigError: if it lies beyond the run, or the task has other weights to start from.
    """
    if job.task.warm_start is not None:
        raise ConfigError("the run to go on with has weights of its own: leave pretrained out of the config")
    state, lines = begin(job.learning_rate, state, frozen)
    if state.step > job.steps:
        raise ConfigError(f"the run to go on with is at step {state.step}, beyond the {job.steps} of this config")
    say(lines)
    return job.executor.replicate(state)


def another_run(
    path: Path, fresh: tuple[str, ...], config: Config, examples: int, rate: Callable, state: TrainState, frozen: str
) -> tuple[TrainState, list[str]]:
    """Takes the state at step 0 of a new run to where a checkpoint of another is.

    Args:
        path: of the checkpoint, such as ``runs/a/checkpoints/500``; of a run's folder its newest.
        fresh: what is not carried on: ``optimizer``, its moments; ``schedule``, the place in it, and so the step.
        config, examples, rate: of the new run; not looked at.
        state: at step 0.
        frozen: hash of what nobody moves in the new run; a line says if it was another.

    Raises:
        ConfigError: if there is no such checkpoint.
        CheckpointError: if it is damaged, or of another network or, unless that is fresh, another optimizer.
    """
    steps = checkpoint.saved_steps(path / "checkpoints")
    if steps:
        path = path / "checkpoints" / str(steps[-1])
    if not path.name.isdigit() or not path.is_dir():
        raise ConfigError(
            f"--start-from {path}: is no run that has a checkpoint, and no checkpoint: <run>/checkpoints/<step>"
        )
    items, step = saved_items(state), int(path.name)
    if "optimizer" in fresh:
        del items["optimizer"]
        if not checkpoint.holds(path.parent, step, "averaged"):
            items.pop("averaged", None)
    found, meta = checkpoint.restore(path.parent, step, items)
    if "optimizer" in fresh:
        opt_state = _carried(state.opt_state, step, found.get("averaged", found["params"]))
        new = state._replace(params=found["params"], state=found["state"], opt_state=opt_state, step=jnp.int32(step))
    else:
        new = restored_state(found, state)._replace(key=state.key)
    if "schedule" in fresh:
        new = new._replace(step=jnp.int32(0), opt_state=_counting(new.opt_state, 0))
    left = f", with a fresh {' and '.join(fresh)}" if fresh else ""
    lines = [f"goes on from {path}{left}: begins at step {int(new.step)}"]
    if meta["frozen"] != frozen:
        lines.append(f"{path}: was trained with other frozen weights than those of this run")
    return new, lines


def _carried(fresh: PyTree, step: int, averaged: PyTree) -> PyTree:
    """A fresh optimizer's state with the average, and the place in the schedule, of one at ``step``."""

    def carry(part):
        return AverageState(jnp.int32(step), averaged) if isinstance(part, AverageState) else part

    return _counting(jax.tree.map(carry, fresh, is_leaf=lambda part: isinstance(part, AverageState)), step)


def _counting(opt_state: PyTree, step: int) -> PyTree:
    """An optimizer's state whose schedule stands at ``step``."""
    counts = optax.ScaleByScheduleState
    return jax.tree.map(
        lambda part: part._replace(count=jnp.int32(step)) if isinstance(part, counts) else part,
        opt_state,
        is_leaf=lambda part: isinstance(part, counts),
    )


def say(lines: Iterable[str]) -> None:
    """Prints lines; of several processes one does."""
    for line in lines if jax.process_index() == 0 else ():
        print(line)


def digest(tree: PyTree) -> str:
    """Hash of all leaves of a tree: their paths, types, shapes and bytes.

    A part ``cache`` is left out: it follows from the others and the data, and another machine rounds it otherwise.
    """
    total = hashlib.blake2b(digest_size=16)
    if isinstance(tree, dict):
        tree = {name: part for name, part in tree.items() if name != "cache"}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        # an array of a device keeps what the host has seen of it: its copy, and gigabytes with it, goes at once
        array = np.ascontiguousarray(jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.reshape(-1).view(np.uint8))
    return total.hexdigest()
