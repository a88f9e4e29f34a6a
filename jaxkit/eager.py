"""The same training twice, compiled and op by op: does the compiler change what is learnt, and what does it save?"""

import json
import math
import statistics
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxkit.config import Config
from jaxkit.errors import ConfigError
from jaxkit.evaluation import compiled_evaluation, evaluate
from jaxkit.experiment import prepare
from jaxkit.schema.optimizer import Sgd
from jaxkit.step import TrainState, gradient_of
from jaxkit.tasks.task import Variables
from jaxkit.train import Run, compiled_step, initial_state


@dataclass(frozen=True)
class Tolerance:
    """How far the two may be apart."""

    losses: float
    """Of each step, relative."""
    parameters: float
    """Relative to the way they have come."""
    statistics: float
    """Relative to the largest of their layer; the loss of the evaluation, relative."""
    shares: float
    """Absolute, other metrics of the evaluation: examples on the brink, which rounding carries over."""


# XLA fuses operations, so it adds in another order and rounds less often. After five steps float32 losses were 1e-6 of
# their size apart, where another dropout mask makes 1e-2; in half precision the rounding itself is that large.
# In bf16 rounding put the parameters of a tiny network with dropout 0.44 apart, its losses 0.03, its statistics 0.08;
# another mask 1.3, 0.1 and 0.16.
TOLERANCES = {
    "no": Tolerance(1e-5, 1e-4, 1e-5, 1e-2),
    "fp16": Tolerance(1e-2, 0.2, 5e-2, 5e-2),
    "bf16": Tolerance(5e-2, 0.5, 0.2, 5e-2),
}
# Adam and Lion divide by the gradient's size, so that rounding in a small gradient becomes part of a whole step, and of
# a whole one in a bias ahead of a normalisation, which running means follow late.
NORMALISED = 5e-2
# Of the largest root mean square of an array's gradient: an entry below is rounding and nothing else in float32.
NO_GRADIENT = 1e-5


class Trajectory(NamedTuple):
    """A few steps of training."""

    losses: list[float]
    params: PyTree
    state: PyTree
    metrics: dict[str, float]
    """Of the evaluation after the last step."""
    seconds: float
    """Median of the steps after the first."""


@dataclass(frozen=True)
class Comparison:
    """Two trainings from the same variables, over the same batches, with the same keys."""

    losses: dict[str, list[float]]
    """Of each step, ``compiled`` and ``eager``, as all that follows."""
    metrics: dict[str, dict[str, float]]
    seconds: dict[str, float]
    loss_difference: float
    """The largest of any step, relative."""
    parameters_difference: float
    """L2 norm over all that have a gradient, relative to the way they have come."""
    largest_difference: tuple[float, str]
    """Of any one that has a gradient, absolute, and the path of its array."""
    state_difference: float
    """Of any one value that the forward pass moves, relative to the largest of its layer."""
    metric_differences: dict[str, float]
    """Relative of the evaluation's loss, else absolute; of a metric above 1 relative."""
    no_gradient: dict[str, int]
    """How many in which array have none, such as a bias ahead of a normalisation. Adam makes whole steps of rounding,
    so their differences mean nothing."""
    tolerance: Tolerance

    @property
    def ratio(self) -> float:
        """How many times as long a step takes op by op."""
        return self.seconds["eager"] / self.seconds["compiled"]

    @property
    def agrees(self) -> bool:
        """Whether losses, parameters, statistics and metrics are within the tolerance; NaN is not."""
        return (
            self.loss_difference <= self.tolerance.losses
            and self.parameters_difference <= self.tolerance.parameters
            and self.state_difference <= self.tolerance.statistics
            and all(apart <= _allowed(name, self.tolerance) for name, apart in self.metric_differences.items())
        )

    def json(self) -> str:
        """Writes all as JSON; what is not finite is null."""
        found = {**asdict(self), "ratio": self.ratio, "agrees": self.agrees}
        return json.dumps(_finite(found), indent=2) + "\n"

    def table(self) -> str:
        """Lays out all for a terminal."""
        lines = [f"{'step':>12}  {'compiled':>14}  {'op by op':>14}"]
        for step, pair in enumerate(zip(*self.losses.values(), strict=True), start=1):
            lines.append(f"{f'loss {step}':>12}  " + "  ".join(f"{loss:14.9g}" for loss in pair))
        for name in self.metrics["eager"]:
            lines.append(f"{name:>12}  " + "  ".join(f"{found[name]:14.9g}" for found in self.metrics.values()))
        lines.append(f"{'ms a step':>12}  " + "  ".join(f"{1e3 * s:14.3f}" for s in self.seconds.values()))
        largest, path = self.largest_difference
        lines += [
            f"op by op takes {self.ratio:.1f} times as long",
            f"losses differ by {self.loss_difference:.2g} of their size (tolerance {self.tolerance.losses:g})",
            f"parameters differ by {self.parameters_difference:.2g} of the way they have come (tolerance "
            f"{self.tolerance.parameters:g}); any one by at most {largest:.2g}, in {path}",
            f"statistics differ by {self.state_difference:.2g} of their size (tolerance {self.tolerance.statistics:g})",
        ]
        for name, apart in self.metric_differences.items():
            lines.append(
                f"{name} of the evaluation differs by {apart:.2g} (tolerance {_allowed(name, self.tolerance):g})"
            )
        if self.no_gradient:
            count = sum(self.no_gradient.values())
            lines.append(f"{count} without a gradient are left out of that, in {', '.join(self.no_gradient)}")
        return "\n".join(lines)


def compare(config: Config, steps: int = 5) -> Comparison:
    """Trains the first ``steps`` of a run compiled, and again under ``jax.disable_jit``, and evaluates both.

    The two share initial variables, batches, augmentation and dropout keys, so they differ by rounding alone.

    Raises:
        ConfigError: whatever is wrong with the config; for ``pmap``, which is compiled always; for less than 2 steps.
    """
    if steps < 2:
        raise ConfigError(f"--steps {steps}: the first step warms up and is not timed; take 2 or more")
    if config.train.parallel == "pmap":
        raise ConfigError("train.parallel = pmap is compiled or nothing; compare with train.parallel=jit")
    with jax.default_matmul_precision(config.train.matmul_precision):
        _, run = prepare(config, Path("runs"))
        literal = replace(run, executor=run.executor._replace(compile=_op_by_op))
        state, frozen = initial_state(
            run.task, run.feed, run.optimizer, run.executor, jax.random.PRNGKey(run.config.seed)
        )
        moved = _moved(run, state, frozen)
        found = {"compiled": _follow(run, state, frozen, steps), "eager": _follow(literal, state, frozen, steps)}
    tolerance = TOLERANCES[config.train.precision]
    if not isinstance(config.optimizer, Sgd):
        later = {name: max(getattr(tolerance, name), NORMALISED) for name in ("parameters", "statistics", "shares")}
        tolerance = replace(tolerance, **later)
    return _compared(found, state.params, moved, tolerance)


def _op_by_op(step, *_, donate=True):
    """Stands in for an executor's ``compile``."""

    def run(*arguments):
        with jax.disable_jit():
            return step(*arguments)

    return run


def _follow(run: Run, state: TrainState, frozen: PyTree, steps: int) -> Trajectory:
    """Takes the first steps of a run, each waited for, and evaluates."""
    step = compiled_step(run, state, frozen)
    state = run.executor.replicate(state)  # a compiled step consumes its state, and this one is needed again
    losses, seconds = [], []
    with closing(run.feed.batches(0)) as batches:
        for batch in islice(batches, steps):
            placed = jax.block_until_ready(run.executor.put_batch(batch))
            began = time.perf_counter()
            state, metrics = jax.block_until_ready(step(state, frozen, placed))
            seconds.append(time.perf_counter() - began)
            losses.append(float(metrics["loss"]))
    params, moved = state.params, state.state
    evaluation = compiled_evaluation(run.task, run.feed, run.executor, jax.device_get(state.key), params, moved, frozen)
    metrics = evaluate(evaluation, params, moved, frozen)
    return Trajectory(losses, params, moved, metrics, statistics.median(seconds[1:]))


def _moved(run: Run, state: TrainState, frozen: PyTree) -> dict[str, np.ndarray]:
    """Which entries of the parameters the loss depends on, by path: bool arrays."""
    batch = run.feed.preprocess(jax.tree.map(jnp.asarray, run.feed.first()))
    update = jax.jit(run.task.update or gradient_of(run.task.loss, 1.0))
    _, gradients = update(Variables(state.params, state.state, frozen), batch, state.key)
    gradients = _leaves(gradients)
    largest = max(math.sqrt(np.square(leaf).mean()) for leaf in gradients.values())
    return {path: ~(np.abs(leaf) < NO_GRADIENT * largest) for path, leaf in gradients.items()}


def _compared(
    found: dict[str, Trajectory], start: PyTree, moved: dict[str, np.ndarray], tolerance: Tolerance
) -> Comparison:
    compiled, eager = found["compiled"], found["eager"]
    ours, theirs, first = (_leaves(tree) for tree in (compiled.params, eager.params, start))
    differences = {path: (ours[path] - theirs[path])[mask] for path, mask in moved.items()}
    way = {path: (theirs[path] - first[path])[mask] for path, mask in moved.items()}
    return Comparison(
        losses={name: trajectory.losses for name, trajectory in found.items()},
        metrics={name: trajectory.metrics for name, trajectory in found.items()},
        seconds={name: trajectory.seconds for name, trajectory in found.items()},
        loss_difference=float(np.max(np.abs(np.subtract(compiled.losses, eager.losses)) / np.abs(eager.losses))),
        parameters_difference=_norm(differences) / _norm(way),
        largest_difference=max((_largest(leaf), path) for path, leaf in differences.items()),
        state_difference=_of_layer(_leaves(compiled.state), _leaves(eager.state)),
        metric_differences={name: _apart(name, ours, eager.metrics[name]) for name, ours in compiled.metrics.items()},
        no_gradient={path: int((~mask).sum()) for path, mask in moved.items() if not mask.all()},
        tolerance=tolerance,
    )


def _allowed(metric: str, tolerance: Tolerance) -> float:
    return tolerance.statistics if metric == "loss" else tolerance.shares


def _apart(metric: str, ours: float, theirs: float) -> float:
    return abs(ours - theirs) / (abs(theirs) if metric == "loss" else max(1.0, abs(theirs)))


def _of_layer(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The largest difference of any value, relative to the largest of its layer."""
    sizes: dict[str, float] = {}
    for path, leaf in theirs.items():
        layer = path.rpartition("/")[0]
        sizes[layer] = max(sizes.get(layer, 0.0), _largest(leaf))
    apart = [_largest(ours[path] - leaf) / (sizes[path.rpartition("/")[0]] or 1.0) for path, leaf in theirs.items()]
    return float(np.max(apart, initial=0))  # NaN stays


def _largest(leaf: np.ndarray) -> float:
    return float(np.abs(leaf).max(initial=0))


def _leaves(tree: PyTree) -> dict[str, np.ndarray]:
    """Leaves by path, in float64: a difference is then exact."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float64) for path, leaf in flat}


def _norm(leaves: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(float(np.square(leaf).sum()) for leaf in leaves.values()))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
