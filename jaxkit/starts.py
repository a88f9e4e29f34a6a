"""Where a new run starts from, if not from chance: pretrained weights, or a run of another framework."""

import hashlib
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import PyTree

from jaxkit.errors import ConfigError
from jaxkit.step import TrainState
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


def begun(begin: Callable, job: Run, state: TrainState) -> TrainState:
    """The state that ``begin(rate, state)`` leads to from step 0, on every device; says where that is.

    Raises:
        ConfigError: if it lies beyond the run, or the task has other weights to start from.
    """
    if job.task.warm_start is not None:
        raise ConfigError("the run to go on with has weights of its own: leave pretrained out of the config")
    state, lines = begin(job.learning_rate, state)
    if state.step > job.steps:
        raise ConfigError(f"the run to go on with is at step {state.step}, beyond the {job.steps} of this config")
    say(lines)
    return job.executor.replicate(state)


def say(lines: Iterable[str]) -> None:
    """Prints lines; of several processes one does."""
    for line in lines if jax.process_index() == 0 else ():
        print(line)


def digest(tree: PyTree) -> str:
    """Hash of all leaves of a tree: their paths, types, shapes and bytes."""
    total = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
