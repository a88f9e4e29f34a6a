"""What a trained run is used for: the evaluation and the samples of one of its checkpoints. Trains nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from jaxkit import checkpoint
from jaxkit.config import load
from jaxkit.data import Source
from jaxkit.data.feed import Feed
from jaxkit.errors import ConfigError
from jaxkit.evaluation import compiled_evaluation, evaluate, scores
from jaxkit.experiment import assemble, best_or_last, check_frozen, load_step, precision
from jaxkit.parallel import Executor
from jaxkit.starts import digest
from jaxkit.tasks.task import Task, Variables
from jaxkit.tracking import write_atomically


class Restored(NamedTuple):
    """A checkpoint with all it was trained with, on the devices."""

    step: int
    task: Task
    source: Source
    feed: Feed
    executor: Executor
    variables: Variables
    key: UInt32[Array, "2"]


def evaluate_run(folder: Path, step: int | None = None, *, read_weights: Callable | None = None) -> dict[str, Any]:
    """Evaluates one checkpoint of a workdir, the best by default.

    ``read_weights`` is that of :class:`jaxkit.tasks.task.Context`, for a run with frozen weights from a folder.

    Raises:
        UserError: if there is no run, no such step, or the checkpoint is damaged.
    """
    config = _config(folder)
    with precision(config):
        run = _restored(folder, config, step, read_weights)
        params, state, frozen = run.variables
        compiled = compiled_evaluation(run.task, run.feed, run.executor, run.key, params, state, frozen)
        metrics = evaluate(compiled, params, state, frozen)
        metrics |= scores(run.task, run.feed, run.variables, run.key)
    return {"step": run.step, **metrics}


def score_run(
    folder: Path,
    step: int | None = None,
    overrides: tuple[str, ...] = (),
    *,
    read_weights: Callable | None = None,
) -> dict[str, float]:
    """Scores what one checkpoint of a workdir draws; ``overrides`` and ``read_weights`` as in :func:`sample_run`.

    Raises:
        UserError: if there is no run, no such step, or nothing that scores it.
    """
    config = _config(folder, overrides)
    with precision(config):
        run = _restored(folder, config, step, read_weights)
        found = scores(run.task, run.feed, run.variables, run.key)
    if not found:
        raise ConfigError(f"{folder}: the task {config.task.name} has no scores, or its config no task.score")
    return found


def write_evaluation(folder: Path, result: dict[str, Any]) -> None:
    """Writes what :func:`evaluate_run` found to ``evaluation_<step>.json`` in the workdir."""
    if jax.process_index() == 0:
        write_atomically(folder / f"evaluation_{result['step']}.json", json.dumps(result, indent=2) + "\n")


def sample_run(
    folder: Path,
    n: int,
    *,
    step: int | None = None,
    seed: int = 0,
    label: int | None = None,
    prompts: tuple[str, ...] = (),
    image: Float[np.ndarray, "h w c"] | None = None,
    mask: Float[np.ndarray, "h w"] | None = None,
    overrides: tuple[str, ...] = (),
    read_weights: Callable | None = None,
) -> Float[np.ndarray, "n h w c"]:
    """Draws ``n`` images in [0, 1] from one checkpoint of a workdir, the best by default.

    Args:
        folder: of the run.
        n: how many.
        step: of the checkpoint.
        seed: the same seed draws the same images.
        label: the class of all; None: all classes in turn.
        prompts: captions, in turn; none: the empty one, where the data has captions.
        image: one to be painted anew where ``mask`` is 1.
        mask: of its pixels.
        overrides: of the config, of what does not change the network, such as ``task.sampler.steps=16``.
        read_weights: of :class:`jaxkit.tasks.task.Context`, for a run with frozen weights from a folder.

    Raises:
        UserError: if there is no run, no such step, or nothing that could be asked for in this way.
    """
    config = _config(folder, overrides)
    with precision(config):
        run = _restored(folder, config, step, read_weights)
        if run.task.draw is None:
            raise ConfigError(f"{folder}: the task {config.task.name} draws no images")
        if label is not None and not 0 <= label < run.source.num_classes:
            raise ConfigError(f"--class {label}: the classes are 0 to {run.source.num_classes - 1}")
        labels = jnp.arange(n) % run.source.num_classes if label is None else jnp.full(n, label)
        asked = {"label": labels.astype(jnp.int32)}
        if run.source.captions is not None:
            read = [run.source.captions(prompt) for prompt in prompts or ("",)]
            asked |= {name: jnp.stack([read[i % len(read)][name] for i in range(n)]) for name in read[0]}
        elif prompts:
            raise ConfigError(f"--prompt: the data of {folder} has no captions; give --class")
        if image is not None:
            _require_shape("--image", image.shape, run.source.image_shape)
            _require_shape("--mask", mask.shape, run.source.image_shape[:2])
            asked |= {
                name: jnp.broadcast_to(part, (n, *part.shape)) for name, part in (("image", image), ("mask", mask))
            }
        return np.asarray(jax.jit(run.task.draw)(run.variables, jax.random.key(seed), asked))


def _config(folder: Path, overrides: tuple[str, ...] = ()):
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"--workdir {folder}: no run is there ({folder / 'config.yaml'} does not exist)")
    return load(folder / "config.yaml", overrides)


def _restored(folder: Path, config: Any, step: int | None, read_weights: Callable | None) -> Restored:
    step = step if step is not None else best_or_last(folder, config)
    source, feed, task, executor = assemble(config, read_weights)
    key = jax.random.PRNGKey(config.train.seed)
    variables = task.init(key, feed.preprocess(jax.tree.map(jnp.asarray, feed.first())))
    like = {"params": variables.params, "state": variables.state}
    found = executor.replicate(load_step(folder / "checkpoints", step, like))
    frozen = executor.replicate(variables.frozen)
    check_frozen(folder, checkpoint.meta(folder / "checkpoints", step), digest(frozen))
    return Restored(step, task, source, feed, executor, Variables(found["params"], found["state"], frozen), key)


def _require_shape(flag: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ConfigError(
            f"{flag}: is {' x '.join(map(str, shape))}; the run's images are {' x '.join(map(str, expected))}"
        )
