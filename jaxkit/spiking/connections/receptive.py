"""The state of a connection, and what of it each weight meets: for learning rules, as the original shows it."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Shaped

from jaxkit.spiking.connections.executions import elements_at
from jaxkit.spiking.connections.plan import Plan, current_reading, spike_reading
from jaxkit.spiking.delays import Reading, Taps, taps
from jaxkit.spiking.history import History, latest


class Carry(NamedTuple):
    """The state of a connection."""

    history: History
    arrivals: Float[Array, "k b ..."] | None = None
    """What arrives in 1, 2, ... steps, of all that was sent; of the execution ``future`` only."""

    @property
    def batch(self) -> int:
        """Samples."""
        return next(iter(self.history.rings.values())).shape[1]


class Receptive(nn.Module):
    """What a connection says of its state, in the layout of its synapses; see :class:`Connection`."""

    @nn.nowrap
    def selector(self, plan: Plan, batch: int) -> Float[Array, "b ..."] | None:
        """The delays, ms, laid out as :meth:`syncurrent` is; None without delays."""
        if not self.delayed:
            return None
        delay = self.like_selector(self.over_weights(plan.delay))
        return jnp.broadcast_to(delay, (batch, *delay.shape))

    @nn.nowrap
    def syncurrent(self, plan: Plan, carry: Carry) -> Float[Array, "b ..."]:
        """The currents, nA, that each weight meets at present; without delays, those of the inputs."""
        terms = self.synapse.terms(self.step_time)
        if not self.delayed:
            return self.spread(self._current(latest(carry.history)))
        readings = [current_reading(self, term) for term in terms]
        values = sum(
            term.factor * self.read(carry.history.rings[term.ring], carry, plan, reading)
            for term, reading in zip(terms, readings, strict=True)
        )
        if not readings[0].overbound:
            return values
        outside = ~taps(plan.delay, readings[0]._replace(mode="previous")).inside
        return values + self.like_selector(self.over_weights(jnp.where(outside, readings[0].overbound, 0.0)))

    @nn.nowrap
    def synspike(self, plan: Plan, carry: Carry) -> Bool[Array, "b ..."]:
        """The spikes that each weight meets at present; without delays, those of the inputs."""
        if not self.delayed:
            return self.spike(carry)
        reading = spike_reading(self)
        found = self.read(carry.history.rings["spike"].astype(jnp.float32), carry, plan, reading) != 0
        if not reading.overbound:
            return found
        outside = ~taps(plan.delay, reading).inside
        return found | self.like_selector(self.over_weights(outside))

    @nn.nowrap
    def spike(self, carry: Carry) -> Bool[Array, "b ..."]:
        """The spikes that were sent last, delayed or not."""
        return self.spread(latest(carry.history)["spike"] != 0)

    @nn.nowrap
    def read(self, ring: Float[Array, "r b ..."], carry: Carry, plan: Plan, reading: Reading) -> Float[Array, "b ..."]:
        """Reads any ring that is written along with the carry's through the delays, laid out as :meth:`syncurrent`.

        Raises:
            ValueError: if the execution keeps no past.
        """
        if len(ring) < self.record:
            raise ValueError("the execution 'future' keeps no past to read; learning rules need 'gather' or 'grouped'")
        return self._read(ring, carry.history.newest, taps(plan.delay, reading))

    def _read(self, ring: Shaped[Array, "r b ..."], newest: Array, found: Taps) -> Shaped[Array, "b ..."]:
        """Reads a ring of currents through every synapse's delay, in the layout of :meth:`selector`."""
        if self.elementwise:
            return self.like_selector(elements_at(ring, newest, found, self.over_inputs))
        parts = (
            self.like_selector(self.over_weights(coefficient).astype(ring.dtype))
            * self.gathered(ring, (newest - self.over_weights(step)) % len(ring))
            for step, coefficient in zip(found.steps, found.coefficients, strict=True)
        )
        return sum(parts)
