"""Layers by steps, in sequence, in a batch of parameters, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_layers import QUICK, SYNAPSES, biclique, dense, draw_params, neuron, recurrent, run, spikes, voltages

from jaxkit.spiking import synapses
from jaxkit.spiking.connections import LinearLateral
from jaxkit.spiking.layers import Biclique, Serial

pytestmark = pytest.mark.level(1)


@pytest.fixture(autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


def inputs(layer, steps, batch=2):
    if isinstance(layer, Biclique):
        return {
            name: spikes(i, steps, batch, *part.inshape) for i, (name, part) in enumerate(layer.connections.items())
        }
    return spikes(3, steps, batch, 4)


def layers():
    return {"serial": Serial(dense(4, 5), neuron("ALIF", 5)), "biclique": biclique(), "recurrent": recurrent()}


@pytest.mark.parametrize("name", layers())
def test_a_sequence_is_its_steps_and_its_parts(name):
    layer = layers()[name]
    params, x = draw_params(layer, 4), inputs(layer, 8)
    whole, fired, potentials = run(layer, params, x, batch=2)
    step = jax.jit(lambda carry, x: layer.apply({"params": params}, carry, x), compiler_options=QUICK)
    carry = layer.initialize_carry(2)
    for t in range(8):
        carry, now = step(carry, jax.tree.map(lambda part: part[t], x))  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, now, jax.tree.map(lambda part: part[t], fired))  # noqa: B023
        for part, state in carry.neurons.items():
            # compiled apart, products are summed in another order
            np.testing.assert_allclose(state.voltage, potentials[part][t], rtol=1e-6)
    first, *_ = run(layer, params, jax.tree.map(lambda part: part[:4], x), batch=2)
    second, rest, _ = run(layer, params, jax.tree.map(lambda part: part[4:], x), carry=first)
    jax.tree.map(np.testing.assert_array_equal, rest, jax.tree.map(lambda part: part[4:], fired))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), second, whole)


def test_currents_can_be_recorded():
    layer = recurrent()
    params, x = draw_params(layer, 4), spikes(5, 6, 2, 4)
    _, _, currents = run(layer, params, x, batch=2, record=lambda step: step.currents)
    part = layer.feedfwd_connection
    _, expected = part.apply({"params": params["feedfwd_connection"]}, part.initialize_carry(2), x, method="sequence")
    np.testing.assert_allclose(currents["feedfwd_connection"], expected, rtol=1e-6)
    assert {name: current.shape for name, current in currents.items()} == {
        "feedfwd_connection": (6, 2, 5),
        "lateral_connection": (6, 2, 3),
        "feedback_connection": (6, 2, 5),
    }


@pytest.mark.parametrize("name", layers())
def test_without_adapt_adaptations_stand_still(name):
    layer = layers()[name]
    params, x = draw_params(layer, 4), inputs(layer, 10)
    start = layer.initialize_carry(2)

    def end(adapt):
        return layer.apply({"params": params}, start, x, adapt=adapt, method="sequence")[0].neurons

    moved, still = end(True), end(False)
    adaptive = [name for name, state in moved.items() if state.adaptation is not None]
    assert adaptive
    for part in adaptive:
        assert moved[part].adaptation.any()
        assert not still[part].adaptation.any()


def test_feedback_arrives_a_step_late():
    layer = recurrent(delay=None)
    params = draw_params(layer, 6, mean=2.0)
    x = jnp.ones((6, 2, 4))

    def potentials(weight, t):
        changed = params | {"feedback_connection": params["feedback_connection"] | {"weight": weight}}
        _, fired, _ = layer.apply({"params": changed}, layer.initialize_carry(2), x, record=voltages, method="sequence")
        return fired["feedfwd"][t].sum(), fired["feedback"]

    gradient = jax.jit(jax.jacrev(potentials, has_aux=True), static_argnums=1, compiler_options=QUICK)
    weight = params["feedback_connection"]["weight"]
    _, echo = gradient(weight, 0)
    sent = int(np.flatnonzero(echo.any((1, 2)))[0])
    # of a double exponential nothing flows at the step at which a spike comes in
    assert not gradient(weight, sent + 1)[0].any()
    assert any(gradient(weight, t)[0].any() for t in range(sent + 2, 6))


def test_gradients_flow_through_time_and_never_back():
    layer = recurrent(relaxed_delay="linear", execution="future")
    params, x = draw_params(layer, 7, mean=1.5), spikes(8, 14, 1, 4)

    def loss(params, x):
        _, fired, _ = layer.apply({"params": params}, layer.initialize_carry(1), x, record=voltages, method="sequence")
        return fired["feedfwd"][10].sum()

    by_params, by_input = jax.jit(jax.grad(loss, (0, 1)), compiler_options=QUICK)(params, x)
    for name, leaves in by_params.items():
        for key, gradient in leaves.items():
            assert np.isfinite(gradient).all()
            assert gradient.any(), f"{name}/{key}"
    reached = by_input.any((1, 2))
    assert reached[:10].all()
    assert not reached[11:].any()


def test_many_parameters_can_be_mapped_over():
    layer = recurrent()
    many = [draw_params(layer, seed) for seed in range(3)]
    x = spikes(9, 10, 2, 4)

    def fired(params):
        return layer.apply({"params": params}, layer.initialize_carry(2), x, method="sequence")[1]

    stacked = jax.jit(jax.vmap(fired), compiler_options=QUICK)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *many))
    one = jax.jit(fired, compiler_options=QUICK)
    for i, params in enumerate(many):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda a: a[i], stacked), one(params))  # noqa: B023
    assert (stacked["feedfwd"][0] != stacked["feedfwd"][1]).any()


def test_linen_makes_the_parameters_of_a_biclique_from_a_call():
    layer = biclique()
    x = jax.tree.map(lambda part: part[0], inputs(layer, 1))
    variables = layer.init(jax.random.key(0), layer.initialize_carry(2), x)
    assert {name: part["weight"].shape for name, part in variables["params"].items()} == {
        "connections_a": (5, 4),
        "connections_b": (5, 3),
        "connections_c": (5, 2),
    }
    carry, fired = layer.apply(variables, layer.initialize_carry(2), x)
    assert {name: part.shape for name, part in fired.items()} == {"x": (2, 5), "y": (2, 5)}
    assert set(carry.connections) == set(variables["params"])


def test_project_reaches_every_connection():
    synapse = synapses.DeltaCurrent(**SYNAPSES["DeltaCurrent"])
    lateral = LinearLateral(5, 1.0, synapse=synapse, delay=2.0, out_of_range="project")
    layer = Biclique({"a": dense(4, 5), "b": lateral}, {"x": neuron("LIF", 5)})
    params = {
        "connections_a": {"weight": jnp.ones((5, 4)), "bias": jnp.ones(5), "delay": jnp.full((5, 4), 9.0)},
        "connections_b": {"weight": jnp.ones((5, 5)), "delay": jnp.full((5, 5), 9.0)},
    }
    projected = layer.project(params)
    np.testing.assert_array_equal(projected["connections_b"]["weight"], 1 - np.eye(5))
    np.testing.assert_array_equal(projected["connections_b"]["delay"], 2 * (1 - np.eye(5)))
    # out of range is silent here, and stays
    jax.tree.map(np.testing.assert_array_equal, projected["connections_a"], params["connections_a"])


def test_an_unknown_combination_and_transforms_of_nothing_are_refused():
    misnamed = biclique()
    # users' annotations are not checked as those of tests are
    object.__setattr__(misnamed, "combine", "median")
    with pytest.raises(ValueError, match=r"combine is 'median'; it can be sum, mean, prod, min, max or a function"):
        misnamed.initialize_carry(1)
    with pytest.raises(ValueError, match=r"transforms of \['q', 'z'\], which are no parts"):
        biclique(before={"q": jnp.abs}, after={"z": jnp.abs}).initialize_carry(1)


def test_an_input_that_is_missing_is_named():
    layer = biclique()
    x = jax.tree.map(lambda part: part[0], inputs(layer, 1))
    del x["b"]
    with pytest.raises(ValueError, match=r"inputs of \['a', 'c'\] for connections \['a', 'b', 'c'\]"):
        layer.step(layer.plan(draw_params(layer, 0)), layer.initialize_carry(2), x)
