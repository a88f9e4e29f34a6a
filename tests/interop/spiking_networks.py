"""Small spiking networks of every kind, with random parameters and inputs."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit.spiking import synapses
from jaxkit.spiking.connections import Connection, Conv2D, LinearDense, LinearDirect, LinearLateral
from jaxkit.spiking.layers import Biclique, RecurrentSerial, Serial
from jaxkit.spiking.neurons import NEURONS

SYNAPSES = {
    "DeltaCurrent": {"interp_mode": "nearest"},
    "DeltaPlusCurrent": {},
    "SingleExponentialCurrent": {"time_constant": 3.0},
    "DoubleExponentialCurrent": {"tc_decay": 5.0, "tc_rise": 2.0, "interp_tol": 0.1},
}
CONNECTIONS = {
    "LinearDense": lambda **given: LinearDense((2, 2), 3, 1.0, **given),
    "LinearDirect": lambda **given: LinearDirect(3, 1.0, **given),
    "LinearLateral": lambda **given: LinearLateral(3, 1.0, **given),
    # windows overlap in one direction, miss pixels in the other, and reach into the padding
    "Conv2D": lambda **given: Conv2D(4, 5, 2, 2, 1.0, (3, 1), stride=(2, 2), padding=(1, 0), **given),
}
CONSTANTS = {
    "LIF": {},
    "GLIF1": {},
    "ALIF": {"tc_adaptation": (8.0, 30.0), "spike_increment": (1.0, 0.5)},
    "GLIF2": {"reset_v_add": 2.0, "reset_v_mul": 0.5, "rc_adaptation": (0.1,), "spike_increment": (1.0,)},
    "QIF": {"crit_v": -56.0, "affinity": 0.1},
    "EIF": {"rheobase_v": -57.0, "sharpness": 2.0},
    "Izhikevich": {"crit_v": -56.0, "affinity": 0.1, "tc_adaptation": (9.0,), "voltage_coupling": (0.1,)},
    "AdEx": {"rheobase_v": -57.0, "sharpness": 2.0, "tc_adaptation": (9.0, 20.0), "voltage_coupling": (0.1, 0.05)},
}


def make_synapse(name):
    return getattr(synapses, name)(spike_charge=8.0, **SYNAPSES[name])


def make_connection(kind, synapse="SingleExponentialCurrent", delay=3.0, execution="gather", bias=True):
    return CONNECTIONS[kind](synapse=make_synapse(synapse), bias=bias, delay=delay, execution=execution)


def make_neuron(name, shape=3, refrac_t=2.0, **options):
    given = {"rest_v": -60.0, "refrac_t": refrac_t, "resistance": 1.2, **CONSTANTS[name], **options}
    if name in ("Izhikevich", "AdEx"):
        given["spike_increment"] = (0.5,) * len(given["tc_adaptation"])
    if name != "GLIF2":
        given["reset_v"] = -66.0
    given["thresh_eq_v" if name in ("ALIF", "GLIF2") else "thresh_v"] = -52.0
    given["tc_membrane" if "spike_increment" in given else "time_constant"] = 10.0
    return NEURONS[name](shape, 1.0, **given)


def make_serial(kind="LinearDense", synapse="SingleExponentialCurrent", neuron="LIF", delay=3.0, execution="gather"):
    connection = make_connection(kind, synapse, delay, execution)
    return Serial(connection, make_neuron(neuron, connection.outshape))


def make_recurrent(neuron="LIF", execution="gather"):
    def between(i, o, synapse):
        return LinearDense(i, o, 1.0, synapse=make_synapse(synapse), bias=True, delay=2.0, execution=execution)

    return RecurrentSerial(
        between((2, 2), 3, "DeltaCurrent"),
        between(3, 2, "DoubleExponentialCurrent"),
        between(2, 3, "DeltaPlusCurrent"),
        make_neuron(neuron),
        make_neuron("ALIF", 2),
    )


def make_biclique():
    first = make_connection("LinearDense", "DeltaCurrent")
    second = make_connection("LinearDirect", "DoubleExponentialCurrent", delay=None)
    return Biclique({"a": first, "b": second}, {"x": make_neuron("LIF"), "y": make_neuron("AdEx")}, combine="mean")


def draw_params(network, rng):
    """Parameters of every connection; delays in range, on steps and between them."""
    if not hasattr(network, "parts"):
        return draw_connection(network, rng)
    return {name: draw_connection(part, rng) for name, part in network.parts()[0].items()}


def draw_connection(connection, rng):
    params = {"weight": rng.normal(1.0, 1.0, connection.weight_shape)}
    if connection.bias:
        params["bias"] = rng.normal(5, 2, connection.bias_shape)
    if connection.delay is not None:
        drawn = rng.uniform(0, connection.delay, connection.delay_shape)
        params["delay"] = np.where(rng.random(drawn.shape) < 0.5, np.round(drawn), drawn)
    return connection.project({name: jnp.asarray(value, jnp.float32) for name, value in params.items()})


def draw_inputs(network, rng, steps, batch):
    def spikes(connection):
        return jnp.asarray(rng.random((steps, batch, *connection.inshape)) < 0.5, jnp.float32)

    if isinstance(network, Biclique):
        return {name: spikes(connection) for name, connection in network.connections.items()}
    return spikes(getattr(network, "connection", getattr(network, "feedfwd_connection", network)))


def run_ours(network, params, carry, inputs):
    """The carry after all steps, and what the network gave at each."""

    def advance(carry, x):
        step = network.step(plans, carry, x)
        return step.carry, step.spikes

    with jax.default_matmul_precision("highest"):
        if isinstance(network, Connection):
            return network.apply({"params": params}, carry, inputs, method="sequence")
        plans = network.plan(params)
        return jax.lax.scan(advance, carry, inputs)
