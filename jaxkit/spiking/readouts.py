"""What spikes say: counts, rates, times, intervals, distances between trains, and classes by firing rates."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from jaxkit.errors import ShapeError
from jaxkit.spiking.checks import Sizes, as_shape, known, require_not_negative, require_whole

Spikes = Num[Array, "t ..."] | Bool[Array, "t ..."]


def spike_counts(spikes: Spikes) -> Float[Array, "..."]:
    """Counts the spikes of each neuron ``[...]`` over time; differentiable, and exact whatever the spikes' dtype."""
    return jnp.sum(spikes, 0, dtype=jnp.float32)


def spike_rates(spikes: Spikes, step_time: float) -> Float[Array, "..."]:
    """The mean rate of each neuron ``[...]`` in Hz, of steps of ``step_time`` ms."""
    return spike_counts(spikes) * (1000 / (len(spikes) * step_time))


def first_spike_times(spikes: Spikes, step_time: float) -> Float[Array, "..."]:
    """The time in ms of each neuron's first spike ``[...]``; infinite if it never fires. The first step is at 0 ms."""
    fired = spikes != 0
    return jnp.where(fired.any(0), jnp.argmax(fired, 0) * step_time, jnp.inf)


def spike_times(spikes: Spikes, step_time: float) -> Float[Array, "t ..."]:
    """The times in ms of each neuron's spikes in order, then NaN. The first step is at 0 ms."""
    steps = jnp.arange(len(spikes), dtype=jnp.float32)
    times = jnp.expand_dims(steps * step_time, tuple(range(1, spikes.ndim)))
    return jnp.sort(jnp.where(spikes != 0, times, jnp.nan), 0)


def isi(spikes: Spikes, step_time: float) -> Float[Array, "t_1 ..."]:
    """The intervals in ms between each neuron's successive spikes ``[t-1 ...]``, then NaN.

    Of ``t`` steps there are ``t - 1`` intervals at most, and as many rows, so that the shape is known before the
    spikes are; ``jnp.nanmean`` and the like pass over the NaN.
    """
    return jnp.diff(spike_times(spikes, step_time), axis=0)


def victor_purpura_pair_dist(
    t0: Float[Array, " m"], t1: Float[Array, " n"], cost: float | Float[Array, " k"]
) -> Float[Array, " k"]:
    """What it costs at least to turn one spike train into another.

    Adding or deleting a spike costs 1, moving it by ``dt`` costs ``cost * dt``: 0 compares counts; as ``cost`` grows
    to infinity, which is allowed, only spikes at the same time are alike. By dynamic programming over the spikes of
    both trains; ``vmap`` takes many pairs at once.

    Source: Victor & Purpura, "Metric-space analysis of spike trains: theory, algorithms and application", 1997.

    Args:
        t0, t1: spike times of the trains, in any order. NaN are no spikes, so trains may be padded with them, as
            :func:`spike_times` does.
        cost: per unit of time; with several the distance is found for each.

    Raises:
        ValueError: for a cost below 0.
    """
    if known(cost) and not np.all(np.asarray(cost) >= 0):
        raise ValueError(f"moving a spike must cost 0 or more, got {cost}")
    t0, t1 = jnp.sort(t0), jnp.sort(t1)
    cost = jnp.atleast_1d(jnp.asarray(cost, t0.dtype))[:, None]
    additions = jnp.arange(len(t1) + 1, dtype=t0.dtype)

    def one(row: Float[Array, "k n1"], t: Float[Array, ""]) -> tuple[Float[Array, "k n1"], None]:
        apart = jnp.abs(t - t1)
        moved = row[:, :-1] + jnp.where(apart > 0, cost * apart, 0)
        best = (row + 1).at[:, 1:].min(jnp.where(jnp.isnan(t1), jnp.inf, moved))
        # additions come last: the cheapest start plus one for each
        new = additions + lax.cummin(best - additions, axis=1)
        return jnp.where(jnp.isnan(t), row, new), None

    start = jnp.broadcast_to(additions, (len(cost), len(t1) + 1))
    return lax.scan(one, start, t0)[0][:, jnp.sum(~jnp.isnan(t1))]


@dataclass(frozen=True)
class MaxRateClassifier:
    """Gives each neuron the class for which it fires most, and an input the class whose neurons fire most.

    What it learns are ``rates`` [*shape k]: how strongly each neuron fires for each class. Each of its functions takes
    them and, as ``inputs``, the firing rates [b *shape] of the neurons for a batch. Neurons that never fired belong to
    no class.

    Source: Diehl & Cook, "Unsupervised learning of digit recognition using spike-timing-dependent plasticity", 2015.

    Args:
        shape: of the neurons.
        num_classes: ``k``
        decay: by ``exp(-decay * m)`` an update shrinks the rates of a class of which ``m`` inputs are in the batch.

    Raises:
        ValueError: if a size is not positive, or ``decay`` is negative.
    """

    shape: Sizes
    num_classes: int
    decay: float = 0.0

    def __post_init__(self):
        require_whole(self, "shape")
        require_whole(self, "num_classes", axes=0)
        require_not_negative(self, "decay")
        object.__setattr__(self, "shape", as_shape(self.shape))

    def __call__(
        self, rates: Float[Array, "*n k"], spikes: Spikes, labels: Int[Array, " b"]
    ) -> tuple[Float[Array, "*n k"], Int[Array, " b"]]:
        """Classifies the trains [t b *shape] of a batch by what was learned before it; then learns their labels."""
        inputs = jnp.mean(spikes, 0, dtype=jnp.float32)
        return self.update(rates, inputs, labels), self.classify(rates, inputs)

    def initialize_carry(self) -> Float[Array, "*n k"]:
        """No neuron has fired."""
        return jnp.zeros((*self.shape, self.num_classes))

    def update(
        self, rates: Float[Array, "*n k"], inputs: Float[Array, "b ..."], labels: Int[Array, " b"]
    ) -> Float[Array, "*n k"]:
        """Adds to the rates their means over the inputs of each class, after the decay.

        Raises:
            ShapeError: for rates, inputs or labels of other shapes.
            ValueError: for labels of no class. Traced ones cannot be looked at: those inputs are left out.
        """
        given = rates.shape, inputs.shape, labels.shape
        if given != ((*self.shape, self.num_classes), (*labels.shape[:1], *self.shape), labels.shape[:1]):
            raise ShapeError(
                f"rates, inputs and labels {given} for neurons {self.shape} and {self.num_classes} classes"
            )
        stray = np.setdiff1d(np.asarray(labels), np.arange(self.num_classes)) if known(labels) else ()
        if len(stray):
            raise ValueError(f"labels {stray} are none of the classes 0 to {self.num_classes - 1}")
        members = jax.nn.one_hot(labels, self.num_classes)
        counts = members.sum(0)
        sums = jnp.einsum("b...,bk->...k", inputs.astype(jnp.float32), members, precision="highest")
        return jnp.exp(-self.decay * counts) * rates + sums / jnp.maximum(counts, 1)

    def proportions(self, rates: Float[Array, "*n k"]) -> Float[Array, "*n k"]:
        """Which part of its firing each neuron does for each class; 0 if it never fired."""
        total = rates.sum(-1, keepdims=True)
        return rates / jnp.where(total > 0, total, 1)

    def assignments(self, rates: Float[Array, "*n k"]) -> Int[Array, "*n"]:
        """The class of each neuron; -1 if it never fired."""
        return jnp.where(rates.sum(-1) > 0, jnp.argmax(rates, -1), -1)

    def occurrences(self, rates: Float[Array, "*n k"]) -> Int[Array, " k"]:
        """How many neurons each class has."""
        return jnp.bincount(self.assignments(rates).ravel() + 1, length=self.num_classes + 1)[1:]

    def regress(
        self, rates: Float[Array, "*n k"], inputs: Float[Array, "b ..."], *, proportional: bool = True
    ) -> Float[Array, "b k"]:
        """The mean rate of each class's neurons; 0 for a class without neurons.

        Args:
            rates: what was learned.
            inputs: firing rates to classify.
            proportional: a neuron counts by the part of its firing that it does for its class.
        """
        weights = jax.nn.one_hot(self.assignments(rates), self.num_classes)
        if proportional:
            weights *= self.proportions(rates)
        inputs = rearrange(inputs.astype(jnp.float32), "b ... -> b (...)")
        sums = jnp.matmul(inputs, rearrange(weights, "... k -> (...) k"), precision="highest")
        return sums / jnp.maximum(self.occurrences(rates), 1)

    def classify(
        self, rates: Float[Array, "*n k"], inputs: Float[Array, "b ..."], *, proportional: bool = True
    ) -> Int[Array, " b"]:
        """The class whose neurons fire most, by :meth:`regress`."""
        return jnp.argmax(self.regress(rates, inputs, proportional=proportional), -1)
