import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from jaxkit.errors import ShapeError
from jaxkit.spiking.neurons import LIF, NEURONS, NeuronCarry

MEMBRANE = {"rest_v": -60.0, "reset_v": -65.0, "refrac_t": 2.0}
PLAIN = {"thresh_v": -50.0, "time_constant": 20.0}
CONSTANTS = {
    "LIF": MEMBRANE | PLAIN,
    "GLIF1": MEMBRANE | PLAIN,
    "ALIF": MEMBRANE
    | {"thresh_eq_v": -50.0, "tc_membrane": 20.0, "tc_adaptation": (10.0, 40.0), "spike_increment": (1.0, 0.5)},
    "GLIF2": {"rest_v": -60.0, "reset_v_add": 3.0, "reset_v_mul": 0.4, "thresh_eq_v": -50.0, "refrac_t": 2.0}
    | {"tc_membrane": 20.0, "rc_adaptation": 0.1, "spike_increment": 1.0},
    "QIF": MEMBRANE | PLAIN | {"crit_v": -55.0, "affinity": 0.1},
    "EIF": MEMBRANE | PLAIN | {"rheobase_v": -55.0, "sharpness": 2.0},
    "Izhikevich": MEMBRANE
    | {"thresh_v": -50.0, "tc_membrane": 20.0, "crit_v": -55.0, "affinity": 0.1}
    | {"tc_adaptation": 30.0, "voltage_coupling": 0.1, "spike_increment": 0.5},
    "AdEx": MEMBRANE
    | {"thresh_v": -50.0, "tc_membrane": 20.0, "rheobase_v": -55.0, "sharpness": 2.0}
    | {"tc_adaptation": 30.0, "voltage_coupling": 0.1, "spike_increment": 0.5},
}
ADAPTIVE = ("ALIF", "GLIF2", "Izhikevich", "AdEx")


def build(name, shape=(2,), step_time=1.0, **changes):
    return NEURONS[name](shape, step_time, **(CONSTANTS[name] | changes))


def currents(steps=60, batch=3, shape=(2,), seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(22, 15, (steps, batch, *shape)), jnp.float32)


def scan(neuron, current, carry=None, adapt=True):
    """The last carry; then the carry and the spikes after each step."""

    def step(carry, current):
        carry, spike = neuron(carry, current, adapt=adapt)
        return carry, (carry, spike)

    return jax.lax.scan(step, neuron.initialize_carry(current.shape[1]) if carry is None else carry, current)


def constant(value, steps):
    return jnp.full((steps, 1, 1), value, jnp.float32)


# trace T5 of the specification: real output of inferno, to six digits after the point
def test_a_lif_neuron_repeats_the_recorded_trace():
    _, (carry, spike) = scan(build("LIF", 1, resistance=5.0), constant(50.0, 8))
    np.testing.assert_array_equal(spike[:, 0, 0], [1, 0, 0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(carry.spike, spike)
    np.testing.assert_array_equal(carry.refrac[:, 0, 0], [2, 1, 0, 2, 1, 0, 2, 1])
    free = -52.563507
    np.testing.assert_allclose(carry.voltage[:, 0, 0], [-65, -65, free, -65, -65, free, -65, -65], atol=1e-5)


def test_an_alif_neuron_repeats_the_recorded_trace():
    neuron = build("ALIF", 1, resistance=5.0, tc_adaptation=10.0, spike_increment=1.0)
    _, (carry, spike) = scan(neuron, constant(50.0, 8))
    np.testing.assert_array_equal(spike[:, 0, 0], [1, 0, 0, 1, 0, 0, 1, 0])
    recorded = [1, 1, 0.904837, 1.904837, 1.904837, 1.723568, 2.723568, 2.723568]
    np.testing.assert_allclose(carry.adaptation[:, 0, 0], recorded, atol=1e-6)


def test_an_unlocked_refractory_membrane_repeats_the_recorded_trace():
    _, (carry, spike) = scan(build("LIF", 1, resistance=5.0, refrac_lock=False), constant(50.0, 6))
    np.testing.assert_array_equal(spike[:, 0, 0], [1, 0, 0, 1, 0, 0])
    moving = [-64.756149, -52.331543]
    np.testing.assert_allclose(carry.voltage[:, 0, 0], [-65, *moving, -65, *moving], atol=1e-5)


def test_without_a_refractory_period_spikes_are_those_fired():
    neuron = build("LIF", 1, resistance=5.0, refrac_t=0.0)
    current = constant(50.0, 6).at[2:4].set(0)
    _, (carry, spike) = scan(neuron, current)
    np.testing.assert_array_equal(spike[:, 0, 0], [1, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(carry.spike, spike)
    assert not carry.refrac.any()


@pytest.mark.parametrize("name", NEURONS)
def test_a_scan_steps_as_single_calls_do(name):
    neuron, current = build(name), currents(12)
    last, (_, spikes) = scan(neuron, current)
    step, carry, single = jax.jit(neuron.__call__), neuron.initialize_carry(3), []
    for now in current:
        carry, spike = step(carry, now)
        single.append(spike)
    assert spikes.any()
    np.testing.assert_array_equal(spikes, jnp.stack(single))
    # XLA may fuse the two programs differently: the last digit of a voltage of 60
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), last, carry)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_with_adaptation_of_its_own_each_sample_is_alone(name):
    neuron, current = build(name, (2, 3), batch_reduction="none"), currents(shape=(2, 3))
    assert neuron.initialize_carry(3).adaptation.shape == (3, 2, 3, len(neuron.spike_increment))
    together, (_, spikes) = scan(neuron, current)
    alone, (_, single) = jax.vmap(lambda current: scan(neuron, current[:, None]), in_axes=1)(current)
    np.testing.assert_array_equal(spikes, rearrange(single, "b t 1 h w -> t b h w"))
    for field in ("voltage", "adaptation"):
        # as above
        np.testing.assert_allclose(getattr(together, field), getattr(alone, field)[:, 0], rtol=0, atol=2e-5)
    assert np.ptp(np.asarray(together.adaptation), axis=0).max() > 0.1


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_shared_adaptation_is_the_mean_of_what_the_samples_would_have(name):
    """One step from rest, with a current strong enough for one sample in two to fire."""
    current = jnp.asarray([[900.0], [0.0]])
    shared, _ = build(name, 1)(build(name, 1).initialize_carry(2), current)
    own = build(name, 1, batch_reduction="none")
    carry, spike = own(own.initialize_carry(2), current)
    assert spike.tolist() == [[1], [0]]
    np.testing.assert_allclose(shared.adaptation, carry.adaptation.mean(0), rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "min"])
def test_eight_devices_adapt_as_one(reduction):
    # a sum multiplies the adaptation by the batch at every step: few steps. All fire at the first: no minimum is zero
    steps = 12 if reduction == "sum" else 60
    current = currents(steps, batch=16).at[0].add(300)
    one, _ = scan(build("ALIF", batch_reduction=reduction), current)
    neuron = build("ALIF", batch_reduction=reduction, axis_name="devices")
    shards = rearrange(current, "t (devices b) n -> devices t b n", devices=8)
    eight, _ = jax.pmap(lambda current: scan(neuron, current), axis_name="devices")(shards)
    # sums over the batch come in another order: a last digit at each step
    np.testing.assert_allclose(eight.adaptation, jnp.broadcast_to(one.adaptation, (8, 2, 2)), rtol=1e-5)
    np.testing.assert_allclose(rearrange(eight.voltage, "devices b n -> (devices b) n"), one.voltage, rtol=0, atol=2e-5)
    assert one.adaptation.all()


def test_adaptation_stands_still_when_told_not_to_adapt():
    neuron = build("ALIF")
    adapted, _ = scan(neuron, currents())
    evaluated, (_, spikes) = scan(neuron, currents(seed=1), adapted, adapt=False)
    assert spikes.any()
    np.testing.assert_array_equal(evaluated.adaptation, adapted.adaptation)


@pytest.mark.parametrize("name", NEURONS)
def test_clearing_brings_neurons_to_rest_and_keeps_adaptation_by_choice(name):
    neuron = build(name)
    adapted, _ = scan(neuron, currents())
    fresh = neuron.initialize_carry(3)
    jax.tree.map(np.testing.assert_array_equal, neuron.clear(adapted, keep_adaptations=False), fresh)
    kept = neuron.clear(adapted)
    jax.tree.map(np.testing.assert_array_equal, kept, fresh._replace(adaptation=adapted.adaptation))
    assert (kept.adaptation is None) == (name not in ADAPTIVE)


@pytest.mark.parametrize("name", NEURONS)
def test_membranes_stay_float32_under_bfloat16_currents(name):
    neuron, current = build(name, resistance=1.3), currents(30).astype(jnp.bfloat16)
    carry, (_, spikes) = scan(neuron, current)
    wide, (_, expected) = scan(neuron, current.astype(jnp.float32))
    assert spikes.dtype == jnp.bfloat16
    assert expected.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(carry)} == {jnp.dtype("float32")}
    assert expected.any()
    np.testing.assert_array_equal(spikes.astype(jnp.float32), expected)
    jax.tree.map(np.testing.assert_array_equal, carry, wide)


def test_subtracting_reset_is_a_glif2_neuron():
    neuron = build("GLIF2", 1, reset_v_mul=1.0, reset_v_add=10.0, spike_increment=0.0)
    carry, spike = neuron(neuron.initialize_carry(1), jnp.asarray([[300.0]]))
    before = -60 + 300 * (1 - np.exp(-1 / 20))
    assert spike == 1
    np.testing.assert_allclose(carry.voltage, [[before - 10]], rtol=1e-6)


def test_a_membrane_that_overflows_fires_and_is_reset():
    """Above ``crit_v`` and not locked, the membrane runs away during its refractory period."""
    neuron = build("QIF", 1, refrac_lock=False, refrac_t=40.0, crit_v=-58.0, reset_v=-51.0, affinity=9.0)
    carry = neuron.initialize_carry(1)
    _, (carry, spike) = scan(neuron, constant(900.0, 42), carry)
    assert jnp.isinf(carry.voltage).any()
    assert spike[:, 0, 0].tolist() == [1] + [0] * 39 + [1, 0]
    assert carry.voltage[40, 0, 0] == -51


def test_an_integer_is_a_shape_and_equal_neurons_hash_equally():
    assert build("LIF", 4).shape == (4,)
    assert build("ALIF", 4) == build("ALIF", (4,))
    assert hash(build("ALIF", 4)) == hash(build("ALIF", (4,)))
    assert isinstance(build("GLIF1"), LIF)
    assert build("GLIF1") != build("LIF")
    assert list(NEURONS) == ["LIF", "ALIF", "GLIF1", "GLIF2", "QIF", "Izhikevich", "EIF", "AdEx"]


def test_a_carry_is_made_of_the_arrays_inferno_keeps():
    carry = build("AdEx", (2, 3)).initialize_carry(4)
    assert isinstance(carry, NeuronCarry)
    assert (carry.voltage == -60).all()
    assert not carry.refrac.any()
    assert not carry.spike.any()
    assert [None if x is None else x.shape for x in carry] == [(4, 2, 3), (4, 2, 3), (4, 2, 3), (2, 3, 1)]
    assert build("LIF").initialize_carry(4).adaptation is None


def test_constants_of_one_serve_all_adaptations():
    neuron = build("AdEx", tc_adaptation=(10.0, 20.0, 30.0), voltage_coupling=0.1, spike_increment=[0.5])
    assert neuron.voltage_coupling == (0.1, 0.1, 0.1)
    assert neuron.spike_increment == (0.5, 0.5, 0.5)
    assert neuron.initialize_carry(1).adaptation.shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("LIF", {"step_time": 0.0}, "LIF: step_time must be above 0, got 0.0"),
        ("LIF", {"shape": (3, 0)}, r"LIF: shape must be .*, 1 or more, got \(3, 0\)"),
        ("LIF", {"refrac_t": -1.0}, "LIF: refrac_t must be 0 or more, got -1.0"),
        ("LIF", {"resistance": 0.0}, "LIF: resistance must not be 0"),
        ("GLIF1", {"time_constant": 0.0}, "GLIF1: time_constant must be above 0"),
        ("LIF", {"rest_v": -50.0}, "LIF: rest_v must be below thresh_v, got -50.0 and -50.0"),
        ("LIF", {"reset_v": -40.0}, "LIF: reset_v must be below thresh_v, got -40.0 and -50.0"),
        ("ALIF", {"reset_v": -40.0}, "ALIF: reset_v must be below thresh_eq_v"),
        ("GLIF2", {"rest_v": -40.0}, "GLIF2: rest_v must be below thresh_eq_v"),
        ("GLIF2", {"rc_adaptation": -0.1}, r"GLIF2: rc_adaptation must be above 0, got \(-0.1,\)"),
        ("ALIF", {"tc_adaptation": (10.0, 0.0)}, "ALIF: tc_adaptation must be above 0"),
        ("ALIF", {"tc_membrane": float("nan")}, "ALIF: tc_membrane must be above 0, got nan"),
        ("ALIF", {"spike_increment": (1.0, 2.0, 3.0)}, "got tc_adaptation 2, spike_increment 3"),
        ("AdEx", {"voltage_coupling": ()}, "got tc_adaptation 1, voltage_coupling 0, spike_increment 1"),
        ("ALIF", {"batch_reduction": "median"}, "batch_reduction must be one of mean, sum, max, min, none"),
        ("ALIF", {"batch_reduction": "none", "axis_name": "devices"}, "axis_name has nothing to reduce"),
        ("QIF", {"crit_v": -61.0}, "QIF: rest_v must be below crit_v"),
        ("QIF", {"crit_v": -49.0}, "QIF: crit_v must be below thresh_v"),
        ("Izhikevich", {"affinity": 0.0}, "Izhikevich: affinity must be above 0"),
        ("EIF", {"sharpness": 0.0}, "EIF: sharpness must be above 0"),
        ("EIF", {"rheobase_v": -61.0}, "EIF: rest_v must be below rheobase_v"),
        ("AdEx", {"rheobase_v": -49.0}, "AdEx: rheobase_v must be below thresh_v"),
    ],
)
def test_impossible_constants_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        build(name, **changes)


def test_a_current_of_another_shape_is_refused():
    neuron = build("LIF")
    with pytest.raises(ShapeError, match=r"LIF: a current of shape \(3, 2\) for a carry of \(1, 2\)"):
        neuron(neuron.initialize_carry(1), jnp.ones((3, 2)))
