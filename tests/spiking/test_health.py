"""The health report against brute force, and its forecasts against hand counts and what is really made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.spiking.connections import Conv2D, LinearDense, LinearDirect, LinearLateral
from jaxkit.spiking.forecast import costs
from jaxkit.spiking.health import delay_health
from jaxkit.spiking.synapses import (
    DeltaCurrent,
    DeltaPlusCurrent,
    DoubleExponentialCurrent,
    SingleExponentialCurrent,
)

pytestmark = pytest.mark.level(1)

DELTA = DeltaCurrent(spike_charge=1.0)
SINGLE = SingleExponentialCurrent(spike_charge=1.0, time_constant=3.0)
DOUBLE = DoubleExponentialCurrent(spike_charge=1.0, tc_decay=4.0, tc_rise=1.0)
EXECUTIONS = ("gather", "grouped", "future", "convolution")


def draw(connection, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=connection.weight_shape)
    weight[rng.random(weight.shape) < 0.2] = 0
    delay = rng.uniform(-0.7, connection.delay + 0.7, connection.delay_shape)
    return {"weight": jnp.asarray(weight, jnp.float32), "delay": jnp.asarray(delay, jnp.float32)}


@pytest.mark.parametrize("out_of_range", ["silent", "clamp"])
def test_delays_are_counted_as_a_loop_over_them_does(out_of_range):
    connection = LinearDense(9, 8, 0.5, synapse=DELTA, delay=2.2, out_of_range=out_of_range)
    params = draw(connection)
    health = delay_health(connection, params)
    histogram, dead, moved = [0] * 6, 0, 0.0
    for weight, delay in zip(np.ravel(params["weight"]), np.ravel(params["delay"]).tolist(), strict=True):
        # read at the step after; 2.2 ms, and what is beyond it, at 2.5 ms
        step = int(np.ceil(min(max(delay, 0), 2.2) / 0.5))
        histogram[step] += 1
        inside = 0 <= delay <= 2.2
        moved = max(moved, step * 0.5 - delay) if inside else moved
        dead += weight == 0 or (out_of_range == "silent" and not inside)
    assert health.histogram.tolist() == histogram
    assert health.below == (params["delay"] < 0).sum() > 0
    assert health.above == (params["delay"] > 2.2).sum() > 0
    assert health.dead == dead
    # float32 rounding of delays of up to 2.2 ms
    assert health.rounded == pytest.approx(moved, abs=1e-6)


def test_what_rounds_less_says_so():
    delay = jnp.array([[0.0, 1.25, 2.6]])
    params = {"weight": jnp.ones((1, 3)), "delay": delay}

    def rounded(mode):
        synapse = DeltaPlusCurrent(spike_charge=1.0, interp_mode=mode)
        return delay_health(LinearDense(3, 1, 1.0, synapse=synapse, delay=3.0), params)

    # float32 rounding
    assert rounded("previous").rounded == pytest.approx(0.75, abs=1e-6)
    assert rounded("nearest").rounded == pytest.approx(0.4, abs=1e-6)
    assert rounded("linear").rounded == pytest.approx(0.0, abs=1e-6)
    assert rounded("previous").histogram.tolist() == [1, 0, 1, 1]
    assert rounded("linear").histogram.tolist() == [1, 1, 0, 1]
    # the window around 0 has no left half
    assert 0.3 < rounded("gaussian").rounded < 0.8


def test_a_diagonal_is_no_synapse():
    connection = LinearLateral(4, 1.0, synapse=DELTA, delay=2.0)
    params = {"weight": jnp.ones((4, 4)), "delay": jnp.ones((4, 4)) + 5 * jnp.eye(4)}
    health = delay_health(connection, params)
    assert health.histogram.tolist() == [0, 12, 0]
    assert (health.dead, health.above) == (0, 0)


@pytest.mark.parametrize(("delay_per", "expected"), [("input", 3), ("output", 2)])
def test_a_shared_delay_that_reads_nothing_silences_all_its_synapses(delay_per, expected):
    connection = LinearDense(2, 3, 1.0, synapse=DELTA, delay=2.0, delay_per=delay_per)
    delay = jnp.ones(connection.delay_shape).at[0].set(-1.0)
    assert delay_health(connection, {"weight": jnp.ones((3, 2)), "delay": delay}).dead == expected


def test_a_convolutions_delays_are_looked_at_too():
    connection = Conv2D(4, 4, 2, 3, 1.0, 2, synapse=DELTA, delay=3.0)
    params = {"weight": jnp.ones((3, 2, 2, 2)), "delay": jnp.full((3, 2, 2, 2), 2.0).at[0, 0, 0].set(-1.0)}
    health = delay_health(connection, params)
    assert health.histogram.tolist() == [2, 0, 22, 0]
    assert (health.below, health.dead) == (2, 2)


def test_a_connection_without_delays_has_no_health():
    with pytest.raises(ValueError, match="no delays to look at"):
        delay_health(LinearDense(2, 2, 1.0, synapse=DELTA, delay=0.0), {"weight": jnp.ones((2, 2))})


KINDS = {
    "dense": lambda **options: LinearDense((2, 3), 5, 1.0, **options),
    "direct": lambda **options: LinearDirect(7, 1.0, **options),
    "lateral": lambda **options: LinearLateral(4, 1.0, **options),
    "convolution": lambda **options: Conv2D(5, 4, 2, 3, 1.0, (2, 3), padding=1, **options),
}
# Batch 2, delays of 0 to 3 steps. Dense, 6 to 5: 60 uses of weights; direct, 7: 14; lateral, 4: 32; 2 channels to 3
# filters of 2 by 3 in 6 by 4 places: 1728, and 80 pixels. Gather multiplies what it reads, then by weights; others
# weigh all 4 steps, direct connections before the weights.
MACS = {
    "dense": {"gather": 2 * 60, "grouped": 4 * 60, "future": 4 * 60, "convolution": 4 * 60},
    "direct": {"gather": 2 * 14, "grouped": 5 * 14, "future": 5 * 14, "convolution": 5 * 14},
    "lateral": {"gather": 2 * 32, "grouped": 4 * 32, "future": 4 * 32, "convolution": 4 * 32},
    "convolution": {"gather": 2 * 1728, "grouped": 4 * 1728, "future": 4 * 1728, "convolution": 4 * 1728},
}
# Elements of a step's own: of gather what it reads; of grouped what was sent in 4 steps and what arrives of each; of
# future what will arrive in 4 steps, and the queue that it is added to; of a convolution what is sent and arrives.
SCRATCH = {
    "dense": {"gather": 60, "grouped": 4 * (12 + 10), "future": 8 * 10, "convolution": 12 + 10},
    "direct": {"gather": 14, "grouped": 4 * (14 + 14), "future": 8 * 14, "convolution": 14 + 14},
    "lateral": {"gather": 32, "grouped": 4 * (8 + 8), "future": 8 * 8, "convolution": 8 + 8},
    "convolution": {"gather": 1728, "grouped": 4 * (80 + 144), "future": 8 * 144, "convolution": 80 + 144},
}


@pytest.mark.parametrize("kind", KINDS)
def test_work_is_forecast_as_counted_by_hand(kind):
    found = costs(KINDS[kind](synapse=DELTA, delay=3.0), batch=2)
    assert {name: cost.macs for name, cost in found.items()} == MACS[kind]
    assert {name: cost.scratch for name, cost in found.items()} == {k: 4 * n for k, n in SCRATCH[kind].items()}


@pytest.mark.parametrize(
    ("delay_per", "expected"),
    [
        # inputs are read first: 12 a step
        ("input", {"gather": 12 + 60, "grouped": 4 * 12 + 60, "future": 4 * 12 + 60, "convolution": 4 * 12 + 60}),
        # products of what was sent are made once, or for every step of the past; then 10 outputs a step are scaled
        ("output", {"gather": 120, "grouped": 4 * 60 + 40, "future": 60 + 40, "convolution": 4 * 60 + 40}),
    ],
)
def test_shared_delays_save_work(delay_per, expected):
    found = costs(KINDS["dense"](synapse=DELTA, delay=3.0, delay_per=delay_per), batch=2)
    assert {name: cost.macs for name, cost in found.items()} == expected


def test_two_exponentials_and_two_steps_cost_twice_and_fewer_steps_cost_less():
    def macs(**options):
        return {name: cost.macs for name, cost in costs(KINDS["dense"](delay=3.0, **options), batch=2).items()}

    assert macs(synapse=DOUBLE) == {"gather": 180, "grouped": 480, "future": 480, "convolution": 480}
    linear = DeltaCurrent(spike_charge=1.0, interp_mode="linear")
    assert macs(synapse=linear) == {"gather": 180, "grouped": 240, "future": 240, "convolution": 240}
    assert macs(synapse=DELTA, delay_steps=(1, 3)) == {"gather": 120, "grouped": 120, "future": 240, "convolution": 120}


@pytest.mark.parametrize("synapse", [DELTA, SINGLE, DOUBLE], ids=lambda synapse: type(synapse).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_state_and_plan_take_the_bytes_that_were_forecast(kind, synapse):
    connection = KINDS[kind](synapse=synapse, delay=3.0, bias=True)
    found = costs(connection, batch=2)
    params = connection.init(jax.random.key(0), method="parameters")["params"]
    for name in EXECUTIONS:
        of = connection.clone(execution=name)
        made = of.initialize_carry(2), jax.jit(of.plan)(params)
        assert tuple(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in made) == found[name][1:3]


def test_what_is_kept_for_the_gradient_is_the_ring_and_all_reads_or_the_input_alone():
    found = costs(KINDS["dense"](synapse=DELTA, delay=3.0), batch=2)
    # bytes of float32: a step's input has 12 numbers, the ring 48, what is read 60, the pointer 1
    assert found["future"].gradient == found["convolution"].gradient == 4 * 12
    assert 4 * 48 <= found["grouped"].gradient <= 4 * (48 + 12 + 1)
    assert 4 * (48 + 60) <= found["gather"].gradient <= 4 * (48 + 60 + 12 + 1)


def test_half_precision_takes_half_the_scratch():
    single, half = (costs(KINDS["dense"](synapse=DELTA, delay=3.0, dtype=t), 2) for t in (jnp.float32, jnp.bfloat16))
    assert all(single[name].scratch == 2 * half[name].scratch for name in EXECUTIONS)


def test_the_report_has_a_line_for_each_execution_that_can_be():
    connection = KINDS["dense"](synapse=DELTA, delay=3.0)
    lines = delay_health(connection, draw(connection), batch=2).lines()
    assert [line.split()[0] for line in lines[-4:]] == list(EXECUTIONS)
    assert [name for name, line in zip(EXECUTIONS, lines[-4:], strict=True) if line.endswith("(used)")] == ["future"]
    assert lines[0].startswith("30 delays")
    smooth = DeltaCurrent(spike_charge=1.0, interp_mode="gaussian")
    assert list(costs(KINDS["dense"](synapse=smooth, delay=3.0), 1)) == list(EXECUTIONS[1:])
