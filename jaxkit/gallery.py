"""What an evaluation shows besides numbers: samples of a task, and pictures of how it treats a few examples."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from jaxkit.data.feed import Feed
from jaxkit.tasks.task import Task, Variables
from jaxkit.tracking import Tracker

PICTURES = 16


class Gallery:
    """Compiles what a task has to show, once.

    Args:
        task: may have ``sample`` or ``pictures``, or neither.
        feed: gives the examples of pictures, the first ones of the evaluation.
        variables: like those to be shown.
        key: the same at every evaluation.
    """

    def __init__(self, task: Task, feed: Feed, variables: Variables, key: UInt32[Array, "2"]):
        self._task, self._key = task, key
        self._sample: Callable | None = None
        self._trace: Callable | None = None
        if task.sample:
            self._sample = jax.jit(partial(task.sample, n=task.samples)).lower(variables, key).compile()
        if task.pictures:
            few = {name: jnp.asarray(part[:PICTURES]) for name, part in feed.first_eval().items() if name != "mask"}
            self._batch: Any = feed.preprocess(few)
            self._trace = jax.jit(task.pictures.trace).lower(variables, self._batch, key).compile()

    def show(self, tracker: Tracker, step: int, variables: Variables) -> None:
        """Draws everything, and hands it to the tracker."""
        if self._sample:
            tracker.samples(step, np.asarray(self._sample(variables, self._key), np.float32))
        if self._trace:
            traced = jax.device_get(self._trace(variables, self._batch, self._key))
            tracker.pictures(step, self._task.pictures.draw(traced))
