"""One experiment from its config to its results: puts data, task, optimizer and loop together in a workdir."""

import contextlib
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxkit import checkpoint, parallel, workdir
from jaxkit.config import Config, source_config, with_sources
from jaxkit.data import Source
from jaxkit.data.feed import Feed, open_feed
from jaxkit.data.sources import open_source
from jaxkit.errors import ConfigError
from jaxkit.evaluation import scores
from jaxkit.optimizer import make_optimizer
from jaxkit.schedules import make_schedule
from jaxkit.schema.model import Pretrained
from jaxkit.starts import begun, digest, say, warmed
from jaxkit.step import restored_state, saved_items
from jaxkit.tasks import TASKS
from jaxkit.tasks.task import Context, Readers, Task, Variables
from jaxkit.tracking import Tracker, write_atomically
from jaxkit.train import Run, Trainer, initial_state

DTYPES = {"no": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}
CACHE = Path("~/.cache/jaxkit/xla")


def run(
    config: Config,
    folder: Path,
    resume: str = "latest",
    force: bool = False,
    wait: bool = False,
    *,
    readers: Readers | None = None,
    begin: Callable | None = None,
) -> dict[str, Any]:
    """Trains what ``config`` says in the workdir ``folder``; returns what its ``results.json`` holds.

    Args:
        config: validated.
        folder: made if need be. A run of this config that it holds is gone on with, as ``resume`` says.
        resume: ``latest``, a step, or ``never``.
        force: whether an earlier run may be overwritten.
        wait: whether to wait for another run in the same folder.
        readers: of other frameworks' files, for a config that names weights to start from.
        begin: ``config, examples, rate, state, frozen -> state, lines to print``: takes the state at step 0 of a new
            run, whose frozen weights have the hash ``frozen``, to where another run, or one of another framework,
            stopped.

    Raises:
        UserError: whatever the user can mend.
    """
    with workdir.held(folder, wait), precision(config):
        if begin is not None and not force and (folder / "config.yaml").is_file():
            raise ConfigError(
                f"{folder} holds a run: leave --from-torch or --start-from out to go on with it, or overwrite it with "
                "--force"
            )
        # The folder is touched last: whatever is wrong with the config, data, weights or a teacher leaves it as it was.
        source, job = prepare(config, folder, readers)
        plan = workdir.plan(folder, config, resume if begin is None else "never", force)
        if plan.start is not None and plan.start > job.steps:
            raise ConfigError(
                f"{folder} is at step {plan.start}, beyond the {job.steps} of this config; choose another --workdir"
            )
        results = workdir.finished(folder)
        if plan.start == job.steps and results is not None and results["config"] == config.digest():
            return results
        say(job.task.notes)
        trainer = _trainer(job, plan.start, begin and partial(begin, config, len(source.train)))
        _fit(trainer, config, folder, plan)
        if trainer.step < job.steps:
            say([f"its evaluations have settled: train.early_stop ends it after step {trainer.step} of {job.steps}"])
        _publish(trainer, config, folder)
        rate = trainer.steps_per_second
        train = {
            "steps": trainer.step,
            "seconds": trainer.seconds,
            "compile_seconds": trainer.compile_seconds,
            "examples_per_second": rate and rate * config.data.batch_size,
            "recompilations": trainer.recompilations,
            "corrupt_images": len(source.corrupt()),
        }
        for path, reason in source.corrupt().items():
            print(f"skipped {path}: {reason}", file=sys.stderr)
        return workdir.finish(folder, config, train, _scores(trainer, config, folder) if job.task.score else {})


def prepare(config: Config, folder: Path, readers: Readers | None = None) -> tuple[Source, Run]:
    """Puts together what ``config`` trains; writes nothing in ``folder``.

    Raises:
        UserError: whatever is wrong with the config, the data or a teacher.
    """
    parallel.check_divides(config.data.batch_size, config.optimizer.accumulate)
    source, feed, task, executor = assemble(config, readers)
    steps, per_epoch = _length(config, len(source.train))
    metric, mode = config.ranking()
    optimizer = config.optimizer
    if optimizer.scale_learning_rate:
        optimizer = optimizer.model_copy(update={"learning_rate": optimizer.learning_rate * config.data.batch_size})
    return source, Run(
        task=task,
        feed=feed,
        optimizer=make_optimizer(optimizer, steps, per_epoch, config.train.precision),
        learning_rate=make_schedule(optimizer, steps, per_epoch),
        executor=executor,
        config=config.train,
        steps=steps,
        pieces=config.optimizer.accumulate,
        metric=metric,
        mode=mode,
        workdir=folder,
    )


def _trainer(job: Run, start: int | None, begin: Callable | None) -> Trainer:
    """A compiled trainer at step 0, where ``begin`` leads from there, or where the checkpoint of step ``start`` is."""
    key = jax.random.PRNGKey(job.config.seed)
    task = warmed(job.task) if start is None and begin is None else job.task
    state, frozen = initial_state(task, job.feed, job.optimizer, job.executor, key)
    note = {"frozen": digest(frozen)}
    if start is None:
        first = begun(begin, job, state, note["frozen"]) if begin else state
        return Trainer(job, first, frozen, {}, note, begin is not None)
    found, meta = checkpoint.restore(job.workdir / "checkpoints", start, saved_items(state))
    check_frozen(job.workdir, meta, note["frozen"])
    job.feed.restore(meta["loader"])
    return Trainer(job, restored_state(found, state), frozen, meta, note)


def _fit(trainer: Trainer, config: Config, folder: Path, plan: workdir.Plan) -> None:
    """Claims the folder and trains."""
    tracker = Tracker(folder, config, start=trainer.start, steps=trainer.run.steps)
    workdir.claim(folder, config, with_sources(config, pinned), plan)
    saved = checkpoint.Checkpoints(
        folder / "checkpoints",
        keep_last=config.train.keep_last,
        keep_best=config.train.keep_best,
        metric=trainer.run.metric,
        mode=trainer.run.mode,
    )
    with contextlib.closing(saved):
        tracker.open()
        with contextlib.closing(tracker):
            trainer.fit(tracker, saved)


def _scores(trainer: Trainer, config: Config, folder: Path) -> dict[str, float]:
    """What the task's ``score`` says of the best checkpoint."""
    variables = _best(trainer, config, folder)[1]
    return scores(trainer.run.task, trainer.run.feed, variables, jax.random.PRNGKey(config.train.seed))


def _publish(trainer: Trainer, config: Config, folder: Path) -> None:
    """Writes what the task has for other programs once more, of the checkpoint that samples and exports are of."""
    if trainer.run.task.files is None:
        return
    step, variables = _best(trainer, config, folder)
    files = trainer.run.task.files(jax.device_get(variables.params))
    if jax.process_index() == 0:
        for name, content in files.items():
            write_atomically(folder / name, content)
    say([f"{folder / name}: of step {step}" for name in files])


def _best(trainer: Trainer, config: Config, folder: Path) -> tuple[int, Variables]:
    """The step of the best checkpoint, or the last where none is best, and its variables."""
    step = best_or_last(folder, config)
    like = {"params": trainer.state.params, "state": trainer.state.state}
    found = load_step(folder / "checkpoints", step, like)
    return step, Variables(found["params"], found["state"], trainer.frozen)


def make_task(config: Config, source: Source, executor: parallel.Executor, readers: Readers | None = None) -> Task:
    """Makes the task that ``config.task`` names, for the data and the devices of this run.

    Raises:
        ConfigError: for a local learning rule under fp16, whose loss scale would leave the rule unscaled.
    """
    sync = config.train.sync_batch_norm
    context = Context(
        num_classes=source.num_classes,
        image_shape=source.image_shape,
        captions=source.captions,
        concepts=source.concepts,
        load_weights=load_weights if readers is None else partial(load_weights, readers=readers),
        read_weights=readers and readers.weights,
        read_pipeline=readers and readers.pipeline,
        read_embedding=readers and readers.embedding,
        dtype=DTYPES[config.train.precision],
        axis_name=executor.axis_name if sync else None,
        mapped_axis=executor.axis_name,
        pieces=config.optimizer.accumulate,
        batch_groups=executor.devices if executor.axis_name is None and not sync else 1,
    )
    task = import_module(f"jaxkit.tasks.{TASKS[config.task.name]}").make(config.task, context)
    if task.update is not None and config.train.precision == "fp16":
        raise ConfigError(f"train.precision: fp16 scales a loss, and the task {config.task.name} descends none")
    return task


def load_weights(
    source: Pretrained, like: dict[str, PyTree], readers: Readers | None = None, *, partly: bool = False
) -> dict[str, PyTree]:
    """Reads ``params`` and ``state`` that a config points to; trains them first where it points to a config.

    ``partly``: the checkpoint may hold more than ``like``, which is left out.

    Raises:
        UserError: if the run, the step or the checkpoint is not there, damaged, or of another model.
    """
    path = Path(pinned(source, readers).pinned)
    return load_step(path.parent, int(path.name), like, partly)


def pinned(source: Pretrained, readers: Readers | None = None) -> Pretrained:
    """The source with the checkpoint it comes down to: its own, the best of its run, or of the run of its config.

    Raises:
        ConfigError: if there is none.
    """
    if source.pinned is not None or source.run is None:
        return source
    if source.checkpoint is not None:
        path = Path(source.checkpoint)
        if not path.name.isdigit():
            raise ConfigError(f"{path}: is no checkpoint; write <workdir>/checkpoints/<step>")
    else:
        config = source_config(source)
        folder = Path(source.workdir or Path(source.cache) / f"{Path(source.config).stem}-{config.digest()}")
        if source.config is not None and workdir.finished(folder) is None:
            say([f"{source.config} is trained first, in {folder}"])
            run(config, folder, wait=True, readers=readers)
        path = folder / "checkpoints" / str(best_or_last(folder, config))
    return source.model_copy(update={"pinned": str(path.absolute())})


def load_step(directory: Path, step: int, like: dict[str, PyTree], partly: bool = False) -> dict[str, PyTree]:
    """Reads ``params`` (their average, where the run kept one) and ``state`` of a checkpoint."""
    name = "averaged" if checkpoint.holds(directory, step, "averaged") else "params"
    found, _ = checkpoint.restore(directory, step, {name: like["params"], "state": like["state"]}, partly)
    return {"params": found[name], "state": found["state"]}


def assemble(config: Config, readers: Readers | None = None) -> tuple[Source, Feed, Task, parallel.Executor]:
    """Data, task and devices of a run."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(CACHE.expanduser()))
    executor = parallel.executor(config.train.parallel)
    source = open_source(config.data)
    feed = open_feed(
        source,
        config.data,
        eval_batch_size=-(-config.data.eval_batch_size // executor.devices) * executor.devices,
        seed=config.train.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return source, feed, make_task(config, source, executor, readers), executor


def precision(config: Config) -> contextlib.AbstractContextManager:
    """Of matrix products in a run; left with it, for a run may train its teacher by another config first."""
    return jax.default_matmul_precision(config.train.matmul_precision)


def _length(config: Config, examples: int) -> tuple[int, float]:
    """Updates in the run, and in one pass over the examples."""
    per_epoch = examples / config.data.batch_size
    steps = config.train.steps or max(1, round(config.train.epochs * per_epoch))
    if steps >= 2**31:
        raise ConfigError(f"train.epochs = {config.train.epochs} is {steps} updates, more than can be counted")
    return steps, per_epoch


def check_frozen(folder: Path, meta: dict[str, Any], frozen: str) -> None:
    """Raises ConfigError unless the frozen weights have the hash that the run began with."""
    if meta["frozen"] != frozen:
        raise ConfigError(f"{folder}: what is frozen (weights, schedule, tokenizer) is not what this run began with")


def best_or_last(folder: Path, config: Config) -> int:
    """The step of the best checkpoint by the config's metric, or of the last where none is best."""
    directory = folder / "checkpoints"
    steps = checkpoint.saved_steps(directory)
    if not steps:
        raise ConfigError(f"{folder}: no checkpoint is there")
    best = checkpoint.best_step(directory, *config.ranking())
    return best if best is not None else steps[-1]
