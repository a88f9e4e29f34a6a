"""What state learned delays are in, and what each execution of their connection would cost."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, Shaped

from jaxkit.spiking.connections.base import Connection
from jaxkit.spiking.connections.plan import current_reading
from jaxkit.spiking.delays import kernel
from jaxkit.spiking.forecast import Cost, costs


class DelayHealth(NamedTuple):
    """What :func:`delay_health` finds."""

    histogram: Shaped[np.ndarray, " r"]
    """Delays by the step of the past nearest to what they read; those that read nothing count at the nearest end."""
    below: int
    """Delays shorter than 0 ms."""
    above: int
    """Delays longer than the longest."""
    dead: int
    """Synapses that pass nothing on: their weight is 0, or their delay reads nothing."""
    rounded: float
    """The largest distance, ms, of a delay in range from the mean time of what it reads."""
    costs: dict[str, Cost]
    """By execution, of those that the connection can have."""
    executed: str
    """The execution that is used."""

    def lines(self) -> list[str]:
        """The report as text."""
        total = int(self.histogram.sum())
        counts = ", ".join(f"{k}: {count}" for k, count in enumerate(self.histogram) if count)
        told = [
            f"{total} delays, by steps: {counts}",
            f"out of range: {self.below} below 0 ms, {self.above} above the longest",
            f"dead synapses: {self.dead}",
            f"rounding moves delays by up to {self.rounded:.3g} ms",
            "a step costs      MACs     bytes: state          plan       scratch  for gradient",
        ]
        for name, cost in self.costs.items():
            used = " (used)" if name == self.executed else ""
            told.append(f"{name:11}{cost.macs:>11,}" + "".join(f"{size:>14,}" for size in cost[1:]) + used)
        return told


def delay_health(connection: Connection, params: PyTree, batch: int = 1, window: float = 1.0) -> DelayHealth:
    """Looks at a connection's delays, and forecasts what each execution costs for a batch.

    ``params``: ``{weight, bias, delay}``; ``window``: steps, the width of the interpolations ``gaussian`` and
    ``triangle``. What is masked is no synapse and is not counted.

    Raises:
        ValueError: if the connection has no delays.
    """
    if not connection.delayed:
        raise ValueError("the connection has no delays to look at: delay is None or 0")
    raw, step_time = np.asarray(params["delay"]), connection.step_time
    below, above = raw < 0, raw > connection.delay
    plan = connection.plan(params, window)
    term = connection.synapse.terms(step_time)[0]
    coefficients = np.abs(kernel(plan.delay, current_reading(connection, term, window)))
    reads = coefficients.any(0)
    mean = np.tensordot(np.arange(connection.record), coefficients, 1) / np.where(reads, coefficients.sum(0), 1)
    steps = np.rint(np.where(reads, mean, np.where(below, 0, connection.record - 1))).astype(int)
    moved = np.abs(mean * step_time - raw)

    counted = np.asarray(connection.masked_delay(jnp.ones(raw.shape))) != 0
    exists = np.asarray(connection.masked(jnp.ones(connection.weight_shape))) != 0
    passes = np.asarray(connection.over_weights(jnp.asarray(reads))) & (np.asarray(plan.weight) != 0)
    return DelayHealth(
        np.bincount(steps[counted], minlength=connection.record),
        int((below & counted).sum()),
        int((above & counted).sum()),
        int((exists & ~passes).sum()),
        float(moved[counted & reads & ~below & ~above].max(initial=0.0)),
        costs(connection, batch),
        connection.executed,
    )
