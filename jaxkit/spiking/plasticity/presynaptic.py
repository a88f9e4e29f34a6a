"""What a learning rule knows of the spikes before a connection, laid out as its weights are."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkit.spiking.connections import Carry, Connection, Plan
from jaxkit.spiking.delays import Interpolation, Reading
from jaxkit.spiking.history import History, latest


@dataclass(frozen=True)
class Presynaptic:
    """Remembers something of the spikes before a connection, and tells it in the layout of its weights.

    Args:
        connection: whose synapses they reach.
        view: which spikes. ``sent``: of every input, when it is sent; ``arrived``: of every synapse, when it arrives;
            ``past``: of every input, as far back as the longest delay, and each synapse reads it through its delay.
        tolerance: ms by which a delay may miss a step and be taken for it; of ``past``.
    """

    connection: Connection
    view: Literal["sent", "arrived", "past"]
    tolerance: float = 0.0

    def nothing(self, batch: int, *names: str) -> History:
        """Makes the memory of what was never seen, of quantities that are then 0."""
        r, shape = 1, self.connection.synapse_shape
        if self.view == "past":
            r = self.connection.record
        elif self.view == "arrived":
            weight = jax.ShapeDtypeStruct(self.connection.weight_shape, jnp.float32)
            shape = jax.eval_shape(self.connection.like_selector, weight).shape
        return History({name: jnp.zeros((r, batch, *shape)) for name in names}, jnp.int32(r - 1))

    def seen(self, plan: Plan, carry: Carry) -> Float[Array, "b ..."]:
        """The spikes of a step of the connection, to remember."""
        if self.view == "arrived":
            return self.connection.synspike(plan, carry).astype(jnp.float32)
        return (latest(carry.history)["spike"] != 0).astype(jnp.float32)

    def spikes(self, plan: Plan, carry: Carry) -> Float[Array, "b ..."]:
        """The spikes at each synapse now, as a presynaptic receptive."""
        if self.view == "past":
            return self._read(carry.history, "spike", plan)
        return self._receptive(self.seen(plan, carry))

    def recalled(
        self, plan: Plan, memory: History, name: str, mode: Interpolation = "previous", time_constant: float = 1.0
    ) -> Float[Array, "b ..."]:
        """A remembered quantity at each synapse now, likewise; between steps, of ``past``, as ``mode`` says."""
        if self.view == "past":
            return self._read(memory, name, plan, mode, time_constant)
        return self._receptive(latest(memory)[name])

    def reading(self, mode: Interpolation = "previous", time_constant: float = 1.0) -> Reading:
        """How the past is read; through delays out of range, as nothing."""
        return Reading(self.connection.step_time, self.connection.delay, mode, self.tolerance, 0.0, time_constant)

    def _read(self, memory: History, name: str, plan: Plan, *how) -> Float[Array, "b ..."]:
        values = memory.rings[name].astype(jnp.float32)
        return self.connection.presyn_receptive(self.connection.read(values, Carry(memory), plan, self.reading(*how)))

    def _receptive(self, values: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        spread = values if self.view == "arrived" else self.connection.spread(values)
        return self.connection.presyn_receptive(spread)


def presynaptic(connection: Connection, *, delayed: bool, tolerance: float = 0.0) -> Presynaptic:
    """The memory of a rule that is ``delayed`` or not; without delays that is the same."""
    if not connection.delayed:
        return Presynaptic(connection, "sent")
    return Presynaptic(connection, "past" if delayed else "arrived", tolerance)
