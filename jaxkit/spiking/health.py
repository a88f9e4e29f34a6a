"""What state learned delays are in, and what each execution of a connection would cost, before it is run."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxkit.spiking.connections.base import Connection
from jaxkit.spiking.connections.plan import current_reading
from jaxkit.spiking.delays import kernel


class Cost(NamedTuple):
    """What a step of an execution costs."""

    macs: int
    """Multiply-accumulates of a step."""
    bytes: int
    """Of state, of the kernel, and of what a step makes besides its output."""


class DelayHealth(NamedTuple):
    """What :func:`delay_health` finds."""

    histogram: np.ndarray
    """Delays by their whole steps, ``[r]``; those out of range count at the nearest end."""
    below: int
    """Delays shorter than 0 ms."""
    above: int
    """Delays longer than the longest."""
    dead: int
    """Synapses that pass nothing on: their weight is 0, or their delay reads nothing."""
    rounded: float
    """The largest distance, ms, of a delay in range from the mean time of what it reads."""
    costs: dict[str, Cost]
    """By execution."""

    def lines(self) -> list[str]:
        """The report as text."""
        total = int(self.histogram.sum())
        counts = ", ".join(f"{k}: {count}" for k, count in enumerate(self.histogram) if count)
        told = [
            f"{total} delays, by steps: {counts}",
            f"out of range: {self.below} below 0 ms, {self.above} above the longest",
            f"dead synapses: {self.dead}",
            f"rounding moves delays by up to {self.rounded:.3g} ms",
        ]
        return told + [f"{name}: {c.macs:,} MACs a step, {c.bytes:,} bytes" for name, c in self.costs.items()]


def delay_health(connection: Connection, params: PyTree, batch: int = 1) -> DelayHealth:
    """Looks at a connection's delays, and forecasts what each execution costs for a batch.

    Raises:
        ValueError: if the connection has no delays.
    """
    if not connection.delayed:
        raise ValueError("the connection has no delays to look at: delay is None or 0")
    raw, longest, step_time = np.asarray(params["delay"]), connection.delay, connection.step_time
    plan = connection.plan(params)
    term = connection.synapse.terms(step_time)[0]
    coefficients = np.asarray(kernel(plan.delay, current_reading(connection, term)))
    bounded = np.clip(raw, 0, longest)
    steps = np.arange(connection.record).reshape(-1, *[1] * raw.ndim)
    reads = coefficients.any(0)
    mean = (np.where(coefficients != 0, steps, 0) * np.abs(coefficients)).sum(0) / np.where(
        reads, np.abs(coefficients).sum(0), 1
    )
    moved = np.abs(mean * step_time - bounded)[reads & (raw >= 0) & (raw <= longest)]
    passes = np.asarray(connection.over_weights(jnp.asarray(reads))) & (np.asarray(plan.weight) != 0)
    return DelayHealth(
        np.bincount(np.rint(bounded / step_time).astype(int).ravel(), minlength=connection.record),
        int((raw < 0).sum()),
        int((raw > longest).sum()),
        int((~passes).sum()),
        float(moved.max(initial=0.0)),
        costs(connection, batch),
    )


def costs(connection: Connection, batch: int) -> dict[str, Cost]:
    """Forecasts the cost of a step by execution, from shapes alone."""
    r, size = connection.record, jnp.dtype(connection.dtype).itemsize
    synapses, weights = math.prod(connection.synapse_shape), math.prod(connection.weight_shape)
    outputs = math.prod(connection.product_shape)
    # of a convolution every weight acts once for each position of its filter
    uses = batch * weights * (outputs // connection.weight_shape[0] if not connection.elementwise else 1)
    ring, kernels = r * batch * synapses, r * weights
    ago = len(connection.ago)
    amounts = {
        "gather": (uses, ring + uses),
        "grouped": (ago * uses, ring + ago * weights + ago * batch * outputs),
        "future": (r * uses, kernels + 2 * r * batch * outputs),
        "convolution": (ago * uses, ring + ago * weights),
    }
    return {name: Cost(macs, size * elements) for name, (macs, elements) in amounts.items()}
