"""Spiking networks as NIR graphs: what is written does what the network does, and what cannot be said is said."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from spiking_networks import (
    draw_inputs,
    draw_params,
    make_connection,
    make_neuron,
    make_recurrent,
    make_serial,
    run_ours,
)

from interop import spiking
from interop.files import FileError
from jaxkit.errors import ConfigError, UserError
from jaxkit.spiking.connections import LinearDense
from jaxkit.spiking.layers import Biclique, Serial
from jaxkit.spiking.synapses import DeltaCurrent

pytestmark = pytest.mark.level(1)

pytest.importorskip("h5py")
nir = pytest.importorskip("nir")

# Voltages are about 60 mV, of which one unit in the last place of float32 is 4e-6; over a step some of them add up.
VOLTAGE = 3e-5


def sayable(kind="LinearDense", synapse="DeltaCurrent", **options):
    """A layer of which NIR can say everything: the refractory period of one step is none."""
    connection = make_connection(kind, synapse, **options)
    return Serial(connection, make_neuron("LIF", connection.outshape, refrac_t=1.0))


def draw_whole(network, seed=0):
    """Parameters with delays of whole steps."""
    params = draw_params(network, np.random.default_rng(seed))
    return {
        name: {key: jnp.round(value) if key == "delay" else value for key, value in one.items()}
        for name, one in params.items()
    }


def make_stack():
    """A convolution with delays, then a dense layer whose spikes feed another."""
    shape = make_connection("Conv2D").outshape

    def dense(i, o):
        return LinearDense(i, o, 1.0, synapse=DeltaCurrent(spike_charge=8.0), bias=True, delay=2.0)

    connections = (make_connection("Conv2D", "DeltaPlusCurrent"), dense(shape, 5), dense(5, 3))
    layers = [Serial(one, make_neuron("LIF", one.outshape, refrac_t=0.0)) for one in connections]
    return layers, [draw_whole(layer, seed) for seed, layer in enumerate(layers)]


def assert_same(differences, least=0.01):
    for name, difference in differences.items():
        assert not difference.spikes.any(), name
        assert difference.voltage.max() <= VOLTAGE, name
        assert difference.fired >= least, "a comparison of silence proves nothing"


@pytest.mark.parametrize("synapse", ["DeltaCurrent", "DeltaPlusCurrent", "SingleExponentialCurrent"])
@pytest.mark.parametrize("kind", ["LinearDense", "LinearDirect", "LinearLateral", "Conv2D"])
def test_a_graph_read_back_does_what_the_network_does_at_every_step(kind, synapse, tmp_path):
    network = sayable(kind, synapse)
    params = draw_whole(network)
    exported = spiking.to_nir(network, params)
    # nir's own check of shapes takes a kernel's height for its width
    assert ["type_check=False" in loss for loss in exported.losses] == [True] * (kind == "Conv2D")
    path = spiking.write_nir(tmp_path / "net.nir", exported.graph)
    assert_same(spiking.compare_nir(network, params, path))


def test_each_delay_is_a_branch_of_its_own():
    connection = LinearDense(2, 2, 0.5, synapse=DeltaCurrent(spike_charge=3.0), delay=2.0)
    network = Serial(connection, replace(make_neuron("LIF", 2), step_time=0.5))
    params = {
        "connection": {"weight": jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), "delay": jnp.asarray([[0.0, 0.5], [0.5, 2.0]])}
    }
    graph, _ = spiking.to_nir(network, params)
    weights = {name: node.weight for name, node in graph.nodes.items() if isinstance(node, nir.Linear)}
    # a spike of 3 pC over half a millisecond is a current of 6 nA
    np.testing.assert_array_equal(weights["connection_weight0"], [[6, 0], [0, 0]])
    np.testing.assert_array_equal(weights["connection_weight1"], [[0, 12], [18, 0]])
    np.testing.assert_array_equal(weights["connection_weight4"], [[0, 0], [0, 24]])
    np.testing.assert_allclose(graph.nodes["connection_delay4"].delay, 2e-3, rtol=1e-15)
    assert len(weights) == 3
    assert graph.metadata["dt"] == pytest.approx(5e-4, rel=1e-15)


def test_layers_one_after_the_other_are_written_and_read_as_they_are(tmp_path):
    layers, params = make_stack()
    graph, _ = spiking.to_nir(layers, params)
    path = spiking.write_nir(tmp_path / "net.nir", graph)
    assert_same(spiking.compare_nir(layers, params, path))
    again, given, notes = spiking.from_nir(path)
    assert (len(again), notes) == (3, [])
    x = draw_inputs(layers[0], np.random.default_rng(9), 30, 2)
    y = x
    for ours, one, theirs, other in zip(layers, params, again, given, strict=True):
        x = run_ours(ours, one, ours.initialize_carry(2), x)[1]
        y = run_ours(theirs, other, theirs.initialize_carry(2), y)[1]
        np.testing.assert_array_equal(np.ravel(x), np.ravel(y))
    assert 0 < x.mean() < 1


@pytest.mark.parametrize("synapse", ["DeltaCurrent", "SingleExponentialCurrent"])
@pytest.mark.parametrize("kind", ["LinearDense", "LinearDirect", "LinearLateral", "Conv2D"])
def test_what_was_written_is_read_with_its_weights_delays_and_biases(kind, synapse):
    network = sayable(kind, synapse)
    params = draw_whole(network)
    again, given, _ = spiking.from_nir(spiking.to_nir(network, params).graph)
    # weights carry the charge of a spike, biases may have gone through v_leak; both in float64
    found, given = params["connection"], given["connection"]
    np.testing.assert_allclose(given["weight"], 8 * found["weight"], rtol=1e-6)
    np.testing.assert_allclose(given["bias"], found["bias"], rtol=1e-6)
    read = np.asarray(found["weight"]) != 0
    np.testing.assert_allclose(np.asarray(given["delay"])[read], np.asarray(found["delay"])[read], rtol=1e-6)
    assert again.neuron.time_constant == pytest.approx(network.neuron.time_constant, rel=1e-12)


def test_steps_that_float32_cannot_hold_are_read_at_the_right_step():
    weight = np.eye(12)
    nodes = {"input": nir.Input({"input": np.array([12])})}
    edges = []
    for k in range(12):
        nodes |= {f"d{k}": nir.Delay(np.full(12, k * 1e-4)), f"w{k}": nir.Linear(weight * (np.arange(12) == k))}
        edges += [("input", f"d{k}"), (f"d{k}", f"w{k}"), (f"w{k}", "lif")]
    constant = {name: np.full(12, value) for name, value in {"r": 1.0, "v_leak": 0.0, "v_threshold": 0.5}.items()}
    nodes |= {
        "lif": nir.LIF(tau=np.full(12, 1e-5), **constant, v_reset=np.zeros(12)),
        "output": nir.Output({"output": np.array([12])}),
    }
    graph = nir.NIRGraph(nodes, [*edges, ("lif", "output")])
    network, params, notes = spiking.from_nir(graph, step_time=0.1)
    spikes = jnp.zeros((14, 1, 12)).at[0].set(1.0)
    arrived = run_ours(network, params, network.initialize_carry(1), spikes)[1]
    np.testing.assert_array_equal(np.argmax(arrived[:, 0], axis=0), np.arange(12))
    assert not notes


def test_a_feedback_is_written_with_its_step_of_delay(tmp_path):
    network = make_recurrent()
    params = draw_whole(network)
    exported = spiking.to_nir(network, params)
    assert any("rise of its current" in loss for loss in exported.losses)
    np.testing.assert_array_equal(exported.graph.nodes["feedback_connection_delay0"].delay, 1e-3)
    differences = spiking.compare_nir(network, params, spiking.write_nir(tmp_path / "net.nir", exported.graph))
    # refractory periods are left out, and it is told how much that matters
    assert differences["feedfwd"].spikes.any()
    with pytest.raises(ConfigError, match="feedfwd is fed by .*feedback.*input"):
        spiking.from_nir(exported.graph)


def test_a_feedback_that_nir_can_say_all_of_runs_as_the_network_does():
    given = make_recurrent()
    connections = (
        given.feedfwd_connection,
        given.feedback_connection.clone(in_shape=3, out_shape=2),
        given.feedback_connection,
    )
    network = type(given)(*connections, make_neuron("LIF", 3, 1.0), make_neuron("GLIF1", 2, 1.0))
    params = draw_whole(network)
    exported = spiking.to_nir(network, params, strict=True)
    assert_same(spiking.compare_nir(network, params, exported.graph))


def test_a_biclique_is_written_as_the_sum_it_is():
    connections = {"a": make_connection("LinearDense"), "b": make_connection("LinearDirect")}
    neurons = {"x": make_neuron("LIF", refrac_t=1.0), "y": make_neuron("GLIF1", refrac_t=0.0)}
    network = Biclique(connections, neurons)
    params = draw_whole(network)
    assert_same(spiking.compare_nir(network, params, spiking.to_nir(network, params, strict=True).graph))
    with pytest.raises(ConfigError, match="combine='sum'"):
        spiking.to_nir(Biclique(connections, neurons, combine="mean"), params)
    mixed = Biclique({**connections, "a": make_connection("LinearDense", "DeltaCurrent")}, neurons)
    with pytest.raises(ConfigError, match="decay differently"):
        spiking.to_nir(mixed, params)


@pytest.mark.parametrize(
    ("network", "loss"),
    [
        (make_serial(), "refractory period of 2.0 ms"),
        (make_serial(neuron="ALIF"), "adaptation of the threshold"),
        (make_serial(neuron="GLIF2"), "reset depends on the voltage"),
        (make_serial(synapse="DoubleExponentialCurrent"), "rise of its current"),
    ],
)
def test_what_nir_cannot_say_is_a_loss_and_refused_if_strict(network, loss):
    params = draw_whole(network)
    assert any(loss in line for line in spiking.to_nir(network, params).losses)
    with pytest.raises(UserError, match=loss):
        spiking.to_nir(network, params, strict=True)


def test_delays_between_steps_and_out_of_range_are_losses_but_read_as_they_were():
    network = sayable("LinearDense", "SingleExponentialCurrent")
    params = draw_whole(network)
    delay = params["connection"]["delay"].at[0].set(jnp.asarray([0.5, 1.25, -1.0, 9.0]))
    params["connection"]["delay"] = delay
    exported = spiking.to_nir(network, params)
    assert exported.losses == [
        "connection: 2 delays lie between steps; the steps that they read are written",
        "connection: 2 delays lie out of range; what they read is written",
    ]
    assert_same(spiking.compare_nir(network, params, exported.graph))


@pytest.mark.parametrize("neuron", ["QIF", "EIF", "Izhikevich", "AdEx"])
def test_neurons_that_nir_has_nothing_like_are_refused_by_name(neuron):
    network = make_serial(neuron=neuron)
    with pytest.raises(ConfigError, match=f"no neuron like {neuron}"):
        spiking.to_nir(network, draw_whole(network))


def graph_of(*nodes, dt=1e-3):
    graph = nir.NIRGraph.from_list(*nodes)
    graph.metadata = {"dt": dt} if dt else {}
    return graph


def neurons(kind=nir.LIF, n=2, **changes):
    names = {"tau": 0.02, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0}
    if kind is nir.CubaLIF:
        names |= {"tau_mem": names.pop("tau"), "tau_syn": 0.005}
    return kind(**{name: np.broadcast_to(np.float64(value), n).copy() for name, value in (names | changes).items()})


def test_a_graph_from_elsewhere_runs_as_its_equations_say():
    weight, bias = np.asarray([[30.0, -4.0, 9.0], [6.0, 25.0, -3.0]]), np.asarray([0.5, -1.0])
    affine = graph_of(nir.Delay(np.asarray([0.0, 0.002, 0.001])), nir.Affine(weight, bias), neurons())
    filtered = graph_of(nir.Linear(weight), neurons(nir.CubaLIF), nir.Scale(np.asarray([40.0, 50.0])), neurons())
    for graph in (affine, filtered):
        network, params, _ = spiking.from_nir(graph)
        chain = network if isinstance(network, list) else [network]
        x = np.asarray(draw_inputs(chain[0], np.random.default_rng(1), 40, 3))
        expected = spiking.run_graph(graph, {"input": x})
        for layer, one, trace in zip(
            chain, params if isinstance(params, list) else [params], expected.values(), strict=True
        ):
            _, x = run_ours(layer, one, layer.initialize_carry(3), jnp.asarray(x))
            np.testing.assert_array_equal(x, trace.spikes)
            assert 0 < x.mean() < 1


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((nir.Linear(np.eye(2)), nir.LI(*np.ones((3, 2)))), r"li \(LI\)"),
        ((nir.Linear(np.eye(2)), nir.IF(*np.ones((3, 2)))), r"if \(IF\)"),
        ((nir.Linear(np.eye(2)), neurons(tau=[0.01, 0.02])), "tau differs between neurons, 0.01 to 0.02"),
        ((nir.Linear(np.eye(2)), neurons(v_leak=[0.0, 0.1])), "v_leak differs between neurons"),
        ((nir.Linear(np.eye(2)), neurons(v_leak=2.0)), "lif: LIF: rest_v must be below thresh_v"),
        ((nir.Affine(np.eye(2), np.ones(2)), neurons(nir.CubaLIF)), "bias that goes through tau_syn"),
        ((nir.Linear(np.eye(2)), neurons(), nir.Linear(np.eye(2))), "must come from lif alone"),
        ((neurons(),), r"input \(Input\) feeds lif; weights must"),
        ((nir.Linear(np.eye(2)), nir.Linear(np.eye(2)), neurons()), r"linear \(Linear\) feeds linear_1"),
    ],
)
def test_graphs_that_no_layer_does_exactly_are_refused_by_name(nodes, message):
    with pytest.raises(ConfigError, match=message):
        spiking.from_nir(graph_of(*nodes))


def test_a_graph_without_a_step_time_needs_one():
    graph = graph_of(nir.Linear(np.eye(2)), neurons(), dt=None)
    with pytest.raises(ConfigError, match="give a step_time, in ms"):
        spiking.from_nir(graph)
    assert spiking.from_nir(graph, step_time=0.5).network.neuron.step_time == 0.5


def test_synapses_with_several_delays_are_refused_on_import():
    network = sayable("LinearDense")
    params = draw_whole(network)
    linear = network.connection.clone(synapse=DeltaCurrent(spike_charge=8.0, interp_mode="linear"))
    params["connection"]["delay"] = params["connection"]["delay"].at[0, 0].set(0.5)
    exported = spiking.to_nir(Serial(linear, network.neuron), params)
    assert_same(spiking.compare_nir(Serial(linear, network.neuron), params, exported.graph))
    with pytest.raises(ConfigError, match="1 synapses are there with several delays"):
        spiking.from_nir(exported.graph)


def test_files_are_replaced_by_force_alone_and_others_refused(tmp_path):
    network = sayable()
    graph = spiking.to_nir(network, draw_whole(network)).graph
    path = spiking.write_nir(tmp_path / "net.nir", graph)
    with pytest.raises(ConfigError, match="exists already"):
        spiking.write_nir(path, graph)
    spiking.write_nir(path, graph, force=True)
    path.write_bytes(b"not HDF5")
    with pytest.raises(FileError, match="no NIR graph"):
        spiking.from_nir(path)
    with pytest.raises(ConfigError, match="does not exist"):
        spiking.from_nir(tmp_path / "other.nir")
    assert [*tmp_path.iterdir()] == [path]
