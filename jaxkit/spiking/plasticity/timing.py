"""Plasticity by the time between the last spikes before and after a synapse, at every step, through any kernel.

The time is ``t_post - t_pre`` in ms, of rules that account for delays less the delay: positive where what was sent
arrived before the neuron fired. Synapses of which either side never had a spike do not change.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkit.spiking.checks import known, require_not_negative, require_positive
from jaxkit.spiking.connections import Carry, Connection, Plan
from jaxkit.spiking.delays import taps
from jaxkit.spiking.history import History, latest, push
from jaxkit.spiking.plasticity.presynaptic import Presynaptic, presynaptic
from jaxkit.spiking.plasticity.rule import Rewarded, Rule, Term, alone, require_parameter
from jaxkit.spiking.traces import age


def exp_stdp_post_kernel(diff: Float[Array, "*n"], learning_rate: float, time_constant: float) -> Float[Array, "*n"]:
    """The change ``learning_rate exp(-|t| / time_constant)`` where ``t >= 0``, else 0; of times in ms."""
    return jnp.where(diff >= 0, learning_rate * _decay(diff, time_constant), 0.0)


def exp_stdp_pre_kernel(diff: Float[Array, "*n"], learning_rate: float, time_constant: float) -> Float[Array, "*n"]:
    """The change ``learning_rate exp(-|t| / time_constant)`` where ``t < 0``, else 0; of times in ms."""
    return jnp.where(diff < 0, learning_rate * _decay(diff, time_constant), 0.0)


def _decay(time: Float[Array, "*n"], time_constant: float) -> Float[Array, "*n"]:
    if known(time_constant) and not np.all(np.asarray(time_constant) > 0):
        raise ValueError(f"time_constant must be above 0 ms, got {time_constant}")
    return jnp.exp(-jnp.abs(time) / time_constant)


def _decays(time: Float[Array, "..."], tc_early: float, tc_late: float) -> tuple[Float[Array, "..."], ...]:
    """``exp(-|t| / time constant)`` where ``t >= 0``, and where ``t < 0``."""
    early = time >= 0
    decay = jnp.exp(-jnp.abs(time) / jnp.where(early, tc_early, tc_late))
    return jnp.where(early, decay, 0.0), jnp.where(early, 0.0, decay)


class AgeCarry(NamedTuple):
    """Ages (:func:`jaxkit.spiking.traces.age`) of the spikes before a connection and after it ``[b *outshape]``."""

    pre: History
    post: Float[Array, "b ..."]


@dataclass(frozen=True, kw_only=True)
class TimingRule(Rule):
    """A rule on the time between the last spikes."""

    @abstractmethod
    def changes(self, time: Float[Array, "..."]) -> list[tuple[float, Float[Array, "..."]]]:
        """The changes at times in ms: rates, and what they multiply, which is 0 or more."""

    def before(self, connection: Connection) -> Presynaptic:
        """What is known of the spikes before: when they were sent."""
        require_parameter(self, connection, "delay")
        return Presynaptic(connection, "sent")

    def lag(self, connection: Connection, plan: Plan) -> Float[Array, "..."] | float:
        """How much later than when they are known of spikes arrive, ms, as a presynaptic receptive: the delays."""
        return connection.over_weights(plan.delay)[..., None]

    def initialize_carry(self, connection: Connection, batch: int) -> AgeCarry:
        """Makes the state before the first step.

        Raises:
            ValueError: of rules that account for delays, for a connection without.
        """
        return AgeCarry(self.before(connection).nothing(batch, "age"), jnp.zeros((batch, *connection.outshape)))

    def terms(
        self, carry: AgeCarry, connection: Connection, plan: Plan, connection_carry: Carry, post: Float[Array, "b ..."]
    ) -> tuple[AgeCarry, list[Term]]:
        before = self.before(connection)
        pre = push(carry.pre, {"age": age(latest(carry.pre)["age"], before.seen(plan, connection_carry))})
        carry = AgeCarry(pre, age(carry.post, post))

        since_pre, since_post = before.recalled(plan, pre, "age"), connection.postsyn_receptive(carry.post)
        both = (since_pre > 0) & (since_post > 0)
        time = (since_pre - since_post) * connection.step_time - self.lag(connection, plan)
        return carry, [alone(rate, jnp.where(both, change, 0.0)) for rate, change in self.changes(time)]


@dataclass(frozen=True, kw_only=True)
class DelayAdjustedKernelSTDP(TimingRule):
    """Changes weights by two functions of the time by which spikes arrive before those they meet.

    Args:
        kernel_post, kernel_pre: functions of the times ``[...]``, ms; changes are the sum of both.
        kernel_post_kwargs, kernel_pre_kwargs: their further arguments.
    """

    kernel_post: Callable[..., Array]
    kernel_pre: Callable[..., Array]
    kernel_post_kwargs: Mapping[str, Any] = field(hash=False)
    kernel_pre_kwargs: Mapping[str, Any] = field(hash=False)

    def changes(self, time: Float[Array, "..."]) -> list[tuple[float, Float[Array, "..."]]]:
        post = self.kernel_post(time, **self.kernel_post_kwargs)
        pre = self.kernel_pre(time, **self.kernel_pre_kwargs)
        return [(sign, jnp.maximum(sign * change, 0)) for change in (post, pre) for sign in (1.0, -1.0)]


@dataclass(frozen=True, kw_only=True)
class DelayAdjustedKernelSTDPD(DelayAdjustedKernelSTDP):
    """Changes delays as :class:`DelayAdjustedKernelSTDP` does weights."""

    param: ClassVar = "delay"


@dataclass(frozen=True, kw_only=True)
class KernelSTDP(DelayAdjustedKernelSTDP):
    """Changes weights by two functions of the time between the last spikes.

    Args:
        delayed: whether the last spike before is the last that was sent a delay ago; else the last that arrived, at a
            step.
        interp_tolerance: ms by which a delay may miss a step and be taken for it; of ``delayed``.
    """

    delayed: bool = False
    interp_tolerance: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        require_not_negative(self, "interp_tolerance")

    def before(self, connection: Connection) -> Presynaptic:
        """What is known of the spikes before: as of :class:`~jaxkit.spiking.plasticity.stdp.TraceRule`."""
        return presynaptic(connection, delayed=self.delayed, tolerance=self.interp_tolerance)

    def lag(self, connection: Connection, plan: Plan) -> Float[Array, "..."] | float:
        """What delays lack to the steps that are read in their place, as a negative lag, ms."""
        before = self.before(connection)
        if before.view != "past":
            return 0.0
        (step,) = taps(plan.delay, before.reading()).steps
        missed = step * connection.step_time - jnp.clip(plan.delay, 0, connection.delay)
        return connection.over_weights(-jnp.where(missed > self.interp_tolerance, missed, 0.0))[..., None]


@dataclass(frozen=True, kw_only=True)
class DelayAdjustedSTDP(TimingRule):
    """Changes weights by the time by which spikes arrive before those they meet, ``t``, at every step.

    ``dw = lr_pos exp(-|t| / tc_pos)`` where ``t >= 0``, else ``lr_neg exp(-|t| / tc_neg)``.

    Args:
        lr_pos, lr_neg: rates.
        tc_pos, tc_neg: time constants, ms.
    """

    lr_pos: float
    lr_neg: float
    tc_pos: float
    tc_neg: float

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "tc_pos", "tc_neg")

    def changes(self, time: Float[Array, "..."]) -> list[tuple[float, Float[Array, "..."]]]:
        early, late = _decays(time, self.tc_pos, self.tc_neg)
        return [(self.lr_pos, early), (self.lr_neg, late)]


@dataclass(frozen=True, kw_only=True)
class DelayAdjustedSTDPD(DelayAdjustedSTDP):
    """Changes delays by the time by which spikes arrive before those they meet, ``t``, at every step.

    ``dd = lr_neg exp(-|t| / tc_neg)`` where ``t >= 0``, else ``lr_pos exp(-|t| / tc_pos)``: with a negative ``lr_neg``
    and a positive ``lr_pos`` whatever arrives before its effect comes sooner, what arrives after it later.
    """

    param: ClassVar = "delay"

    def changes(self, time: Float[Array, "..."]) -> list[tuple[float, Float[Array, "..."]]]:
        early, late = _decays(time, self.tc_neg, self.tc_pos)
        return [(self.lr_neg, early), (self.lr_pos, late)]


@dataclass(frozen=True, kw_only=True)
class DelayAdjustedMSTDP(Rewarded, DelayAdjustedSTDP):
    """Multiplies the changes of :class:`DelayAdjustedSTDP` by a reward."""


@dataclass(frozen=True, kw_only=True)
class DelayAdjustedMSTDPD(Rewarded, DelayAdjustedSTDPD):
    """Multiplies the changes of :class:`DelayAdjustedSTDPD` by a reward."""
