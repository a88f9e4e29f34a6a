"""What each execution of a connection would cost, from shapes alone: nothing is run or compiled."""

import math
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxkit.spiking.connections.base import Connection, Execution
from jaxkit.spiking.connections.plan import Plan
from jaxkit.spiking.delays import WINDOWS


class Cost(NamedTuple):
    """What an execution costs: multiply-accumulates, and bytes."""

    macs: int
    """Of a step."""
    state: int
    """Bytes that one step hands to the next."""
    plan: int
    """Bytes of weights, delays and kernels, found once for a sequence."""
    scratch: int
    """Bytes that a step makes besides its output; less where the compiler fuses them away."""
    gradient: int
    """Bytes that each step of a sequence keeps for the gradient by parameters and inputs."""


def costs(connection: Connection, batch: int) -> dict[str, Cost]:
    """Forecasts the cost of each execution that a connection with delays can have."""
    names = [name for name in get_args(Execution) if name != "auto"]
    if connection.relaxed_delay is not None or connection.synapse.terms(connection.step_time)[0].mode in WINDOWS:
        names.remove("gather")
    steps = {name: connection.delay_steps if name in ("grouped", "convolution") else None for name in names}
    return {name: _cost(connection.clone(execution=name, delay_steps=steps[name]), batch) for name in names}


def _cost(connection: Connection, batch: int) -> Cost:
    """The cost of the connection's own execution."""
    params = jax.eval_shape(lambda: connection.init(jax.random.key(0), method="parameters"))
    plan = jax.eval_shape(connection.plan, params["params"])
    state = jax.eval_shape(lambda: connection.initialize_carry(batch))

    def kept(steps):
        def run(params, x):
            return connection.apply(params, connection.initialize_carry(batch), x, method="sequence")[1]

        x = jax.ShapeDtypeStruct((steps, batch, *connection.inshape), connection.dtype)
        return _bytes(jax.eval_shape(lambda params, x: jax.vjp(run, params, x)[1], params, x))

    macs, scratch = _work(connection, plan, batch)
    # Kernels are kept once whatever the length; the difference is what a step adds.
    return Cost(macs, _bytes(state), _bytes(plan), scratch * jnp.dtype(connection.dtype).itemsize, kept(3) - kept(2))


def _work(connection: Connection, plan: Plan, batch: int) -> tuple[int, int]:
    """Multiply-accumulates of a step, and the elements that it makes besides its output."""
    sent, received = (batch * math.prod(shape) for shape in (connection.synapse_shape, connection.product_shape))
    # every weight acts once, of a convolution once for each position of its filter
    fan_in = 1 if connection.elementwise else math.prod(connection.weight_shape[1:])
    uses, terms = received * fan_in, len(connection.synapse.terms(connection.step_time))
    before = connection.elementwise or connection.delay_per == "input"
    if connection.executed == "gather":
        read = sent if before else uses
        return sum(len(taps.steps) for taps in plan.reads) * read + uses, read
    steps, arriving = sum(len(kernel) for kernel in plan.kernels), sent if before else received
    scratch = {"grouped": steps * (sent + arriving), "future": 2 * connection.record * arriving}
    scratch["convolution"] = terms * (sent + arriving)
    if before:
        macs = steps * sent + uses
    elif connection.delay_per == "output":
        macs = (terms if connection.executed == "future" else steps) * uses + steps * received
    else:
        macs = steps * uses
    return macs, scratch[connection.executed]


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
