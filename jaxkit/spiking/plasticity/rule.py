"""What learning rules have in common: how products of what happened before and after become changes of parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree, Shaped

from jaxkit.errors import ShapeError
from jaxkit.spiking.connections import Carry, Connection, Plan

Updates = dict[str, tuple[Float[Array, "..."], Float[Array, "..."]]]
"""Of each parameter what is to be added and what taken away, both of its shape and 0 or more."""


class Term(NamedTuple):
    """A part of a rule: ``rate`` times ``sum_r post_r pre_r`` of each sample, in the layout of the weights.

    ``r`` are the places at which a weight is used, one but for convolutions. Axes of size 1 are broadcast. Products are
    in full float32 on any device.
    """

    rate: float
    """Its sign says whether the part is added or taken away."""
    post: Float[Array, "b ..."]
    """``[b ... r]``, 0 or more"""
    pre: Float[Array, "b ..."]
    """``[b ... r]``, 0 or more"""

    def of_samples(self) -> Float[Array, "b ..."]:
        """The products of each sample, without the rate."""
        return jnp.einsum("b...r,b...r->b...", self.post, self.pre, precision="highest")

    def total(self) -> Float[Array, "..."]:
        """The same of all samples: of a dense connection without delays one matrix product."""
        shape = jnp.broadcast_shapes(self.post.shape[1:-1], self.pre.shape[1:-1])
        # XLA sees that matrix product only where axes of size 1 are out of its way
        (post, outer), (pre, inner) = _without_ones(self.post), _without_ones(self.pre)
        kept = [axis for axis, size in enumerate(shape, 1) if size > 1]
        return jnp.einsum(post, outer, pre, inner, kept, precision="highest").reshape(shape)


def _without_ones(x: Float[Array, "b ..."]) -> tuple[Float[Array, "b ..."], list[int]]:
    """Leaves out axes of size 1, all but the batch; gives those left too."""
    axes = [0, *(axis for axis in range(1, x.ndim) if x.shape[axis] > 1)]
    return x.reshape([x.shape[axis] for axis in axes]), axes


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """A local learning rule.

    ``carry = rule.initialize_carry(connection, batch)``, then after each step of the connection and the neurons behind
    it ``carry, updates = rule(carry, connection, plan, connection_carry, post)``, with the connection's carry of after
    the step and the neurons' spikes. Updates are for :class:`Updater`. What a parameter shares among weights changes
    by the sum of theirs.

    Args:
        batch_reduction: how changes of a batch become one: mean, sum, or a function of the changes ``[b ...]`` and the
            axis 0.
        axis_name: the mapped axis (of ``pmap``, ``vmap``, ``shard_map``) whose devices share the batch.

    Raises:
        ValueError: for another reduction.
    """

    batch_reduction: Literal["mean", "sum"] | Callable[[Array, int], Array] = "mean"
    axis_name: str | None = None

    param: ClassVar[str] = "weight"
    """The parameter that changes."""

    def __post_init__(self):
        if not callable(self.batch_reduction) and self.batch_reduction not in ("mean", "sum"):
            name = type(self).__name__
            raise ValueError(f"{name}: batch_reduction must be mean, sum or a function, got {self.batch_reduction!r}")

    @abstractmethod
    def initialize_carry(self, connection: Connection, batch: int) -> PyTree:
        """Makes the state before the first step."""

    @abstractmethod
    def terms(
        self, carry: PyTree, connection: Connection, plan: Plan, connection_carry: Carry, post: Float[Array, "b ..."]
    ) -> tuple[PyTree, list[Term]]:
        """Moves the state by a step and finds the parts of the changes; ``post``: 0 or 1."""

    def __call__(
        self, carry: PyTree, connection: Connection, plan: Plan, connection_carry: Carry, post: Shaped[Array, "b ..."]
    ) -> tuple[PyTree, Updates]:
        """Finds the updates of a step, after which neurons sent the spikes ``post [b *outshape]``.

        Raises:
            ShapeError: for spikes of another shape.
        """
        carry, terms = self.terms(carry, connection, plan, connection_carry, fired(connection, connection_carry, post))
        return carry, self.updates(connection, terms)

    def updates(self, connection: Connection, terms: Iterable[Term]) -> Updates:
        """Reduces terms to the updates of the parameter."""
        sides = {True: [], False: []}
        for term in terms:
            sides[term.rate >= 0].append(abs(term.rate) * self._reduced(term))
        pair = (sum(sides[side], jnp.zeros(())) for side in (True, False))
        return {self.param: tuple(_like_parameter(connection, self.param, change) for change in pair)}

    def _reduced(self, term: Term) -> Float[Array, "..."]:
        """A term without its rate, of the whole batch."""
        if callable(self.batch_reduction):
            samples = term.of_samples()
            if self.axis_name is not None:
                samples = lax.all_gather(samples, self.axis_name, tiled=True)
            return self.batch_reduction(samples, 0)
        mean = self.batch_reduction == "mean"
        total = term.total() / len(term.post) if mean else term.total()
        if self.axis_name is None:
            return total
        return lax.pmean(total, self.axis_name) if mean else lax.psum(total, self.axis_name)


@dataclass(frozen=True, kw_only=True)
class Rewarded(Rule):
    """A rule whose changes count as much as a reward says; by default their sum over the batch."""

    batch_reduction: Literal["mean", "sum"] | Callable[[Array, int], Array] = "sum"

    def __call__(
        self,
        carry: PyTree,
        connection: Connection,
        plan: Plan,
        connection_carry: Carry,
        post: Shaped[Array, "b ..."],
        signal: Shaped[Array, "..."] | float,
        scale: float = 1.0,
    ) -> tuple[PyTree, Updates]:
        """Finds the updates of a step, after which neurons sent the spikes ``post [b *outshape]``.

        They are multiplied by ``|signal scale|``; where ``signal``, one number or one of each sample ``[b]``, is
        negative, what was added is taken away. A mean is over the whole batch, whatever the signs in it.

        Raises:
            ShapeError: for spikes or a signal of another shape.
        """
        if jnp.shape(signal) not in ((), (len(post),)):
            raise ShapeError(f"{type(self).__name__}: a signal is one number or [{len(post)}], not {jnp.shape(signal)}")
        carry, terms = self.terms(carry, connection, plan, connection_carry, fired(connection, connection_carry, post))
        size = jnp.broadcast_to(jnp.asarray(signal, jnp.float32) * abs(scale), len(post))
        judged = []
        for term in terms:
            gain = size.reshape(-1, *(1,) * (term.post.ndim - 1))
            judged.append(term._replace(post=term.post * jnp.maximum(gain, 0)))
            judged.append(term._replace(rate=-term.rate, post=term.post * jnp.maximum(-gain, 0)))
        return carry, self.updates(connection, judged)


def _like_parameter(connection: Connection, param: str, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Lays out a change of each weight, or of each output, as the parameter is."""
    if param == "bias":
        return connection.like_bias(x)
    x = connection.masked(jnp.broadcast_to(x, connection.weight_shape))
    if param == "weight":
        return x
    delay = jax.ShapeDtypeStruct(connection.delay_shape, x.dtype)
    return jax.linear_transpose(connection.over_weights, delay)(x)[0]


def fired(connection: Connection, carry: Carry, post: Shaped[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Where neurons behind a connection of this carry fired, 1, and where not, 0.

    Raises:
        ShapeError: for spikes of another shape than the connection's output.
    """
    expected = (carry.batch, *connection.outshape)
    if post.shape != expected:
        raise ShapeError(f"{type(connection).__name__}: spikes of neurons behind it are {expected}, not {post.shape}")
    return (post != 0).astype(jnp.float32)


def alone(rate: float, change: Float[Array, "b ..."]) -> Term:
    """A term that is no product, of changes ``[b ... r]``."""
    # A product with ones sums many times faster on CPUs than a sum of what must be computed first.
    return Term(rate, jnp.ones((len(change), *(1,) * (change.ndim - 1))), change)


def require_parameter(rule: Rule, connection: Connection, param: str) -> None:
    """Checks that a connection has what a rule needs.

    Raises:
        ValueError: naming both.
    """
    if (param == "delay" and connection.delay is None) or (param == "bias" and not connection.bias):
        raise ValueError(f"{type(rule).__name__} needs a {param}; this {type(connection).__name__} has none")
    if param == "delay" and not connection.delayed:
        raise ValueError(f"{type(rule).__name__} moves delays, and the longest delay is 0: nothing would be delayed")
