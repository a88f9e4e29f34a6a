"""Learning-rate schedules: functions of the number of updates made so far, usable inside jit."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import optax

from jaxkit.errors import ConfigError
from jaxkit.schema.optimizer import Cosine, CosineWithRestarts, Linear, Multistep, Optimizer, Polynomial, Schedule


def make_schedule(config: Optimizer, steps: int, steps_per_epoch: float | int) -> optax.Schedule:
    """Builds the learning rate of a run of ``steps`` updates; epochs in ``config`` become updates, rounded.

    ``count -> rate``, equal to those of ``diffusers.optimization.get_scheduler``; ``multistep`` to torch's
    ``MultiStepLR`` after a warm-up whose first update has ``rate / warm-up updates``.

    Raises:
        ConfigError: where the warm-up leaves nothing of the run, or a milestone lies within the warm-up.
    """
    problems = config.misfits(steps, steps_per_epoch)
    if problems:
        raise ConfigError("\n".join(f"optimizer.{path}: {problem}" for path, problem in problems.items()))
    schedule, peak = config.schedule, config.learning_rate
    warmup = schedule.warmup_updates(steps_per_epoch)
    if isinstance(schedule, Multistep):
        first, factor = 1, _multistep(schedule.gamma, schedule.milestone_updates(steps_per_epoch))
    else:
        first, factor = 0, _decay(schedule, peak, warmup, steps)

    def learning_rate(count):
        count = jnp.asarray(count)
        return peak * jnp.where(count < warmup, _ratio(count + first, max(1, warmup)), factor(count))

    return learning_rate


def _multistep(gamma: float, milestones: tuple[int, ...]) -> Callable:
    def factor(count):
        passed = jnp.expand_dims(count, -1) >= jnp.asarray(milestones)
        return jnp.prod(jnp.where(passed, gamma, 1.0), axis=-1)

    return factor


def _decay(schedule: Schedule, peak: float, warmup: int, steps: int) -> Callable:
    """The factor on the peak rate once the warm-up is over.

    Differences of counts are taken in integers: float32 has too few digits for the last of a million updates, and
    would miss the update at which a cosine restarts.
    """
    span = steps - warmup

    def done(count):
        return jnp.clip(count - warmup, 0, span)

    def remaining(count):
        return _ratio(span - done(count), span)

    match schedule:
        case Linear():
            return remaining
        case Cosine(cycles=cycles):
            return lambda count: (1 + jnp.cos(2 * math.pi * cycles * _ratio(done(count), span))) / 2
        case CosineWithRestarts(cycles=cycles):

            def restarting(count):
                phase = _ratio(cycles * done(count) % span, span)
                return jnp.where(done(count) < span, (1 + jnp.cos(math.pi * phase)) / 2, 0.0)

            return restarting
        case Polynomial(power=power, end=end):
            return lambda count: end / peak + (1 - end / peak) * remaining(count) ** power
    return lambda count: jnp.ones_like(count, dtype=float)


def _ratio(count, whole: int):
    return jnp.asarray(count, dtype=float) / whole
