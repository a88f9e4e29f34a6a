"""What a trained run is used for: the evaluation and the samples of one of its checkpoints. Trains nothing."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree, UInt32

from jaxkit import checkpoint, pictures
from jaxkit.config import Config, run_config
from jaxkit.data import Source
from jaxkit.data.feed import Feed
from jaxkit.errors import ConfigError
from jaxkit.evaluation import compiled_evaluation, evaluate, scores
from jaxkit.experiment import assemble, best_or_last, check_frozen, load_step, precision
from jaxkit.parallel import AXIS, Executor
from jaxkit.starts import digest, say
from jaxkit.tasks.task import Readers, Task, Variables
from jaxkit.tracking import write_atomically

# Sections of training alone: overriding them would do nothing.
IDLE = ("optimizer.", "tracking.")


class Restored(NamedTuple):
    """A checkpoint with all it was trained with, on the devices."""

    step: int
    task: Task
    source: Source
    feed: Feed
    executor: Executor
    variables: Variables
    key: UInt32[Array, "2"]


def evaluate_run(folder: Path, step: int | None = None, *, readers: Readers | None = None) -> dict[str, Any]:
    """Evaluates one checkpoint of a workdir, the best by default.

    ``readers`` are of other frameworks' files, for a run with frozen weights from a folder.

    Raises:
        UserError: if there is no run, no such step, or the checkpoint is damaged.
    """
    config = run_config(folder)
    with precision(config):
        run = restored(folder, config, step, readers)
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
    readers: Readers | None = None,
) -> dict[str, float]:
    """Scores what one checkpoint of a workdir draws; ``overrides`` and ``readers`` as in :func:`sample_run`.

    Raises:
        UserError: if there is no run, no such step, or nothing that scores it.
    """
    config = _config(folder, overrides)
    with precision(config):
        run = restored(folder, config, step, readers)
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
    image: Float[np.ndarray, "h w k"] | None = None,
    mask: Float[np.ndarray, "_ _"] | None = None,
    strength: float | None = None,
    outpaint: tuple[int, int, int, int] | None = None,
    overrides: tuple[str, ...] = (),
    readers: Readers | None = None,
) -> Float[np.ndarray, "n y x c"]:
    """Draws ``n`` images in [0, 1] from one checkpoint of a workdir, the best by default.

    Args:
        folder: of the run.
        n: how many.
        step: of the checkpoint.
        seed: the same seed draws the same images.
        label: the class of all; None: all classes in turn.
        prompts: captions, in turn; none: those of the config, or the empty one, where the data has captions.
        image: one to be changed, in one of three ways; with ``k`` channels, the run's ``c``, or grey.
        mask: of its pixels, 1 where it is painted anew.
        strength: how much of it is drawn again, up to 1: image to image.
        outpaint: pixels that are painted around it: left, right, top, bottom.
        overrides: of the config, of what does not change the network, such as ``task.sampler.steps=16``.
        readers: of other frameworks' files, for a run with frozen weights from a folder.

    Raises:
        UserError: if there is no run, no such step, or nothing that could be asked for in this way.
    """
    ways = {"mask": mask, "strength": strength, "outpaint": outpaint}
    ways = {name: way for name, way in ways.items() if way is not None}
    _require_one_way(image is not None, ways)
    config = _config(folder, overrides)
    with precision(config):
        run = restored(folder, config, step, readers)
        if run.task.draw is None:
            raise ConfigError(f"{folder}: the task {config.task.name} draws no images")
        if image is not None and not run.task.changes_images:
            raise ConfigError(f"--image: the task {config.task.name} draws images of words alone; give --prompt")
        if run.task.read_prompt is not None and label is not None:
            raise ConfigError(f"--class: the task {config.task.name} is asked in words; give --prompt")
        if label is not None and not 0 <= label < run.source.num_classes:
            raise ConfigError(f"--class {label}: the classes are 0 to {run.source.num_classes - 1}")
        labels = jnp.arange(n) % run.source.num_classes if label is None else jnp.full(n, label)
        asked = {"label": labels.astype(jnp.int32)}
        asked |= _in_words(run, prompts, n)
        if image is not None:
            image = pictures.in_channels(image, run.source.image_shape[-1])
        for name, part, shape in (("image", image, run.source.image_shape), ("mask", mask, run.source.image_shape[:2])):
            if part is not None:
                _require_shape(f"--{name}", part.shape, shape)
                asked[name] = jnp.broadcast_to(part, (n, *part.shape))
        # numbers that decide the program
        fixed = {name: way for name, way in ways.items() if name != "mask"}
        draw = jax.jit(lambda variables, key, asked: run.task.draw(variables, key, asked | fixed))
        variables, asked = _over_devices(run.variables, asked, n)
        return np.asarray(draw(variables, jax.random.key(seed), asked))


def _in_words(run: Restored, prompts: tuple[str, ...], n: int) -> dict[str, Array]:
    """What ``draw`` asks of texts, in turn; nothing where the data has no captions."""
    reader, words = run.task.read_prompt or run.source.captions, run.task.words
    if reader is None:
        if prompts:
            raise ConfigError("--prompt: the data of this run has no captions; give --class")
        return {}
    without = [prompt for prompt in prompts if words and not any(word in prompt for word in (*words, "{}"))]
    say(f"warning: {prompt!r} has no new word in it; those of this run: {', '.join(words)}" for prompt in without)
    read = [reader(prompt) for prompt in prompts or run.task.prompts]
    return {name: jnp.stack([read[i % len(read)][name] for i in range(n)]) for name in read[0]}


def _over_devices(variables: Variables, asked: PyTree, n: int) -> tuple[Variables, PyTree]:
    """Puts each device's part of a batch on it, and the variables on all; the batch stays whole for the program.

    Of the devices as many are used as divide ``n``: filling up the batch would draw other images.
    """
    count = max(k for k in range(1, jax.device_count() + 1) if n % k == 0)
    mesh = Mesh(np.array(jax.devices()[:count]), (AXIS,))
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.device_put(variables, whole), jax.device_put(asked, split)


def _config(folder: Path, overrides: tuple[str, ...]) -> Config:
    for override in overrides:
        if override.startswith(IDLE):
            raise ConfigError(f"{override}: has no part in what a checkpoint draws; give task.sampler.KEY=VALUE")
    return run_config(folder, overrides)


def restored(folder: Path, config: Any, step: int | None = None, readers: Readers | None = None) -> Restored:
    """Reads a checkpoint of a workdir, the best by default, with what is frozen beside it; under ``precision(config)``.

    Raises:
        UserError: if there is no such step, or what is frozen is not what the run began with.
    """
    step = step if step is not None else best_or_last(folder, config)
    source, feed, task, executor = assemble(config, readers)
    key = jax.random.PRNGKey(config.train.seed)
    variables = task.init(key, feed.preprocess(jax.tree.map(jnp.asarray, feed.first())))
    like = {"params": variables.params, "state": variables.state}
    found = executor.replicate(load_step(folder / "checkpoints", step, like))
    frozen = executor.replicate(variables.frozen)
    check_frozen(folder, checkpoint.meta(folder / "checkpoints", step), digest(frozen))
    return Restored(step, task, source, feed, executor, Variables(found["params"], found["state"], frozen), key)


def _require_one_way(given: bool, ways: Collection[str]) -> None:
    """Checks that an image is changed in one way, and that there is one."""
    if ways and not given:
        raise ConfigError(f"--{' and --'.join(ways)}: of which image? Give --image FILE too")
    if given and len(ways) != 1:
        said = " and ".join(f"--{name}" for name in ways) or "none"
        raise ConfigError(f"--image goes with one of --mask, --strength and --outpaint, and {said} was given")


def _require_shape(flag: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ConfigError(
            f"{flag}: is {' x '.join(map(str, shape))}; the run's images are {' x '.join(map(str, expected))}"
        )
