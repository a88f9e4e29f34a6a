"""Connections: what arrives when, whichever way it is computed."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkit.errors import ShapeError
from jaxkit.spiking.connections import Conv2D, LinearDense, LinearDirect, LinearLateral
from jaxkit.spiking.connections.options import check_options
from jaxkit.spiking.synapses import (
    DeltaCurrent,
    DeltaPlusCurrent,
    DoubleExponentialCurrent,
    SingleExponentialCurrent,
)

pytestmark = pytest.mark.level(1)

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
EXECUTIONS = ("gather", "grouped", "future", "convolution")
WEIGHT = jnp.array([[1.0, 2.0], [3.0, 4.0]])
BIAS = jnp.array([0.1, 0.2])
DELAY = jnp.array([[0.0, 0.5], [1.0, 1.75]])
INPUT = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])[:, None]
INJECTED = jnp.array([[0.5, 0.0], [0.0, 0.0], [0.0, 0.25], [0.0, 0.0], [1.0, 0.0]])[:, None]


@pytest.fixture(autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


def run(connection, params, *inputs, carry=None, window=1.0):
    carry = carry or connection.initialize_carry(inputs[0].shape[1])

    def sequence(params, carry, *inputs):
        return connection.apply({"params": params}, carry, *inputs, window=window, method="sequence")

    return jax.jit(sequence, compiler_options=QUICK)(params, carry, *inputs)


def outputs(connection, params, x):
    """As :func:`run`, to be differentiated."""
    return connection.apply({"params": params}, connection.initialize_carry(x.shape[1]), x, method="sequence")[1]


# What inferno-ai 0.0.5 puts out, rounded to 1e-6.
TRACES = {
    "delta": (DeltaCurrent(spike_charge=2.0), 1.0, [[2.1, 0.2], [0.1, 6.2], [6.1, 0.2], [4.1, 14.2], [0.1, 8.2]]),
    "delta, dt 0.5": (
        DeltaCurrent(spike_charge=2.0),
        0.5,
        [[4.1, 0.2], [0.1, 0.2], [12.1, 12.2], [8.1, 0.2], [0.1, 12.2]],
    ),
    "single exponential": (
        SingleExponentialCurrent(spike_charge=2.0, time_constant=2.0),
        1.0,
        [[1.1, 0.2], [0.706531, 3.2], [3.025481, 2.019592], [3.431995, 7.833626], [2.120957, 8.360015]],
    ),
    "double exponential": (
        DoubleExponentialCurrent(spike_charge=2.0, tc_decay=4.0, tc_rise=1.0),
        1.0,
        [[0.1, 0.2], [0.373948, 0.2], [0.782085, 1.021843], [1.642501, 1.57069], [1.870287, 3.482264]],
    ),
}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("trace", TRACES)
def test_a_dense_connection_repeats_the_originals_trace(trace, execution):
    synapse, step_time, expected = TRACES[trace]
    connection = LinearDense(2, 2, step_time, synapse=synapse, bias=True, delay=2.0, execution=execution)
    _, y = run(connection, {"weight": WEIGHT, "bias": BIAS, "delay": DELAY}, INPUT)
    # the trace has six decimals
    np.testing.assert_allclose(y[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_injected_currents_are_delayed_as_spikes_are(execution):
    synapse = DeltaPlusCurrent(spike_charge=2.0)
    connection = LinearDense(2, 2, 1.0, synapse=synapse, bias=True, delay=2.0, execution=execution)
    _, y = run(connection, {"weight": WEIGHT, "bias": BIAS, "delay": DELAY}, INPUT, INJECTED)
    np.testing.assert_allclose(y[:, 0], [[2.6, 0.2], [0.1, 7.7], [6.1, 0.2], [4.6, 14.2], [1.1, 9.2]], atol=1e-6)


@pytest.mark.parametrize("delay", [None, 0.0])
def test_without_a_maximum_nothing_is_delayed(delay):
    connection = LinearDense(2, 2, 1.0, synapse=DeltaCurrent(spike_charge=2.0), bias=True, delay=delay)
    params = {"weight": WEIGHT, "bias": BIAS} | ({} if delay is None else {"delay": DELAY})
    _, y = run(connection, params, INPUT)
    np.testing.assert_allclose(y[:, 0], [[2.1, 6.2], [4.1, 8.2], [6.1, 14.2], [0.1, 0.2], [0.1, 0.2]], atol=1e-6)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_direct_and_lateral_connections_repeat_the_originals_traces(execution):
    options = {"synapse": DeltaCurrent(spike_charge=2.0), "bias": True, "delay": 2.0, "execution": execution}
    direct = {"weight": jnp.array([1.0, 3.0]), "bias": BIAS, "delay": jnp.array([0.5, 2.0])}
    _, y = run(LinearDirect(2, 1.0, **options), direct, INPUT)
    np.testing.assert_allclose(y[:, 0], [[0.1, 0.2], [2.1, 0.2], [0.1, 0.2], [2.1, 6.2], [0.1, 6.2]], atol=1e-6)
    # the diagonals of weights and delays are there, and do nothing
    _, y = run(LinearLateral(2, 1.0, **options), {"weight": WEIGHT, "bias": BIAS, "delay": DELAY}, INPUT)
    np.testing.assert_allclose(y[:, 0], [[0.1, 0.2], [0.1, 6.2], [4.1, 0.2], [4.1, 6.2], [0.1, 0.2]], atol=1e-6)


FRACTIONAL = {"weight": jnp.array([[1.0, 10.0]] * 2), "delay": jnp.array([[0.25, 0.75], [1.5, 1.25]])}
PULSES = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])[:, None]
READS = {
    "previous": (DeltaCurrent(spike_charge=1.0), [[0, 0], [1, 0], [10, 1], [0, 10]]),
    "nearest": (DeltaCurrent(spike_charge=1.0, interp_mode="nearest"), [[1, 0], [0, 0], [10, 11], [0, 0]]),
    "tolerance": (DeltaCurrent(spike_charge=1.0, interp_tol=0.3), [[1, 0], [0, 0], [10, 11], [0, 0]]),
    # by hand: parts 1 - f and f of a pulse, at the steps before and after
    "linear": (
        DeltaCurrent(spike_charge=1.0, interp_mode="linear"),
        [[0.75, 0], [0.25 + 2.5, 0.5], [7.5, 0.5 + 7.5], [0, 2.5]],
    ),
    "expdecay": (
        SingleExponentialCurrent(spike_charge=1.0, time_constant=2.0),
        [[0, 0], [0.343645, 0], [4.620916, 0.3894], [2.802727, 3.67263]],
    ),
}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("mode", READS)
def test_delays_between_steps_read_what_the_interpolation_says(mode, execution):
    synapse, expected = READS[mode]
    # a maximum of two and a half steps: the last of four slots is never read whole
    connection = LinearDense(2, 2, 1.0, synapse=synapse, delay=2.5 if mode == "linear" else 1.5, execution=execution)
    _, y = run(connection, FRACTIONAL, PULSES)
    np.testing.assert_allclose(y[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("step_time", [0.1, 0.25, 0.3, 1.0])
def test_a_delay_of_k_steps_is_the_input_k_steps_later(step_time, execution):
    steps = jnp.arange(12)
    connection = LinearDense(
        1, 12, step_time, synapse=DeltaCurrent(spike_charge=step_time), delay=step_time * 11.5, execution=execution
    )
    pulse = jnp.zeros((15, 1, 1)).at[2].set(1.0)
    delay = jnp.float32(step_time) * steps
    _, y = run(connection, {"weight": jnp.ones((12, 1)), "delay": delay[:, None]}, pulse)
    np.testing.assert_array_equal(jnp.argmax(y[:, 0], 0), 2 + steps)
    np.testing.assert_array_equal(y.sum((0, 1)), jnp.ones(12))


def drawn(seed, kind, mode, delay_per, execution, bias=True):
    """A connection, its parameters, and 9 steps of input for 3 samples."""
    keys = jax.random.split(jax.random.key(seed), 4)
    exponential = SingleExponentialCurrent(spike_charge=1.0, time_constant=3.0, current_overbound=0.5)
    double = DoubleExponentialCurrent(spike_charge=1.0, tc_decay=4.0, tc_rise=1.0)
    synapse = {"expdecay": exponential, "double": double}.get(mode) or DeltaCurrent(spike_charge=1.0, interp_mode=mode)
    options = {"synapse": synapse, "bias": bias, "delay": 3.7, "execution": execution, "delay_per": delay_per}
    connection = {
        "dense": lambda: LinearDense((2, 2), 3, 1.0, **options),
        "lateral": lambda: LinearLateral(4, 1.0, **options),
        "direct": lambda: LinearDirect((2, 2), 1.0, **options),
        "conv": lambda: Conv2D(5, 4, 2, 3, 1.0, (3, 2), stride=2, padding=1, **options),
    }[kind]()
    params = {
        "weight": jax.random.normal(keys[0], connection.weight_shape),
        "delay": jax.random.uniform(keys[1], connection.delay_shape, minval=-0.5, maxval=4.5),
    }
    if bias:
        params["bias"] = jax.random.normal(keys[2], connection.bias_shape)
    x = (jax.random.uniform(keys[3], (9, 3, *connection.inshape)) < 0.4).astype(jnp.float32)
    return connection, params, x


CASES = st.tuples(
    st.integers(0, 99),
    st.sampled_from(["dense", "lateral", "direct", "conv"]),
    st.sampled_from(["previous", "nearest", "linear", "expdecay", "double", "gaussian", "triangle"]),
    st.sampled_from(["synapse", "input", "output"]),
)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(CASES, st.sampled_from(EXECUTIONS), st.integers(1, 8))
def test_stepwise_chunked_whole_and_batched_are_the_same_for_every_execution(case, execution, cut):
    windowed = case[2] in ("gaussian", "triangle")
    reference = drawn(*case, "grouped" if windowed else "gather")[0]
    connection, params, x = drawn(*case, "grouped" if windowed and execution == "gather" else execution)
    _, expected = run(reference, params, x)
    # sums of some tens of products, in another order
    close = {"rtol": 1e-5, "atol": 1e-5}

    carry, whole = run(connection, params, x)
    np.testing.assert_allclose(whole, expected, **close)

    step = jax.jit(lambda params, carry, x: connection.apply({"params": params}, carry, x), compiler_options=QUICK)
    first, one_by_one = connection.initialize_carry(3), []
    for t in range(cut):
        first, y = step(params, first, x[t])
        one_by_one.append(y)
    end, rest = run(connection, params, x[cut:], carry=first)
    np.testing.assert_allclose(jnp.concatenate([jnp.stack(one_by_one), rest]), expected, **close)
    # the same state, whatever slot is the newest
    rings = [connection_ring(found) for found in (carry, end)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), *rings)

    _, single = run(connection, params, x[:, 1:2])
    np.testing.assert_allclose(single[:, 0], expected[:, 1], **close)


def connection_ring(carry):
    r = len(carry.history.rings["spike"])
    order = (carry.history.newest - jnp.arange(r)) % r
    return {name: ring[order] for name, ring in carry.history.rings.items()}, carry.arrivals


@pytest.mark.parametrize("kind", ["dense", "lateral", "direct", "conv"])
@pytest.mark.parametrize("mode", ["linear", "expdecay"])
def test_every_execution_has_the_same_gradient_of_weights_delays_and_input(kind, mode):
    # between steps and within range, where the derivative by the delay is there
    def gradients(execution):
        connection, params, x = drawn(1, kind, mode, "synapse", execution)
        params["delay"] = jnp.clip(params["delay"], 0.1, 3.4)

        def loss(params, x):
            return jnp.sin(outputs(connection, params, x)).sum()

        return jax.jit(jax.grad(loss, (0, 1)), compiler_options=QUICK)(params, x)

    expected = gradients("gather")
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected))
    for execution in EXECUTIONS[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients(execution), expected
        )


def test_the_gradient_by_a_delay_is_the_slope_of_the_interpolation():
    connection = LinearDense(1, 1, 1.0, synapse=DeltaCurrent(spike_charge=1.0, interp_mode="linear"), delay=4.0)
    x = jnp.zeros((6, 1, 1)).at[1].set(1.0)

    def arrived(delay, at):
        return outputs(connection, {"weight": jnp.full((1, 1), 2.0), "delay": delay[None, None]}, x)[at, 0, 0]

    # a pulse sent at step 1 with a delay of 2.25 steps: 2 (1 - 0.25) at step 3, 2 0.25 at step 4
    assert arrived(jnp.float32(2.25), 3) == 1.5
    assert jax.grad(arrived)(jnp.float32(2.25), 3) == -2.0
    assert jax.grad(arrived)(jnp.float32(2.25), 4) == 2.0


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("out_of_range", ["silent", "clamp", "project"])
def test_a_delay_of_whole_steps_has_a_slope_too_and_so_have_the_ends_of_the_range(execution, out_of_range):
    synapse = DeltaCurrent(spike_charge=1.0, interp_mode="linear")
    options = {"delay": 3.0, "execution": execution, "out_of_range": out_of_range}
    connection = LinearDense(1, 1, 1.0, synapse=synapse, **options)
    x = jnp.zeros((8, 1, 1)).at[0].set(1.0)
    weighted = 2.0 ** jnp.arange(8)[:, None, None]

    def value(delay):
        return (weighted * outputs(connection, {"weight": jnp.ones((1, 1)), "delay": delay[None, None]}, x)).sum()

    # towards the older step 2^(k+1) - 2^k; at the longest delay, from the newer one
    slopes = [jax.grad(value)(jnp.float32(delay)) for delay in (0.0, 1.0, 2.0, 3.0)]
    np.testing.assert_allclose(slopes, [1.0, 2.0, 4.0, 4.0], rtol=1e-6)
    assert jax.grad(value)(jnp.float32(3.5)) == jax.grad(value)(jnp.float32(-0.5)) == 0


def test_a_window_has_its_whole_slope_at_the_ends_of_the_range():
    synapse = DeltaCurrent(spike_charge=1.0, interp_mode="gaussian")
    x = jnp.zeros((8, 1, 1)).at[0].set(1.0)
    weighted = 2.0 ** jnp.arange(8)[:, None, None]
    for out_of_range in ("silent", "clamp", "project"):
        connection = LinearDense(1, 1, 1.0, synapse=synapse, delay=4.0, out_of_range=out_of_range)

        def value(delay, connection=connection):
            return (weighted * outputs(connection, {"weight": jnp.ones((1, 1)), "delay": delay[None, None]}, x)).sum()

        for end, near in ((0.0, 1e-3), (4.0, 4.0 - 1e-3)):
            # a thousandth of a step apart
            np.testing.assert_allclose(jax.grad(value)(jnp.float32(end)), jax.grad(value)(jnp.float32(near)), rtol=1e-2)


def test_auto_takes_whole_sequences_at_once_with_the_same_carry_and_outcome():
    connection, params, x = drawn(5, "dense", "linear", "synapse", "auto")
    stepwise, _, _ = drawn(5, "dense", "linear", "synapse", "future")
    x = jnp.concatenate([x, x, x])
    assert connection.executed == "future"
    first, y = run(connection, params, x)
    other, expected = run(stepwise, params, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), first, other)
    _, again = run(connection, params, x, carry=other)
    _, expected = run(stepwise, params, x, carry=first)
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)


def test_slow_currents_decay_in_bfloat16_too():
    synapse = SingleExponentialCurrent(spike_charge=1000.0, time_constant=1000.0)
    connection = LinearDense(1, 1, 1.0, synapse=synapse, dtype=jnp.bfloat16)
    x = jnp.zeros((2000, 1, 1), jnp.bfloat16).at[0].set(1)
    _, y = run(connection, {"weight": jnp.ones((1, 1))}, x)
    # exp(-1.999), with the 8 bits of a bfloat16
    np.testing.assert_allclose(float(y[-1, 0, 0]), np.exp(-1.999), rtol=2**-7)


def test_a_straight_through_delay_reads_as_the_original_and_moves_as_its_relaxation():
    options = {"delay": 4.0, "execution": "grouped"}
    synapse, soft = (DeltaCurrent(spike_charge=1.0, interp_mode=mode) for mode in ("previous", "linear"))
    hard = LinearDense(3, 2, 1.0, synapse=synapse, **options)
    straight = LinearDense(3, 2, 1.0, synapse=synapse, relaxed_delay="linear", **options)
    relaxed = LinearDense(3, 2, 1.0, synapse=soft, **options)
    params = {"weight": jnp.ones((2, 3)), "delay": jax.random.uniform(jax.random.key(0), (2, 3), maxval=4.0)}
    x = (jax.random.uniform(jax.random.key(1), (8, 1, 3)) < 0.5).astype(jnp.float32)
    weighted = jnp.arange(16.0).reshape(8, 1, 2)

    def slope(connection):
        return jax.grad(lambda params: (weighted * outputs(connection, params, x)).sum())(params)

    np.testing.assert_array_equal(run(straight, params, x)[1], run(hard, params, x)[1])
    assert not slope(hard)["delay"].any()
    np.testing.assert_allclose(slope(straight)["delay"], slope(relaxed)["delay"], rtol=1e-5)
    np.testing.assert_allclose(slope(straight)["weight"], slope(hard)["weight"], rtol=1e-5)


def test_a_narrow_gaussian_is_the_nearest_step_and_a_wide_one_has_its_width():
    options = {"delay": 8.0, "execution": "future"}
    connection = LinearDense(1, 1, 1.0, synapse=DeltaCurrent(spike_charge=1.0, interp_mode="gaussian"), **options)
    x = jnp.zeros((9, 1, 1)).at[0].set(1.0)
    params = {"weight": jnp.ones((1, 1)), "delay": jnp.full((1, 1), 3.8)}
    _, narrow = run(connection, params, x, window=jnp.float32(0.05))
    np.testing.assert_allclose(narrow[:, 0, 0], jnp.eye(9)[4], atol=1e-6)
    params["delay"] = jnp.full((1, 1), 4.0)
    _, wide = run(connection, params, x, window=jnp.float32(1.0))
    k = np.arange(9)
    expected = np.exp(-((k - 4) ** 2) / 2)
    np.testing.assert_allclose(wide[:, 0, 0], expected / expected.sum(), rtol=1e-5)


def test_a_lateral_connection_never_reaches_itself():
    connection = LinearLateral(3, 1.0, synapse=DeltaCurrent(spike_charge=1.0), delay=2.0)
    params = {"weight": jnp.ones((3, 3)), "delay": jnp.ones((3, 3))}
    x = jnp.eye(3)[None].repeat(4, 0)
    _, y = run(connection, params, x)
    assert not jnp.diagonal(y, axis1=1, axis2=2).any()
    slope = jax.grad(lambda params: outputs(connection, params, x).sum())(params)["weight"]
    np.testing.assert_array_equal(jnp.diagonal(slope), jnp.zeros(3))
    projected = connection.project(params)
    np.testing.assert_array_equal(projected["weight"], 1 - jnp.eye(3))
    np.testing.assert_array_equal(projected["delay"], 1 - jnp.eye(3))


@pytest.mark.parametrize(("choice", "expected"), [("silent", [0, 0]), ("clamp", [1, 1]), ("project", [1, 1])])
def test_delays_out_of_range_are_silent_clamped_or_projected(choice, expected):
    connection = LinearDense(1, 2, 1.0, synapse=DeltaCurrent(spike_charge=1.0), delay=2.0, out_of_range=choice)
    params = {"weight": jnp.ones((2, 1)), "delay": jnp.array([[-0.5], [2.5]])}
    _, y = run(connection, params, jnp.zeros((4, 1, 1)).at[0].set(1.0))
    # below 0 arrives at once, above the longest after two steps
    np.testing.assert_array_equal([y[0, 0, 0], y[2, 0, 1]], expected)
    projected = connection.project(params)["delay"]
    np.testing.assert_array_equal(projected, [[0.0], [2.0]] if choice == "project" else params["delay"])


@pytest.mark.parametrize("execution", ["grouped", "convolution"])
def test_naming_the_delays_there_are_changes_nothing_and_others_become_not_a_number(execution):
    synapse, options = DeltaCurrent(spike_charge=1.0), {"delay": 9.0, "execution": execution}
    params = {"weight": jnp.ones((2, 2)), "delay": jnp.array([[0.0, 7.0], [7.0, 3.0]])}
    x = (jax.random.uniform(jax.random.key(0), (12, 2, 2)) < 0.5).astype(jnp.float32)
    _, expected = run(LinearDense(2, 2, 1.0, synapse=synapse, **options), params, x)
    _, y = run(LinearDense(2, 2, 1.0, synapse=synapse, delay_steps=(0, 3, 7), **options), params, x)
    np.testing.assert_array_equal(y, expected)
    _, y = run(LinearDense(2, 2, 1.0, synapse=synapse, delay_steps=(0, 7), **options), params, x)
    np.testing.assert_array_equal(y[..., 0], expected[..., 0])
    assert jnp.isnan(y[..., 1]).all()


@pytest.mark.parametrize("options", [{}, {"plastic": True}, {"delay_per": "input"}])
def test_auto_looks_at_the_delays_that_are_named(options):
    synapse = DeltaCurrent(spike_charge=1.0)
    connection = LinearDense(2, 2, 1.0, synapse=synapse, delay=9.0, delay_steps=(0, 7), **options)
    assert connection.executed == "grouped"


def test_graded_input_counts_as_a_whole_spike_but_in_delta_plus():
    x = jnp.array([[[0.3, -2.0]]])
    params = {"weight": jnp.ones((1, 2))}
    _, whole = run(LinearDense(2, 1, 1.0, synapse=DeltaCurrent(spike_charge=1.0)), params, x)
    _, graded = run(LinearDense(2, 1, 1.0, synapse=DeltaPlusCurrent(spike_charge=1.0)), params, x)
    assert whole[0, 0, 0] == 2.0
    np.testing.assert_allclose(graded[0, 0, 0], -1.7, rtol=1e-6)


def test_bfloat16_connections_take_their_steps_in_float32():
    # 35 steps of 0.3 ms: 10.5 ms is no bfloat16 multiple of 0.3
    connection = LinearDense(
        1, 1, 0.3, synapse=DeltaCurrent(spike_charge=0.3), delay=12.0, dtype=jnp.bfloat16, execution="gather"
    )
    x = jnp.zeros((40, 1, 1), jnp.bfloat16).at[0].set(1)
    _, y = run(connection, {"weight": jnp.ones((1, 1)), "delay": jnp.full((1, 1), jnp.float32(0.3) * 35)}, x)
    assert y.dtype == jnp.bfloat16
    assert jnp.argmax(y[:, 0, 0]) == 35


def test_a_carry_can_be_vmapped_over_seeds_of_parameters():
    connection, params, x = drawn(0, "dense", "linear", "synapse", "future")
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), {"weight": params["weight"]})

    doubled = jax.vmap(lambda weight: outputs(connection, params | weight, x))(many)
    np.testing.assert_allclose(doubled[1] - params["bias"], 2 * (doubled[0] - params["bias"]), atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DeltaCurrent(spike_charge=0.0), "spike_charge is 0"),
        (lambda: DeltaCurrent(spike_charge=1.0, interp_tol=-1.0), "interp_tol is -1.0 ms"),
        (
            lambda: DeltaCurrent(spike_charge=1.0, interp_mode="expdecay"),
            "interp_mode is .expdecay.; it can be previous, nearest",
        ),
        (lambda: SingleExponentialCurrent(spike_charge=1.0, time_constant=0.0), "must be positive"),
        (lambda: DoubleExponentialCurrent(spike_charge=1.0, tc_decay=1.0, tc_rise=2.0), "0 < tc_rise < tc_decay"),
    ],
)
def test_a_synapse_that_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_inputs_that_do_not_fit_are_refused():
    connection = LinearDense(2, 2, 1.0, synapse=DeltaCurrent(spike_charge=1.0))
    with pytest.raises(ValueError, match=r"input \(1, 3\) is not \[b, 2\]"):
        connection.apply({"params": {"weight": WEIGHT}}, connection.initialize_carry(1), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="takes spikes alone"):
        connection.apply({"params": {"weight": WEIGHT}}, connection.initialize_carry(1), *[jnp.ones((1, 2))] * 2)
    gather = LinearDense(
        2, 2, 1.0, synapse=DeltaCurrent(spike_charge=1.0, interp_mode="gaussian"), delay=2.0, execution="gather"
    )
    with pytest.raises(ValueError, match="reads a step or two"):
        gather.initialize_carry(1)
    with pytest.raises(ValueError, match=r"name some of 0 to 2"):
        LinearDense(2, 2, 1.0, synapse=DeltaCurrent(spike_charge=1.0), delay=2.0, delay_steps=(5,)).ago  # noqa: B018


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution": "futre"}, "execution is 'futre'; it can be 'auto', 'gather'"),
        ({"out_of_range": "clip"}, "out_of_range is 'clip'"),
        ({"delay_per": "synapses"}, "delay_per is 'synapses'"),
        ({"relaxed_delay": "lin"}, "relaxed_delay is 'lin'"),
        ({"synapse": DeltaCurrent}, "give a synapse"),
        ({"delay": -1.0}, "the longest, is -1.0 ms"),
        ({"delay": float("nan")}, "the longest, is nan ms"),
        ({"step_time": 0.0}, "step_time is 0.0 ms"),
        ({"execution": "gather", "delay_steps": (0, 1)}, "delay_steps are for"),
    ],
)
def test_a_connection_that_makes_no_sense_is_refused(options, message):
    made = LinearDense(2, 2, 1.0, synapse=DeltaCurrent(spike_charge=1.0), delay=2.0)
    # not a connection, whose types are checked in tests before its values
    told = SimpleNamespace(**{name: getattr(made, name) for name in made.__dataclass_fields__} | options)
    with pytest.raises(ValueError, match=message):
        check_options(told)


@pytest.mark.parametrize(("made", "used"), [("future", "gather"), ("gather", "future"), ("grouped", "future")])
def test_a_carry_of_another_execution_is_refused(made, used):
    def connection(execution):
        return LinearDense(2, 2, 1.0, synapse=DeltaCurrent(spike_charge=1.0), delay=2.0, execution=execution)

    params = {"weight": WEIGHT, "delay": DELAY}
    with pytest.raises(ShapeError, match="the carry is not one of execution"):
        connection(used).apply({"params": params}, connection(made).initialize_carry(1), jnp.ones((1, 2)))


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_batch_of_another_size_than_the_carrys_is_refused(execution):
    connection = LinearDense(2, 2, 1.0, synapse=DeltaCurrent(spike_charge=1.0), delay=2.0, execution=execution)
    with pytest.raises(ShapeError, match="for a carry of 2 samples"):
        connection.apply(
            {"params": {"weight": WEIGHT, "delay": DELAY}}, connection.initialize_carry(2), jnp.ones((1, 2))
        )


def test_a_connection_scans_with_linen_too():
    connection, params, x = drawn(3, "dense", "linear", "synapse", "future")
    scanned = nn.scan(LinearDense, variable_broadcast="params", split_rngs={"params": False})
    fields = {
        name: getattr(connection, name) for name in connection.__dataclass_fields__ if name not in ("parent", "name")
    }
    carry = connection.initialize_carry(3)
    end, y = scanned(**fields).apply({"params": params}, carry, x)
    expected_end, expected = run(connection, params, x)
    # sums in another order
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), end, expected_end)
