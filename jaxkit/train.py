"""The training loop: one compiled step for every task, and what happens around it between steps."""

import math
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree, UInt32

from jaxkit import parallel
from jaxkit.checkpoint import Checkpoints
from jaxkit.data.feed import Feed
from jaxkit.evaluation import compiled_evaluation, evaluate
from jaxkit.gallery import Gallery
from jaxkit.optimizer import averaged_params
from jaxkit.schema.train import Train
from jaxkit.step import TrainState, saved_items, train_step
from jaxkit.stop import Interrupted, NonFinite, Stop
from jaxkit.tasks.task import Task, Variables
from jaxkit.tracking import Tracker, Windows, write_atomically


@dataclass(frozen=True)
class Run:
    """What is trained, on what, and how."""

    task: Task
    feed: Feed
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    executor: parallel.Executor
    config: Train
    steps: int
    pieces: int
    """Parts a batch is worked through in."""
    metric: str
    """The evaluation metric that ranks checkpoints."""
    mode: str
    """Whether its ``max`` or its ``min`` is best."""
    workdir: Path


def initial_state(task: Task, feed: Feed, optimizer, executor, key: UInt32[Array, "2"]) -> tuple[TrainState, PyTree]:
    """Initialises the task's variables on every device: the state at step 0, and the frozen variables."""
    variables = task.init(key, feed.preprocess(jax.tree.map(jnp.asarray, feed.first())))
    opt_state = jax.jit(optimizer.init)(variables.params)
    state = TrainState(jnp.int32(0), variables.params, variables.state, opt_state, key, jnp.bool(True))
    return executor.replicate(state), executor.replicate(variables.frozen)


def compiled_step(run: Run, state: TrainState, frozen: PyTree) -> Callable:
    """Compiles :func:`train_step` for a run: ``state, frozen, batch -> state, metrics``. It consumes the state."""
    step = partial(
        train_step,
        task=run.task,
        optimizer=run.optimizer,
        rate=run.learning_rate,
        augment=run.feed.augment,
        executor=run.executor,
        pieces=run.pieces,
        each=run.config.log_gradients,
    )
    return run.executor.compile(step, state, frozen, run.executor.put_batch(run.feed.first()))


class Trainer:
    """Takes a state from where it stands to ``run.steps``.

    Args:
        run: what to train; compiled here.
        state: from :func:`initial_state`, or restored onto the same devices.
        frozen: the frozen variables, on every device.
        meta: of the checkpoint that ``state`` came from (see :meth:`_save`); empty for a new run.
        note: entries to add to the meta data of every checkpoint.
        begun: whether ``state`` is where another run stopped; it is saved before the first step.
    """

    def __init__(
        self,
        run: Run,
        state: TrainState,
        frozen: PyTree,
        meta: dict[str, Any],
        note: dict[str, Any],
        begun: bool = False,
    ):
        self._begun = begun
        self.run, self.state, self.frozen, self.note = run, state, frozen, note
        self.step = self.start = int(state.step)
        self.metrics: dict[str, float] | None = meta.get("metrics")
        self.best: float | None = meta.get("best")
        self.history: list[float] = meta.get("history", [])
        """The metric that ranks checkpoints, of every evaluation, where a run may end early."""
        self.seconds: float = meta.get("seconds", 0.0)
        self.recompilations = 0
        """Programs compiled after the first step."""
        self.steps_per_second: float | None = None
        """Of this process's life, evaluation left out; None where no step was left to do."""
        self._eval_seconds = 0.0
        self._saved = self.start if meta else None

        began = time.perf_counter()
        self._train_step = compiled_step(run, state, frozen)
        key, variables = jax.device_get(state.key), self._variables()
        self._evaluation = compiled_evaluation(run.task, run.feed, run.executor, key, *variables, frozen)
        self._gallery = Gallery(run.task, run.feed, Variables(*variables, frozen), self._evaluation.key)
        self.compile_seconds = time.perf_counter() - began

    def fit(self, tracker: Tracker, checkpoints: Checkpoints) -> None:
        """Runs to the last step and waits until its checkpoint is on disk.

        Raises:
            Interrupted: on SIGTERM or SIGINT, once the step is done and saved.
            NonFinite: when the loss is; the state before that step is saved, with a report beside it.
            CheckpointError: when a checkpoint cannot be written.
        """
        run = self.run
        self._tracker, self._checkpoints, self._windows = tracker, checkpoints, Windows(tracker)
        placed = run.feed.prefetch(run.feed.batches(self.start), run.executor.put_batch)
        self._began = time.perf_counter()
        with Stop() as stop, closing(placed) as batches:
            if self._begun:
                self._save()  # the file it was begun from need not be there again
            if self.start and self.metrics is None:
                self._finish_step(stop)  # the run was cut off before the evaluation of this step
            compiled = None
            while self.step < run.steps and not self.settled:
                self.state, metrics = self._train_step(self.state, self.frozen, next(batches))
                self.step += 1
                self.metrics = None
                self._windows.add(self.step, metrics)
                if compiled is None:
                    compiled = parallel.compilations()
                if self._due(run.config.log_every):
                    self._report(wait=False)
                self._finish_step(stop)
            self._report()
            self.recompilations = parallel.compilations() - compiled if compiled is not None else 0
            loop = time.perf_counter() - self._began
            if self.step > self.start:
                self.steps_per_second = (self.step - self.start) / (loop - self._eval_seconds)
            self.seconds += loop
            checkpoints.wait()

    @property
    def settled(self) -> bool:
        """Whether the evaluations say that the run may end early.

        Source: Voronov et al., "Is This Loss Informative? Faster Text-to-Image Customization by Tracking Objective
        Dynamics", NeurIPS 2023, section 4.2 (DVAR).
        """
        rule = self.run.config.early_stop
        if rule is None or len(self.history) < rule.window or not np.isfinite(self.history).all():
            return False
        return float(np.var(self.history[-rule.window :])) < rule.ratio * float(np.var(self.history))

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.run.steps

    def _finish_step(self, stop: Stop) -> None:
        """Evaluates, saves, stops: whichever is due."""
        config = self.run.config
        improved = self._due(config.eval_every) and self._evaluate(stop)
        stopping = self._stopping(stop)
        if improved or stopping or self._due(config.checkpoint_every) or self.settled:
            self._save()
        if stopping:
            self._checkpoints.wait()
            name = "Ctrl-C" if stop.signum == signal.SIGINT else "SIGTERM"
            raise Interrupted(
                stop.signum or signal.SIGTERM,
                f"stopped by {name} after step {self.step} of {self.run.steps}, saved in {self.run.workdir}; "
                "the same command goes on from there",
            )

    def _stopping(self, stop: Stop) -> bool:
        """Whether to stop here. Several processes agree on it, which takes a wait, so they ask only when they log."""
        if self.step == self.run.steps and self.metrics is not None:
            return False
        if jax.process_count() == 1:
            return stop.signum is not None
        return self._due(self.run.config.log_every) and parallel.any_process(stop.signum is not None)

    def _report(self, wait: bool = True) -> None:
        """Logs the steps computed so far, or all once computed; raises NonFinite at the first that failed."""
        failed = self._windows.report(wait)
        if failed:
            self._fail(*failed)

    def _evaluate(self, stop: Stop) -> bool:
        """Evaluates and logs; whether it is the best so far. A signal ends it early, without a result."""
        self._report()
        began = time.perf_counter()
        # Several processes evaluate to the end: the others would wait for this one's part of the next batch.
        stopped = (lambda: stop.signum is not None) if jax.process_count() == 1 else (lambda: False)
        params, state = self._variables()
        self.metrics = evaluate(self._evaluation, params, state, self.frozen, stopped)
        if self.metrics is None:
            return False
        self._eval_seconds += time.perf_counter() - began
        self._tracker.log(self.step, "eval", self.metrics)
        if self._due(self.run.config.sample_every or self.run.config.eval_every):
            self._gallery.show(self._tracker, self.step, Variables(params, state, self.frozen))
        value = self.metrics[self.run.metric]
        if self.run.config.early_stop:
            self.history.append(value)
        sign = 1 if self.run.mode == "max" else -1
        if math.isnan(value) or (self.best is not None and sign * value < sign * self.best):
            return False
        self.best = value
        return self.run.config.keep_best > 0

    def _variables(self) -> tuple[PyTree, PyTree]:
        """What is evaluated: averaged parameters where the optimizer keeps an average, and the state."""
        return averaged_params(self.state.opt_state, self.state.params), self.state.state

    def _save(self) -> None:
        self._report()
        if self._saved == self.step and self.metrics is None:
            return
        self._tracker.sync()
        meta = {
            **self.note,
            "loader": self.run.feed.position(self.step),
            "best": self.best,
            "seconds": self.seconds + time.perf_counter() - self._began,
        }
        if self.history:
            meta["history"] = self.history
        self._checkpoints.save(self.step, saved_items(self.state), meta, self.metrics)
        self._write_files()
        self._saved = self.step

    def _write_files(self) -> None:
        """Writes what the task has for other programs: by the step, and as the newest."""
        if self.run.task.files is None or jax.process_index() > 0:
            return
        for name, content in self.run.task.files(jax.device_get(self._variables()[0])).items():
            path = self.run.workdir / name
            for place in (path.with_stem(f"{path.stem}-steps-{self.step}"), path):
                write_atomically(place, content)

    def _fail(self, step: int, metrics: dict[str, float]) -> None:
        """Saves the state before ``step``, where it has stood since, and reports the step that went wrong."""
        with closing(self.run.feed.batches(step - 1)) as batches:
            batch = next(batches)
        error = NonFinite(self.run.workdir, step, metrics, self.state.params, batch)
        self.step, self.metrics = step - 1, None
        self.state = self.state._replace(ok=self.run.executor.replicate(np.bool_(True)))
        if step > 1:
            self._save()
            self._checkpoints.wait()
        raise error
