"""Gradients through time: the surrogate's chain by hand, and nothing that is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_neurons import ADAPTIVE, build, currents, scan

from jaxkit.spiking.neurons import NEURONS
from jaxkit.spiking.surrogate import SURROGATES, arctan, straight_through

REST, RESET, THRESHOLD = -60.0, -65.0, -50.0
WIDTH = THRESHOLD - REST


def chain_by_hand(current, weight, decay, detach):
    """d(Σ_t weight_t s_t)/dI of one LIF neuron without refractory period, backwards in numpy float64."""
    voltage, before, spikes = REST, [], []
    for now in current:
        voltage = REST + (voltage - REST - now) * decay + now
        before.append(voltage)
        spikes.append(voltage >= THRESHOLD)
        voltage = RESET if spikes[-1] else voltage
    gradient, after = np.zeros(len(current)), 0.0
    for t in reversed(range(len(current))):
        slope = 1 / (1 + (np.pi * (before[t] - THRESHOLD) / WIDTH) ** 2) / WIDTH
        by_voltage = weight[t] * slope + after * (1 - spikes[t])
        if not detach:
            by_voltage += after * (RESET - before[t]) * slope
        gradient[t] = by_voltage * (1 - decay)
        after = by_voltage * decay
    return gradient, spikes


@pytest.mark.parametrize("detach", [True, False])
def test_the_gradient_through_time_is_the_chain_worked_out_by_hand(detach):
    neuron = build("LIF", 1, time_constant=2.0, refrac_t=0.0, detach_reset=detach, surrogate=arctan(2.0))
    current, weight = np.array([20.0, 30.0, 5.0, 25.0, 12.0]), np.array([0.5, -1.0, 2.0, 1.5, 3.0])

    def loss(current):
        _, (_, spikes) = scan(neuron, current[:, None, None])
        return jnp.vdot(spikes[:, 0, 0], jnp.asarray(weight))

    expected, spikes = chain_by_hand(current, weight, np.exp(-0.5), detach)
    assert 0 < sum(spikes) < len(spikes)
    # float32 of voltages near 60, whose distances to threshold are a few mV
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(current, jnp.float32)), expected, rtol=2e-5, atol=1e-7)


def test_a_straight_through_spike_passes_the_gradient_of_its_voltage():
    neuron = build("LIF", 1, surrogate=straight_through())
    carry = neuron.initialize_carry(1)
    gradient = jax.grad(lambda current: neuron(carry, current)[1].sum())(jnp.asarray([[3.0]]))
    np.testing.assert_allclose(gradient, [[(1 - np.exp(-1 / 20)) / WIDTH]], rtol=1e-6)


def test_a_refractory_neuron_passes_no_gradient():
    neuron = build("LIF", 1)
    carry, spike = neuron(neuron.initialize_carry(1), jnp.asarray([[900.0]]))
    assert spike == 1
    gradient = jax.grad(lambda current: neuron(carry, current)[1].sum())(jnp.asarray([[900.0]]))
    assert gradient == 0


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("name", NEURONS)
def test_gradients_through_time_are_finite_and_reach_the_first_step(name, detach):
    neuron = build(name, detach_reset=detach, refrac_t=1.0)

    def loss(current):
        _, (_, spikes) = scan(neuron, current)
        return spikes[-1].sum()

    gradient = jax.jit(jax.grad(loss))(currents(8) / 3)
    assert jnp.isfinite(gradient).all()
    assert gradient[0].any()


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_an_exponential_membrane_far_above_its_threshold_has_finite_gradients(surrogate):
    """``exp((V - V_T) / Δ)`` would overflow float32 in this neuron, and give ``0 · inf``."""
    neuron = build("EIF", 1, thresh_v=300.0, sharpness=1.0, surrogate=SURROGATES[surrogate]())
    carry, current = neuron.initialize_carry(1), jnp.asarray([[1.0]])

    def loss(voltage):
        after, spike = neuron(carry._replace(voltage=voltage), current)
        return spike.sum() + after.voltage.sum(), spike

    gradient, spike = jax.grad(loss, has_aux=True)(jnp.asarray([[200.0]]))
    assert spike == 1
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_spike_has_a_gradient_through_the_adaptation_it_leaves(name):
    neuron = build(name, 1)

    def loss(current):
        return neuron(neuron.initialize_carry(2), current)[0].adaptation.sum()

    assert jax.grad(loss)(jnp.asarray([[150.0], [210.0]])).all()
