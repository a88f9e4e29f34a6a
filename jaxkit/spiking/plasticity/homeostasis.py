"""Plasticity that keeps neurons at a rate."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxkit.errors import ShapeError
from jaxkit.spiking.checks import known, require_positive
from jaxkit.spiking.connections import Carry, Connection, Plan
from jaxkit.spiking.plasticity.rule import Rule, Term, Updates, alone, fired, require_parameter
from jaxkit.spiking.traces import Rate, average


@dataclass(frozen=True, kw_only=True)
class LinearHomeostasis(Rule):
    """Brings neurons to a rate, from below and from above: ``dp = λ (target - rate) / target``, of delays ``-dp``.

    Rates are averages over all steps so far. (The original, inferno 0.0.5, goes up in either case.)

    Args:
        plasticity: λ.
        target: spikes a step. None: it is given at each call.
        param: what changes: weight, bias or delay.

    Raises:
        ValueError: for a target of 0 or less, another parameter.

    Source: van Rossum et al., "Stable Hebbian learning from spike timing-dependent plasticity", 2000, the linear case.
    """

    plasticity: float
    target: float | None = None
    param: Literal["weight", "bias", "delay"] = "weight"

    def __post_init__(self):
        super().__post_init__()
        if self.target is not None:
            require_positive(self, "target")
        if self.param not in ("weight", "bias", "delay"):
            raise ValueError(f"LinearHomeostasis: param must be weight, bias or delay, got {self.param!r}")

    def initialize_carry(self, connection: Connection, batch: int) -> Rate:
        """Makes the state before the first step.

        Raises:
            ValueError: for a connection without the parameter.
        """
        require_parameter(self, connection, self.param)
        return Rate(jnp.zeros((batch, *connection.outshape)), jnp.int32(0))

    def terms(
        self,
        carry: Rate,
        connection: Connection,
        plan: Plan,
        connection_carry: Carry,
        post: Float[Array, "b ..."],
        target: Float[Array, "..."] | float | None = None,
    ) -> tuple[Rate, list[Term]]:
        """Moves the rates by a step and finds the parts of the changes.

        Raises:
            ValueError: if there is no target, or one that is not above 0.
            ShapeError: for a target of another shape.
        """
        target = self.target if target is None else target
        if target is None:
            raise ValueError("LinearHomeostasis has no target; give it one, or one at each call")
        if known(target) and not np.all(np.asarray(target) > 0):
            raise ValueError(f"LinearHomeostasis: target must be above 0, got {target}")
        if jnp.shape(target) not in ((), connection.outshape):
            raise ShapeError(f"LinearHomeostasis: target is a number or {connection.outshape}, not {jnp.shape(target)}")
        carry = average(carry, post)
        # Each parameter's own outputs count, the positions of a filter by their mean.
        lack = connection.postsyn_receptive((target - carry.mean) / target).mean(-1, keepdims=True)
        rate = -self.plasticity if self.param == "delay" else self.plasticity
        return carry, [alone(rate, jnp.maximum(lack, 0)), alone(-rate, jnp.maximum(-lack, 0))]

    def __call__(
        self,
        carry: Rate,
        connection: Connection,
        plan: Plan,
        connection_carry: Carry,
        post: Shaped[Array, "b ..."],
        target: Float[Array, "..."] | float | None = None,
    ) -> tuple[Rate, Updates]:
        """Finds the updates of a step, after which neurons sent the spikes ``post [b *outshape]``.

        ``target``: spikes a step, of all neurons or of each ``[*outshape]``, in place of the rule's.

        Raises:
            ValueError: if there is neither, or it is not above 0.
            ShapeError: for spikes or a target of another shape.
        """
        spikes = fired(connection, connection_carry, post)
        carry, terms = self.terms(carry, connection, plan, connection_carry, spikes, target)
        return carry, self.updates(connection, terms)
