"""Layers against inferno-ai 0.0.5, live."""

import warnings

import jax
import numpy as np
import pytest
import torch
from small_layers import CONSTANTS, SYNAPSES, biclique, dense, draw_params, neuron, recurrent, run, spikes

from jaxkit.spiking.layers import Serial

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    inferno = pytest.importorskip("inferno")
    from inferno import neural

STEPS, BATCH = 50, 3


@pytest.fixture(autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


def their_connection(part, params):
    name = type(part.synapse).__name__
    synapse = getattr(neural, name).partialconstructor(**SYNAPSES[name])
    theirs = neural.LinearDense(
        part.inshape, part.outshape, 1.0, synapse=synapse, bias=True, delay=part.delay, batch_size=BATCH
    )
    for key, value in params.items():
        setattr(theirs, key, torch.from_numpy(np.array(value)))
    return theirs


def their_neuron(part):
    name = type(part).__name__
    return getattr(neural, name)(part.shape, 1.0, batch_size=BATCH, **CONSTANTS[name])


def their_trace(layer, neurons, step):
    """Spikes, voltages and the last adaptations of an original, by the names of ours."""
    fired, potentials = [], []
    for t in range(STEPS):
        fired.append([spike.numpy().copy() for spike in step(t)])
        potentials.append([part.voltage.numpy().copy() for part in neurons.values()])
    return (
        dict(zip(neurons, map(np.stack, zip(*fired, strict=True)), strict=True)),
        dict(zip(neurons, map(np.stack, zip(*potentials, strict=True)), strict=True)),
        {k: part.threshold_adaptation.numpy() for k, part in neurons.items() if hasattr(part, "threshold_adaptation")},
    )


def assert_same(ours, theirs):
    carry, fired, potentials = ours
    expected_spikes, expected_voltages, adaptations = theirs
    for name, expected in expected_spikes.items():
        assert 0.02 < expected.mean() < 0.9, "a case without spikes proves nothing"
        np.testing.assert_array_equal(fired[name], expected, name)
        # float32 rounding of the largest voltage, carried from step to step
        rounding = 1e-6 * np.abs(expected_voltages[name]).max()
        np.testing.assert_allclose(potentials[name], expected_voltages[name], rtol=0, atol=rounding, err_msg=name)
    assert adaptations
    for name, expected in adaptations.items():
        # 50 times a rounded decay
        np.testing.assert_allclose(carry.neurons[name].adaptation, expected, rtol=4e-6, err_msg=name)


@pytest.mark.parametrize("synapse", SYNAPSES)
@pytest.mark.parametrize("transform", [None, lambda current: 1.5 * current - 1])
def test_serial_steps_as_the_originals(synapse, transform):
    layer = Serial(dense(4, 5, synapse), neuron("ALIF", 5), transform)
    params, x = draw_params(layer, 0), spikes(1, STEPS, BATCH, 4)
    theirs = neural.Serial(
        their_connection(layer.connection, params["connection"]), their_neuron(layer.neuron), transform
    )
    trace = their_trace(layer, {"neuron": theirs.neuron}, lambda t: [theirs(torch.from_numpy(np.array(x[t])))])
    carry, fired, potentials = run(layer, params, x)
    assert_same((carry, {"neuron": fired}, potentials), trace)


COMBINED = {
    "sum": lambda currents: torch.stack([*currents.values()]).sum(0),
    "mean": lambda currents: torch.stack([*currents.values()]).mean(0),
    "prod": lambda currents: torch.stack([*currents.values()]).prod(0),
    "min": lambda currents: torch.stack([*currents.values()]).amin(0),
    "max": lambda currents: torch.stack([*currents.values()]).amax(0),
}


def weighed(currents):
    return currents["a"] - 0.5 * currents["b"] + 2 * currents["c"]


@pytest.mark.parametrize("combine", [*COMBINED, weighed])
def test_biclique_steps_as_the_originals(combine):
    before, after = {"b": lambda current: 0.5 * current + 2}, {"y": lambda current: current + 1}
    layer = biclique(combine, before=before, after=after)
    # products of three currents are large
    params = draw_params(layer, 2, mean=0.2 if combine == "prod" else 1.5)
    x = {name: spikes(i, STEPS, BATCH, *part.inshape) for i, (name, part) in enumerate(layer.connections.items())}
    # with a name of a combination the original keeps an axis of size 1
    theirs = neural.Biclique(
        [
            (name, their_connection(part, params[f"connections_{name}"]), before.get(name, lambda current: current))
            for name, part in layer.connections.items()
        ],
        [(name, their_neuron(part), after.get(name, lambda current: current)) for name, part in layer.neurons.items()],
        COMBINED.get(combine, combine),
    )

    def step(t):
        return theirs({name: (torch.from_numpy(np.array(part[t])),) for name, part in x.items()}).values()

    trace = their_trace(layer, {name: theirs.get_neuron(name) for name in ("x", "y")}, step)
    assert_same(run(layer, params, x), trace)


@pytest.mark.parametrize("seed", range(3))
def test_recurrent_serial_steps_as_the_originals(seed):
    layer = recurrent(execution="gather" if seed else "auto")
    params, x = draw_params(layer, seed), spikes(seed, STEPS, BATCH, 4)
    parts, neurons = layer.parts()
    theirs = neural.RecurrentSerial(
        *(their_connection(part, params[name]) for name, part in parts.items()),
        *(their_neuron(part) for part in neurons.values()),
    )
    held = {"feedfwd": theirs.feedfwd_neuron, "feedback": theirs.feedback_neuron}
    assert_same(run(layer, params, x), their_trace(layer, held, lambda t: theirs(torch.from_numpy(np.array(x[t])))))
