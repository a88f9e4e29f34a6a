"""What is on its way: the state of connections that are executed ahead, from the past that others keep."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from jaxkit.spiking.connections import Connection
from jaxkit.spiking.connections.executions import at_departure
from jaxkit.spiking.history import History, in_order


def still_coming(connection: Connection, params: PyTree, history: History) -> Float[Array, "k b ..."]:
    """What arrives in 1, 2, ... steps of all that a history of ``connection.record`` steps holds.

    Every current of the past is sent once more, oldest first, as the execution ``future`` would have, so that the sums
    round as they would have.
    """

    def resent(past, kernel, weigh):
        def send(queue, current):
            sent = at_departure(current, kernel, weigh)
            return (jnp.concatenate([queue, jnp.zeros_like(sent[:1])]) + sent)[1:], None

        nothing = jnp.zeros_like(at_departure(past[0], kernel, weigh)[1:])
        return lax.scan(send, nothing, past[::-1])[0]

    plan = connection.plan(params)
    return connection.summed(plan, lambda name: in_order(history, name).astype(connection.dtype), resent)
