"""Networks of inferno-ai 0.0.5 stopped in the middle of a run go on in JAX, and the other way round."""

import warnings
from itertools import product

import jax
import numpy as np
import pytest
from spiking_networks import (
    CONNECTIONS,
    SYNAPSES,
    draw_inputs,
    draw_params,
    make_biclique,
    make_connection,
    make_neuron,
    make_recurrent,
    make_serial,
    run_ours,
)

from interop import spiking
from interop.problems import WeightsError
from interop.spiking.live_state import saved
from jaxkit.errors import ConfigError, UserError
from jaxkit.spiking.layers import Biclique, RecurrentSerial, Serial
from jaxkit.spiking.neurons import NEURONS

pytestmark = pytest.mark.level(1)

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("inferno")
    from inferno import neural

# Both sides sum a handful of products of magnitude up to 10 in float32; voltages are about 60 mV, of which one unit in
# the last place is 4e-6, so they are compared relative to that size.
TOLERANCE = 1e-6


def run_theirs(module, network, inputs):
    """What inferno's network gives at every step, as ours gives it."""
    outputs = []
    for t in range(len(jax.tree.leaves(inputs)[0])):
        x = jax.tree.map(lambda leaf, t=t: torch.from_numpy(np.array(leaf[t])), inputs)
        y = module({name: (value,) for name, value in x.items()}) if isinstance(network, Biclique) else module(x)
        y = dict(zip(("feedfwd", "feedback"), y, strict=True)) if isinstance(network, RecurrentSerial) else y
        outputs.append(jax.tree.map(lambda leaf: leaf.detach().numpy().astype(np.float32), y))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *outputs)


def assert_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= TOLERANCE * max(1.0, np.abs(b).max())


def assert_goes_on(network, seed=0, batch=2, before=5):
    """Runs inferno's network, takes it over, runs both on, gives ours back to it, and runs both on again.

    Returns the inferno network, ours as it was taken over, and what both gave.
    """
    rng = np.random.default_rng(seed)
    params, rest = draw_params(network, rng), network.initialize_carry(batch)
    module = spiking.to_inferno_module(network, params, rest)
    run_theirs(module, network, draw_inputs(network, rng, before, batch))
    running = spiking.from_inferno(module.state_dict(), network, batch)
    jax.tree.map(np.testing.assert_array_equal, running.params, params)

    inputs = draw_inputs(network, rng, 6, batch)
    carry, ours = run_ours(network, running.params, running.carry, inputs)
    theirs = run_theirs(module, network, inputs)
    assert_close(ours, theirs)
    stopped_again = spiking.from_inferno(module.state_dict(), network)
    assert_close(saved(params, carry, network), saved(params, stopped_again.carry, network))

    again = spiking.to_inferno_module(network, params, carry)
    inputs = draw_inputs(network, rng, 6, batch)
    _, ours = run_ours(network, params, carry, inputs)
    assert_close(ours, run_theirs(again, network, inputs))
    return module, running, theirs


@pytest.mark.parametrize(("kind", "synapse"), [*product(CONNECTIONS, SYNAPSES)])
def test_a_stopped_connection_goes_on_in_jax_and_back(kind, synapse):
    assert_goes_on(make_connection(kind, synapse))


@pytest.mark.parametrize("neuron", NEURONS)
def test_stopped_neurons_go_on_in_jax_and_back(neuron):
    _, running, spikes = assert_goes_on(make_serial("LinearDense", "DeltaPlusCurrent", neuron), batch=3, before=9)
    assert 0 < spikes.mean() < 1, "a case without spikes proves nothing"
    assert np.asarray(running.carry.neurons["neuron"].refrac).any()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "synapse"), [*product(CONNECTIONS, SYNAPSES)])
def test_every_connection_synapse_and_neuron_goes_on_together(kind, synapse):
    for seed, neuron in enumerate(NEURONS):
        assert_goes_on(make_serial(kind, synapse, neuron), seed, batch=1 + 2 * (seed % 2), before=4 + seed % 4)
    jax.clear_caches()


@pytest.mark.parametrize("before", range(1, 6))
def test_a_ring_is_taken_over_whatever_its_pointer(before):
    network = make_connection("LinearDirect")
    module, _, _ = assert_goes_on(network, before=before, batch=1 + before % 3)
    # 6 more steps on a ring of 4
    pointer = module.state_dict()["synapse_._extra_state"]["_spike__pointer"]
    assert (network.record, pointer) == (4, (before + 6) % 4)


@pytest.mark.parametrize("delay", [None, 0.0])
def test_connections_without_delays_go_on_too(delay):
    assert_goes_on(make_connection("LinearDense", "DoubleExponentialCurrent", delay))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("make", [make_serial, make_biclique, make_recurrent])
def test_a_stopped_layer_goes_on_in_jax_and_back(make, batch):
    _, running, spikes = assert_goes_on(make(), batch=batch, before=8)
    assert all(0 < leaf.mean() < 1 for leaf in jax.tree.leaves(spikes))
    assert "copies" in running.notes[0]


def test_the_axis_that_inferno_s_biclique_leaves_in_front_is_taken_off():
    neurons = {"x": make_neuron("LIF"), "y": make_neuron("AdEx", batch_reduction="none")}
    connections = {"a": make_connection("LinearDense")}
    network = Biclique(connections, neurons, combine="sum")
    rng = np.random.default_rng(0)
    ours = Biclique(connections, {"x": make_neuron("LIF"), "y": make_neuron("AdEx")}, combine="sum")
    params = draw_params(network, rng)
    built = spiking.to_inferno_module(ours, params, ours.initialize_carry(3))
    module = neural.Biclique([("a", built.connections_["a"])], [*built.neurons_.items()], combine="sum")
    run_theirs(module, network, draw_inputs(network, rng, 7, 3))
    assert module.neurons_["y"].voltage.shape == (1, 3, 3)
    running = spiking.from_inferno(module.state_dict(), network)
    inputs = draw_inputs(network, rng, 6, 3)
    _, spikes = run_ours(network, params, running.carry, inputs)
    theirs = run_theirs(module, network, inputs)
    assert_close(spikes, jax.tree.map(lambda leaf: leaf[:, 0], theirs))


@pytest.mark.parametrize("kind", CONNECTIONS)
@pytest.mark.parametrize("execution", ["grouped", "future", "convolution"])
def test_what_is_on_its_way_is_found_for_every_execution(kind, execution):
    rng = np.random.default_rng(1)
    gather = make_connection(kind, "DoubleExponentialCurrent")
    other = gather.clone(execution=execution)
    params = draw_params(gather, rng)
    module = spiking.to_inferno_module(gather, params, gather.initialize_carry(2))
    before, after = draw_inputs(gather, rng, 6, 2), draw_inputs(gather, rng, 6, 2)
    run_theirs(module, gather, before)
    running = spiking.from_inferno(module.state_dict(), other)
    carry, _ = run_ours(other, params, other.initialize_carry(2), before)
    assert_close(running.carry.arrivals, carry.arrivals)
    assert_close(run_ours(other, params, running.carry, after)[1], run_theirs(module, gather, after))


def stopped(network, batch=2, steps=4, seed=3):
    """A state_dict of inferno's in the middle of a run, with what made it."""
    rng = np.random.default_rng(seed)
    params = draw_params(network, rng)
    module = spiking.to_inferno_module(network, params, network.initialize_carry(batch))
    run_theirs(module, network, draw_inputs(network, rng, steps, batch))
    return module, module.state_dict()


def test_a_state_dict_saved_by_torch_is_taken_over(tmp_path):
    network = make_recurrent()
    _, state = stopped(network)
    torch.save(state, tmp_path / "net.pt")
    loaded = torch.load(tmp_path / "net.pt", weights_only=True)
    ours, theirs = (spiking.from_inferno(source, network) for source in (loaded, state))
    jax.tree.map(np.testing.assert_array_equal, ours[:2], theirs[:2])


def test_every_key_that_does_not_fit_is_in_one_message():
    network = make_serial()
    _, state = stopped(network)
    state["connections_.serial.synapse_._extra_state"] = {"_spike__pointer": 9}
    state["cells_.serial.serial.connection_.bias_"] = state["connections_.serial.bias_"] + 1
    state["connections_.serial.weights_"] = state.pop("connections_.serial.weight_")
    del state["cells_.serial.serial.connection_.weight_"]
    state["neurons_.serial._voltage__data"] = state["neurons_.serial._voltage__data"].double()
    with pytest.raises(WeightsError) as raised:
        spiking.from_inferno(state, network)
    message = str(raised.value)
    for expected in (
        "connections_.serial.weight_ (given: connections_.serial.weights_)",
        "connections_.serial.weights_ (missing",
        "_current__pointer",
        "_spike__pointer'] is 9, no slot of 4",
        "cells_.serial.serial.connection_.bias_ differs from connections_.serial.bias_",
        "neurons_.serial._voltage__data is float64, and must be float32",
    ):
        assert expected in message


def test_a_part_saved_under_its_cell_alone_is_found_there():
    network = make_serial()
    _, state = stopped(network)
    whole = spiking.from_inferno(state, network)
    del state["connections_.serial.weight_"]
    jax.tree.map(np.testing.assert_array_equal, spiking.from_inferno(state, network)[:2], whole[:2])


def test_another_batch_is_refused_and_made_by_resizing():
    network = make_recurrent()
    _, state = stopped(network, batch=2)
    with pytest.raises(ConfigError, match="of a batch of 2, and 3 was asked for"):
        spiking.from_inferno(state, network, batch=3)
    running = spiking.from_inferno(state, network)
    more = spiking.resized(running.carry, network, 3)
    rest = network.initialize_carry(1)
    inputs = draw_inputs(network, np.random.default_rng(0), 4, 3)
    _, all_three = run_ours(network, running.params, more, inputs)
    _, first = run_ours(network, running.params, running.carry, inputs[:, :2])
    # the second neurons share their adaptation with the new sample, from the first spike on
    np.testing.assert_array_equal(all_three["feedfwd"][:2, :2], first["feedfwd"][:2])
    jax.tree.map(np.testing.assert_array_equal, spiking.resized(more, network, 2), running.carry)
    for name in ("feedfwd", "feedback"):
        np.testing.assert_array_equal(more.neurons[name].voltage[2:], rest.neurons[name].voltage)


def test_a_diagonal_that_is_not_0_is_masked_and_said():
    network = make_connection("LinearLateral")
    _, state = stopped(network)
    state["weight_"].fill_diagonal_(7.0)
    running = spiking.from_inferno(state, network)
    assert not np.diagonal(running.params["weight"]).any()
    assert "weight_: 3 on the diagonal are not 0" in running.notes[0]


def test_windows_whose_copies_differ_are_refused():
    network = make_connection("Conv2D")
    _, state = stopped(network)
    state["synapse_._current__data"][0, 0, 0, 0] += 1
    with pytest.raises(WeightsError, match="synapse_._current__data: 1 values differ from others of their pixel"):
        spiking.from_inferno(state, network)


def test_which_neurons_spiked_is_derived_from_their_refractory_period():
    network = make_serial()
    module, state = stopped(network, steps=7)
    spike = np.asarray(spiking.from_inferno(state, network).carry.neurons["neuron"].spike)
    np.testing.assert_array_equal(spike != 0, module.neuron.spike.numpy())
    assert spike.any()
    instant = Serial(make_connection("LinearDense"), make_neuron("LIF", refrac_t=0.0))
    _, state = stopped(instant)
    assert "refrac_t is 0" in spiking.from_inferno(state, instant).notes[1]


def test_a_recurrent_layer_with_trainable_feedback_is_loaded_by_naming_its_cells():
    network = make_recurrent()
    module, _ = stopped(network)
    cells = [("feedfwd", "feedfwd"), ("lateral", "feedback"), ("feedback", "feedfwd")]
    running = spiking.from_inferno(module.state_dict(), network)
    state = spiking.to_inferno(running.params, running.carry, network, cells)
    parts = (*module.connections_.values(), *module.neurons_.values())
    other = neural.RecurrentSerial(*parts, trainable_feedback=True)
    other.feedback_spikes = torch.zeros(2, 2, dtype=bool)
    other.load_state_dict(state, strict=True)
    again = spiking.from_inferno(other.state_dict(), network)
    jax.tree.map(np.testing.assert_array_equal, again[:2], running[:2])


def test_state_that_inferno_has_no_place_for_is_refused():
    network = make_serial(execution="future")
    params = draw_params(network, np.random.default_rng(0))
    with pytest.raises(UserError, match="executed as 'future'.*execution='gather'"):
        spiking.to_inferno(params, network.initialize_carry(2), network)
    neuron = make_neuron("ALIF", batch_reduction="none")
    with pytest.raises(UserError, match="adaptations of each sample"):
        spiking.to_inferno({}, neuron.initialize_carry(2), neuron)
