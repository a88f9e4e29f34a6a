"""The facade: what is held behaves as what was held in the original, and as the functions that it holds."""

import copy
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit.errors import ShapeError
from jaxkit.spiking.connections import LinearDense, LinearLateral
from jaxkit.spiking.layers import Biclique, RecurrentSerial, Serial
from jaxkit.spiking.neurons import ALIF, LIF
from jaxkit.spiking.plasticity import MSTDP, STDP, Updater
from jaxkit.spiking.stateful import Stateful, StatefulConnection
from jaxkit.spiking.synapses import DeltaCurrent, SingleExponentialCurrent

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    inferno = pytest.importorskip("inferno")
    from inferno import neural

pytestmark = pytest.mark.level(1)

SYNAPSE = SingleExponentialCurrent(spike_charge=30.0, time_constant=3.0)


@pytest.fixture(autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


def dense(inputs=3, outputs=2, **options):
    given = {"synapse": SYNAPSE, "bias": True, "delay": 2.0, **options}
    return LinearDense(inputs, outputs, 1.0, **given)


def alif(shape=2, **options):
    constants = {"rest_v": -60.0, "reset_v": -65.0, "thresh_eq_v": -55.0, "refrac_t": 1.0, "tc_membrane": 10.0}
    return ALIF(shape, 1.0, **constants, tc_adaptation=20.0, spike_increment=1.0, **options)


def lif(shape=2):
    return LIF(shape, 1.0, rest_v=-60.0, reset_v=-65.0, thresh_v=-55.0, refrac_t=1.0, time_constant=10.0)


def spikes(rng, *shape):
    return jnp.asarray(rng.random(shape) < 0.5, jnp.float32)


def test_a_connection_shows_what_the_originals_shows_while_parameters_are_set_between_steps():
    rng = np.random.default_rng(0)
    synapse = neural.SingleExponentialCurrent.partialconstructor(30.0, 3.0)
    theirs = neural.LinearDense(3, 2, 1.0, synapse=synapse, bias=True, delay=2.0, batch_size=4)
    ours = StatefulConnection(dense(), batch_size=4)
    assert ours.delayedby == theirs.delayedby == 2.0
    for _ in range(6):
        for name in ("weight", "bias", "delay"):
            value = rng.uniform(0, 2, getattr(theirs, name).shape).astype(np.float32)
            setattr(theirs, name, torch.from_numpy(value))
            setattr(ours, name, value)
        x = spikes(rng, 4, 3)
        # sums of a few products of up to 30
        np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(np.array(x))).detach(), rtol=1e-6, atol=1e-5)
        np.testing.assert_array_equal(ours.selector, theirs.selector.detach())
        np.testing.assert_allclose(ours.syncurrent, theirs.syncurrent.detach(), rtol=1e-6, atol=1e-5)
        np.testing.assert_array_equal(ours.synspike, theirs.synspike)
    receptive = ours.presyn_receptive(ours.syncurrent)
    assert receptive.shape == theirs.presyn_receptive(theirs.syncurrent).shape == (4, 2, 3, 1)
    assert ours.postsyn_receptive(ours(x)).shape == (4, 2, 1, 1)
    np.testing.assert_array_equal(ours.like_bias(ours.bias[:, None]), ours.bias)
    np.testing.assert_array_equal(ours.like_synaptic(x), ours.like_input(x))


def test_a_step_is_compiled_once():
    compiled = []

    class Watched(LIF):
        def integrate(self, voltage, current):
            compiled.append(current.shape)
            return super().integrate(voltage, current)

    neurons = Stateful(
        Watched(2, 1.0, rest_v=-60.0, reset_v=-65.0, thresh_v=-55.0, refrac_t=1.0, time_constant=10.0), 3
    )
    for _ in range(3):
        neurons(jnp.ones((3, 2)))
    assert compiled == [(3, 2)]


@pytest.mark.parametrize("name", ["weight", "bias", "delay"])
def test_a_parameter_of_another_shape_is_refused(name):
    connection = StatefulConnection(dense())
    before = getattr(connection, name)
    with pytest.raises(ShapeError, match=rf"{name} is \(7, 9\), not \({before.shape[0]},"):
        setattr(connection, name, jnp.zeros((7, 9)))
    assert getattr(connection, name) is before


def test_a_parameter_that_is_not_there_is_none_and_cannot_be_set():
    connection = StatefulConnection(dense(bias=False, delay=None))
    assert connection.bias is connection.delay is connection.selector is connection.delayedby is None
    for name in ("bias", "delay"):
        with pytest.raises(ShapeError, match=f"no {name} here"):
            setattr(connection, name, jnp.zeros(2))
    with pytest.raises(ShapeError, match="weight is missing"):
        connection.params = {}


def test_a_name_misspelt_is_an_error():
    connection = StatefulConnection(dense())
    with pytest.raises(AttributeError, match="wieght"):
        connection.wieght = connection.weight
    with pytest.raises(AttributeError, match="wieght"):
        connection.wieght  # noqa: B018
    neurons = Stateful(lif())
    with pytest.raises(AttributeError, match="voltage"):
        neurons.voltage = jnp.zeros((1, 2))


def test_a_lateral_connection_masks_what_it_is_given():
    connection = StatefulConnection(LinearLateral(3, 1.0, synapse=SYNAPSE, delay=2.0))
    connection.weight = connection.delay = np.ones((3, 3))
    np.testing.assert_array_equal(connection.weight, 1 - np.eye(3))
    np.testing.assert_array_equal(connection.delay, 1 - np.eye(3))


def test_inputs_of_another_batch_are_refused_until_the_batch_size_is_set():
    connection = StatefulConnection(dense(), batch_size=2)
    connection(jnp.ones((2, 3)))
    with pytest.raises(ShapeError, match="state of 2 samples"):
        connection(jnp.ones((4, 3)))
    connection.batch_size = 4
    assert connection.batch_size == 4
    assert not connection.synspike.any()
    assert connection(jnp.ones((4, 3))).shape == (4, 2)


def test_a_clear_connection_repeats_itself():
    rng = np.random.default_rng(1)
    connection, x = StatefulConnection(dense(), batch_size=2), spikes(rng, 4, 2, 3)
    connection.delay = rng.uniform(0, 2, (2, 3))
    first = [connection(step) for step in x]
    twin = copy.copy(connection)
    connection.clear()
    again = [connection(step) for step in x]
    np.testing.assert_array_equal(first, again)
    # the copy went its own way
    assert (twin(x[0]) != first[0]).any()


@pytest.mark.parametrize("keep", [True, False])
def test_clear_keeps_adaptations_unless_told_not_to(keep):
    neurons = Stateful(alif(), batch_size=2)
    theirs = neural.ALIF(
        2,
        1.0,
        rest_v=-60.0,
        reset_v=-65.0,
        thresh_eq_v=-55.0,
        refrac_t=1.0,
        tc_membrane=10.0,
        tc_adaptation=20.0,
        spike_increment=1.0,
        batch_size=2,
    )
    for _ in range(4):
        fired = neurons(jnp.full((2, 2), 80.0))
        np.testing.assert_array_equal(fired, theirs(torch.full((2, 2), 80.0)))
    assert (neurons.adaptation > 0.5).all()
    neurons.clear(keep_adaptations=keep)
    theirs.clear(keep_adaptations=keep)
    np.testing.assert_array_equal(neurons.voltage, theirs.voltage)
    # float32 rounding of an exponential
    np.testing.assert_allclose(neurons.adaptation, theirs.threshold_adaptation, rtol=1e-6)
    assert bool(neurons.adaptation.any()) == keep


def test_another_batch_size_keeps_the_adaptation_that_samples_share():
    for reduction, kept in (("mean", True), ("none", False)):
        layer = Stateful(Serial(dense(), alif(batch_reduction=reduction)), batch_size=3)
        for _ in range(4):
            layer(jnp.ones((3, 3)))
        layer.batch_size = 1
        assert bool(layer.neurons["neuron"].adaptation.any()) == kept
        assert layer(jnp.ones((1, 3))).shape == (1, 2)


def test_without_adapt_adaptations_stand_still():
    neurons = Stateful(alif(), batch_size=2)
    assert neurons(jnp.full((2, 2), 80.0), adapt=False).all()
    assert not neurons.adaptation.any()


def layers():
    recurrent = RecurrentSerial(dense(), dense(2, 2), dense(2, 2), alif(), lif())
    return {
        "serial": (Serial(dense(), alif()), lambda x: x),
        "recurrent": (recurrent, lambda x: x),
        "biclique": (Biclique({"a": dense(), "b": dense()}, {"n": lif()}), lambda x: {"a": x, "b": 1 - x}),
    }


@pytest.mark.parametrize("name", layers())
def test_a_layer_steps_as_its_sequence_does(name):
    layer, wrap = layers()[name]
    rng = np.random.default_rng(2)
    x = spikes(rng, 5, 2, 3)
    held = Stateful(layer, batch_size=2, key=jax.random.key(3))
    held.params = jax.tree.map(lambda p: p + 0.5, held.params)
    y = [held(wrap(step)) for step in x]
    carry, expected = jax.jit(lambda p, x: layer.apply({"params": p}, layer.initialize_carry(2), x, method="sequence"))(
        held.params, wrap(x)
    )
    # a spike hangs on rounding nowhere here; the connections gather in one and look ahead in the other
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda *ys: jnp.stack(ys), *y), expected)
    for ours, theirs in zip(held.neurons.values(), carry.neurons.values(), strict=True):
        np.testing.assert_allclose(ours.voltage, theirs.voltage, rtol=1e-6)
    with pytest.raises(ShapeError, match="weight is missing"):
        held.params = {part: {"bias": leaves["bias"]} for part, leaves in held.params.items()}


def test_connections_within_a_layer_gather():
    held = Stateful(layers()["biclique"][0])
    assert [part.executed for part in held.part.connections.values()] == ["gather", "gather"]


# What inferno-ai 0.0.5 changes at each step: of the two weights what is added and taken away, to six decimals.
PULSES = ((1, 0), (0, 0), (0, 1), (1, 1), (0, 0))
CHANGES = ((0.1 - 0.2, 0), (0, 0), (0, -0.163746), (0.186071 - 0.348164, 0.195123 - 0.348164), (0, 0))


def test_a_held_connection_learns_by_stdp_as_the_original():
    constants = {"rest_v": -60.0, "reset_v": -65.0, "thresh_v": -50.0, "refrac_t": 1.0, "time_constant": 20.0}
    neurons = Stateful(LIF(1, 1.0, **constants, resistance=5.0))
    connection = StatefulConnection(LinearDense(2, 1, 1.0, synapse=DeltaCurrent(spike_charge=1.0)))
    rule, updater = STDP(lr_post=0.1, lr_pre=-0.2, tc_post=10.0, tc_pre=20.0), Updater()
    weight = np.full((1, 2), 50.0)
    connection.weight = weight
    for _ in range(2):
        for pulse, change in zip(PULSES, CHANGES, strict=True):
            connection.weight = weight
            connection.learn(rule, updater, neurons(connection(jnp.asarray([pulse], jnp.float32))))
            # rounded to 1e-6, and the weight to 4e-6
            np.testing.assert_allclose(connection.weight - weight, [change], atol=1e-5)
        connection.clear()
        neurons.clear()


def test_a_reward_reaches_the_rule():
    rule = MSTDP(lr_post=0.1, lr_pre=-0.2, tc_post=10.0, tc_pre=20.0)
    changes = []
    for reward in (1.0, -2.0):
        connection = StatefulConnection(dense())
        before = connection.weight
        connection(jnp.ones((1, 3)))
        connection.learn(rule, Updater(), jnp.ones((1, 2)), reward)
        changes.append(connection.weight - before)
    assert (changes[0] != 0).all()
    np.testing.assert_allclose(changes[1], -2 * changes[0], rtol=1e-5)
