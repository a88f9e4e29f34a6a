"""Plasticity by spike timing: pairs and triplets of spikes, through traces of those before and after a synapse."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkit.spiking.checks import require_below, require_positive
from jaxkit.spiking.connections import Carry, Connection, Plan
from jaxkit.spiking.history import History, latest, push
from jaxkit.spiking.plasticity.presynaptic import Presynaptic, presynaptic
from jaxkit.spiking.plasticity.rule import Rewarded, Rule, Term, alone
from jaxkit.spiking.traces import TraceMode, trace


class TraceCarry(NamedTuple):
    """Traces of the spikes before a connection, and of those after it ``[b *outshape]``."""

    pre: History
    post: dict[str, Float[Array, "b ..."]]


@dataclass(frozen=True, kw_only=True)
class TraceRule(Rule):
    """A rule on traces.

    Args:
        delayed: whether traces are of what was sent, and read through the delays; else of what arrived.
        interp_tolerance: ms by which a delay may miss a step and be taken for it; of ``delayed``.
        trace_mode: whether all spikes count (``cumulative``) or the last one only (``nearest``).

    Raises:
        ValueError: for another mode, a tolerance below 0.
    """

    delayed: bool = False
    interp_tolerance: float = 0.0
    trace_mode: TraceMode = "cumulative"

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        if self.trace_mode not in ("cumulative", "nearest"):
            raise ValueError(f"{name}: trace_mode must be cumulative or nearest, got {self.trace_mode!r}")
        if self.interp_tolerance < 0:
            raise ValueError(f"{name}: interp_tolerance must be 0 ms or more, got {self.interp_tolerance!r}")

    @property
    def times(self) -> dict[str, tuple[float, float]]:
        """The time constants, ms, of the traces of spikes before and after."""
        raise NotImplementedError

    def before(self, connection: Connection) -> Presynaptic:
        """What is known of the spikes before."""
        return presynaptic(connection, delayed=self.delayed, tolerance=self.interp_tolerance)

    def initialize_carry(self, connection: Connection, batch: int) -> TraceCarry:
        """Makes the state before the first step."""
        post = {name: jnp.zeros((batch, *connection.outshape)) for name in self.times}
        return TraceCarry(self.before(connection).nothing(batch, *self.times), post)

    def moved(
        self,
        carry: TraceCarry,
        connection: Connection,
        plan: Plan,
        connection_carry: Carry,
        post: Float[Array, "b ..."],
    ) -> TraceCarry:
        """Moves all traces by a step."""

        def traces(past, spikes, side):
            how = {"step_time": connection.step_time, "mode": self.trace_mode}
            return {name: trace(past[name], spikes, time_constant=tc[side], **how) for name, tc in self.times.items()}

        spikes = self.before(connection).seen(plan, connection_carry)
        pre = push(carry.pre, traces(latest(carry.pre), spikes, 0))
        return TraceCarry(pre, traces(carry.post, post, 1))

    def receptive(self, carry: TraceCarry, connection: Connection, plan: Plan, name: str) -> tuple[Array, Array]:
        """A trace of the spikes before, at each synapse, and of those after, for products with each other."""
        pre = self.before(connection).recalled(plan, carry.pre, name, "expdecay", self.times[name][0])
        return pre, connection.postsyn_receptive(carry.post[name])


@dataclass(frozen=True, kw_only=True)
class STDP(TraceRule):
    """Changes weights by the order of spikes before and after a synapse.

    ``dw = lr_post x_pre s_post + lr_pre x_post s_pre``, of spikes ``s`` and their traces ``x``, in which those of the
    present step count already. Options beside: those of :class:`TraceRule` and :class:`Rule`.

    Args:
        lr_post: rate of the changes at spikes after the synapse, by the trace of those before.
        lr_pre: rate of the changes at spikes before the synapse, by the trace of those after.
        tc_post: time constant of the trace of spikes after, ms.
        tc_pre: time constant of the trace of spikes before, ms.

    Source: Morrison et al., "Phenomenological models of synaptic plasticity based on spike timing", 2008, section 4.1.
    """

    lr_post: float
    lr_pre: float
    tc_post: float
    tc_pre: float

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "tc_post", "tc_pre")

    @property
    def times(self) -> dict[str, tuple[float, float]]:
        return {"trace": (self.tc_pre, self.tc_post)}

    def terms(
        self,
        carry: TraceCarry,
        connection: Connection,
        plan: Plan,
        connection_carry: Carry,
        post: Float[Array, "b ..."],
    ) -> tuple[TraceCarry, list[Term]]:
        carry = self.moved(carry, connection, plan, connection_carry, post)
        x_pre, x_post = self.receptive(carry, connection, plan, "trace")
        s_pre = self.before(connection).spikes(plan, connection_carry)
        s_post = connection.postsyn_receptive(post)
        return carry, [Term(self.lr_post, s_post, x_pre), Term(self.lr_pre, x_post, s_pre)]


@dataclass(frozen=True, kw_only=True)
class TripletSTDP(TraceRule):
    """Changes weights by pairs of spikes and by triplets.

    At spikes after the synapse by ``x_pre (pair + triplet y_post)``, at spikes before it by ``x_post (pair + triplet
    y_pre)``, of fast traces ``x`` and of slow traces ``y`` of the step before. The sign is the pair's, or the
    triplet's where the pair's rate is 0. Options beside: those of :class:`TraceRule` and :class:`Rule`.

    Args:
        lr_post_pair, lr_post_triplet: rates at spikes after the synapse.
        lr_pre_pair, lr_pre_triplet: rates at spikes before it.
        tc_post_fast, tc_post_slow: time constants of the traces of spikes after, ms.
        tc_pre_fast, tc_pre_slow: time constants of the traces of spikes before, ms.

    Raises:
        ValueError: for slow traces that are not slower than the fast ones.

    Source: Pfister and Gerstner, "Triplets of spikes in a model of spike timing-dependent plasticity", 2006.
    """

    lr_post_pair: float
    lr_post_triplet: float
    lr_pre_pair: float
    lr_pre_triplet: float
    tc_post_fast: float
    tc_post_slow: float
    tc_pre_fast: float
    tc_pre_slow: float

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "tc_post_fast", "tc_pre_fast")
        require_below(self, "tc_post_fast", "tc_post_slow")
        require_below(self, "tc_pre_fast", "tc_pre_slow")

    @property
    def times(self) -> dict[str, tuple[float, float]]:
        return {"fast": (self.tc_pre_fast, self.tc_post_fast), "slow": (self.tc_pre_slow, self.tc_post_slow)}

    def terms(
        self,
        carry: TraceCarry,
        connection: Connection,
        plan: Plan,
        connection_carry: Carry,
        post: Float[Array, "b ..."],
    ) -> tuple[TraceCarry, list[Term]]:
        y_pre, y_post = self.receptive(carry, connection, plan, "slow")
        carry = self.moved(carry, connection, plan, connection_carry, post)
        x_pre, x_post = self.receptive(carry, connection, plan, "fast")
        s_pre = self.before(connection).spikes(plan, connection_carry)
        s_post = connection.postsyn_receptive(post)

        at_post = s_post * (abs(self.lr_post_pair) + abs(self.lr_post_triplet) * y_post)
        at_pre = s_pre * (abs(self.lr_pre_pair) + abs(self.lr_pre_triplet) * y_pre)
        return carry, [
            Term(math.copysign(1, self.lr_post_pair or self.lr_post_triplet), at_post, x_pre),
            Term(math.copysign(1, self.lr_pre_pair or self.lr_pre_triplet), x_post, at_pre),
        ]


# The original's stable rules keep traces of height 1 and multiply by the rates afterwards, so that rates may change
# while a network runs. These do so anyway.
StableSTDP = STDP
StableTripletSTDP = TripletSTDP


@dataclass(frozen=True, kw_only=True)
class MSTDP(Rewarded, STDP):
    """Multiplies the changes of :class:`STDP` by a reward of the same step, and sums them over the batch by default.

    Source: Florian, "Reinforcement learning through modulation of spike-timing-dependent synaptic plasticity", 2007.
    """


class EligibilityCarry(NamedTuple):
    """Traces, and what lately changed at spikes after and before each synapse, ``[b ...]`` each."""

    traces: TraceCarry
    at_post: Float[Array, "b ..."]
    at_pre: Float[Array, "b ..."]


@dataclass(frozen=True, kw_only=True)
class MSTDPET(MSTDP):
    """Multiplies what :class:`STDP` would have changed lately by a reward that may come later.

    ``z <- z exp(-step_time / tc_eligibility) + change / tc_eligibility`` of each sample and synapse, and ``dw = signal
    z``. Options beside: those of :class:`MSTDP`.

    Args:
        tc_eligibility: how long changes stay eligible, ms.

    Source: Florian, "Reinforcement learning through modulation of spike-timing-dependent synaptic plasticity", 2007;
    its factor of a step's length is left out, as in the original.
    """

    tc_eligibility: float

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "tc_eligibility")

    def initialize_carry(self, connection: Connection, batch: int) -> EligibilityCarry:
        """Makes the state before the first step."""
        zeros = jnp.zeros((batch, *connection.weight_shape))
        return EligibilityCarry(super().initialize_carry(connection, batch), zeros, zeros)

    def terms(
        self,
        carry: EligibilityCarry,
        connection: Connection,
        plan: Plan,
        connection_carry: Carry,
        post: Float[Array, "b ..."],
    ) -> tuple[EligibilityCarry, list[Term]]:
        traces, changes = super().terms(carry.traces, connection, plan, connection_carry, post)
        decay = math.exp(-connection.step_time / self.tc_eligibility)
        at_post, at_pre = (
            decay * z + change.of_samples() / self.tc_eligibility for z, change in zip(carry[1:], changes, strict=True)
        )
        terms = [alone(self.lr_post, at_post[..., None]), alone(self.lr_pre, at_pre[..., None])]
        return EligibilityCarry(traces, at_post, at_pre), terms
