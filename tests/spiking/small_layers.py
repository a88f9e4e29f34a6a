"""Small layers whose neurons fire now and then, and how to run them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit.spiking import synapses
from jaxkit.spiking.connections import LinearDense
from jaxkit.spiking.layers import Biclique, RecurrentSerial
from jaxkit.spiking.neurons import NEURONS

# Tiny networks: compiling costs more than running.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
CONSTANTS = {
    "LIF": {"rest_v": -60.0, "reset_v": -65.0, "thresh_v": -52.0, "refrac_t": 2.0, "time_constant": 10.0},
    "ALIF": {"rest_v": -60.0, "reset_v": -65.0, "thresh_eq_v": -54.0, "refrac_t": 1.0, "tc_membrane": 8.0}
    | {"tc_adaptation": (15.0, 40.0), "spike_increment": (0.8, 0.3)},
}
SYNAPSES = {
    "DeltaCurrent": {"spike_charge": 20.0},
    "SingleExponentialCurrent": {"spike_charge": 20.0, "time_constant": 3.0},
    "DoubleExponentialCurrent": {"spike_charge": 20.0, "tc_decay": 4.0, "tc_rise": 1.0},
}


def dense(inputs, outputs, synapse="SingleExponentialCurrent", delay=3.0, **options):
    part = getattr(synapses, synapse)(**SYNAPSES[synapse])
    return LinearDense(inputs, outputs, 1.0, synapse=part, bias=True, delay=delay, **options)


def neuron(name, size):
    return NEURONS[name](size, 1.0, **CONSTANTS[name])


def draw_params(layer, seed, mean=0.5):
    """Parameters with which neurons fire now and then, delays on steps and between them."""
    rng = np.random.default_rng(seed)

    def draw(part):
        params = {"weight": rng.normal(mean, 0.7, part.weight_shape), "bias": rng.uniform(0, 2, part.bias_shape)}
        if part.delay is not None:
            delay = rng.uniform(0, part.delay, part.delay_shape)
            params["delay"] = np.where(rng.random(delay.shape) < 0.5, delay.round(), delay)
        return {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}

    return {name: draw(part) for name, part in layer.parts()[0].items()}


def spikes(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).random(shape) < 0.4, jnp.float32)


def voltages(step):
    return {name: part.voltage for name, part in step.carry.neurons.items()}


def run(layer, params, x, carry=None, batch=3, record=voltages):
    carry = carry or layer.initialize_carry(batch)

    def sequence(params, carry, x):
        return layer.apply({"params": params}, carry, x, record=record, method="sequence")

    return jax.jit(sequence, compiler_options=QUICK)(params, carry, x)


def biclique(combine="sum", **options):
    parts = {"a": dense(4, 5), "b": dense(3, 5, "DeltaCurrent"), "c": dense(2, 5, delay=None)}
    return Biclique(parts, {"x": neuron("LIF", 5), "y": neuron("ALIF", 5)}, combine=combine, **options)


def recurrent(**options):
    return RecurrentSerial(
        dense(4, 5, **options),
        dense(5, 3, "DeltaCurrent", **options),
        dense(3, 5, "DoubleExponentialCurrent", **options),
        neuron("ALIF", 5),
        neuron("LIF", 3),
    )
