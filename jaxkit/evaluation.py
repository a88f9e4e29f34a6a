"""Metrics of the evaluation examples: one compiled step, each example counted once."""

import math
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32

from jaxkit.data.feed import Feed
from jaxkit.parallel import Executor
from jaxkit.tasks.task import Task, Variables


def eval_step(state: PyTree, frozen: PyTree, batch: PyTree, *, task, preprocess, executor) -> dict[str, Array]:
    """Sums each metric over the real examples of a batch, those with ``mask`` 1, and counts them.

    ``state`` is ``(params, state, key, number)``; the number of the batch makes its key, the same at every evaluation.
    """
    params, moved, key, number = state
    key = jax.random.fold_in(key, number)
    batch = dict(batch)
    mask = batch.pop("mask")
    values = task.evaluate(Variables(params, moved, frozen), preprocess(batch), executor.layer_key(key))
    sums = {name: jnp.where(mask > 0, value, 0).sum() for name, value in values.items()}
    return executor.total({**sums, "examples": mask.sum()})


class Evaluation(NamedTuple):
    """A compiled :func:`eval_step` with what it reads."""

    step: Callable
    feed: Feed
    executor: Executor
    key: UInt32[Array, "2"]

    def state(self, params: PyTree, state: PyTree, number: int) -> tuple:
        """What the step takes for the batch of this number."""
        return params, state, self.key, self.executor.replicate(np.uint32(number))


def compiled_evaluation(task: Task, feed: Feed, executor, key, params, state, frozen) -> Evaluation:
    """Compiles the evaluation of variables like these. ``key`` is that of the training run."""
    # the last number fold_in takes: one that no training step has
    key = executor.replicate(jax.random.fold_in(key, 2**32 - 1))
    step = partial(eval_step, task=task, preprocess=feed.preprocess, executor=executor)
    batch = executor.put_batch(feed.first_eval())
    unready = Evaluation(step, feed, executor, key)
    return unready._replace(step=executor.compile(step, unready.state(params, state, 0), frozen, batch, donate=False))


def evaluate(evaluation: Evaluation, params: PyTree, state: PyTree, frozen: PyTree, stopped=lambda: False):
    """Averages each metric over one pass of the evaluation examples, without waiting between batches.

    Returns:
        ``{name: mean}``; None if ``stopped``, asked before each batch, said so.
    """
    sums = []
    with closing(evaluation.feed.prefetch(evaluation.feed.eval_batches(), evaluation.executor.put_batch)) as batches:
        for number, batch in enumerate(batches):
            if stopped():
                return None
            sums.append(evaluation.step(evaluation.state(params, state, number), frozen, batch))
    fetched = jax.device_get(sums)
    totals = {name: math.fsum(float(batch[name]) for batch in fetched) for name in fetched[0]}
    examples = totals.pop("examples")
    return {name: total / examples for name, total in totals.items()}


def scores(task: Task, feed: Feed, variables: Variables, key: UInt32[Array, "2"]) -> dict[str, float]:
    """Computes what a task has to say beyond means over examples; nothing where it has no ``score``.

    One process sees but its part of the examples: with several there are no scores.
    """
    if task.score is None or jax.process_count() > 1:
        return {}
    preprocess = jax.jit(feed.preprocess)

    def whole(batches):
        for batch in batches():
            examples = int(batch["mask"].sum())
            yield preprocess({name: part[:examples] for name, part in batch.items() if name != "mask"})

    found = task.score(variables, partial(whole, feed.train_pass), partial(whole, feed.eval_batches), key)
    return {name: float(value) for name, value in found.items()}
