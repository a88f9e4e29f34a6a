"""What learning rules do, with and without delays, on one device and many."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.spiking import plasticity
from jaxkit.spiking.connections import Conv2D, LinearDense, LinearLateral
from jaxkit.spiking.synapses import DeltaCurrent

PAIR = {"lr_post": 0.1, "lr_pre": -0.2, "tc_post": 10.0, "tc_pre": 20.0}
LAST = {"lr_pos": 0.1, "lr_neg": -0.2, "tc_pos": 10.0, "tc_neg": 20.0}
TRIPLET = {"lr_post_pair": 0.1, "lr_post_triplet": 0.05, "lr_pre_pair": -0.2, "lr_pre_triplet": 0.1}
TRIPLET |= {"tc_post_fast": 10.0, "tc_post_slow": 30.0, "tc_pre_fast": 20.0, "tc_pre_slow": 40.0}

HOMEOSTASIS_OF_BIAS = plasticity.LinearHomeostasis(plasticity=0.1, target=0.1, param="bias")

# Inferno 0.0.5 on a dense connection of 2 inputs and 1 output: what is added and what is taken away at each step.
SENT = [[1, 0], [0, 0], [0, 1], [1, 1], [0, 0]]
NONE = ([0, 0], [0, 0])
AT_ONCE = [1, 0, 0, 1, 0]
LATER = [0, 1, 0, 0, 1]
RECORDED = {
    "STDP": (
        plasticity.STDP(**PAIR), None, AT_ONCE, (),
        [([0.1, 0], [0.2, 0]), NONE, ([0, 0], [0, 0.163746]), ([0.186071, 0.195123], [0.348164, 0.348164]), NONE],
    ),
    "STDP of past spikes": (
        plasticity.STDP(**PAIR, delayed=True), [[1.0, 0.5]], LATER, (),
        [NONE, ([0.1, 0], [0.2, 0]), NONE, ([0, 0], [0, 0.163746]), ([0.186071, 0.190305], [0.348164, 0.348164])],
    ),
    "STDP of arrived spikes": (
        plasticity.STDP(**PAIR), [[1.0, 0.5]], LATER, (),
        [NONE, ([0.1, 0], [0.2, 0]), NONE, ([0, 0], [0, 0.163746]), ([0.186071, 0.195123], [0.348164, 0.348164])],
    ),
    "DelayAdjustedSTDP": (
        plasticity.DelayAdjustedSTDP(**LAST), [[1.0, 0.5]], LATER, (),
        [NONE, ([0.1, 0], [0, 0]), ([0.1, 0], [0, 0.185549]), ([0, 0], [0.172142, 0.176499]),
         ([0.1, 0.095123], [0, 0])],
    ),
    "DelayAdjustedSTDPD": (
        plasticity.DelayAdjustedSTDPD(lr_neg=-0.1, lr_pos=0.2, tc_neg=10.0, tc_pos=20.0), [[1.0, 0.5]], LATER, (),
        [NONE, ([0, 0], [0.1, 0]), ([0, 0.185549], [0.1, 0]), ([0.172142, 0.176499], [0, 0]),
         ([0, 0], [0.1, 0.095123])],
    ),
    "MSTDP": (
        plasticity.MSTDP(**PAIR), None, AT_ONCE, (-1.0,),
        [([0.2, 0], [0.1, 0]), NONE, ([0, 0.163746], [0, 0]), ([0.348164, 0.348164], [0.186071, 0.195123]), NONE],
    ),
    "MSTDPET": (
        plasticity.MSTDPET(**PAIR, tc_eligibility=5.0), None, AT_ONCE, (1.0,),
        [([0.02, 0], [0.04, 0]), ([0.016375, 0], [0.032749, 0]), ([0.013406, 0], [0.026813, 0.032749]),
         ([0.04819, 0.039025], [0.091585, 0.096446]), ([0.039455, 0.031951], [0.074984, 0.078963])],
    ),
    "TripletSTDP": (
        plasticity.TripletSTDP(**TRIPLET), None, AT_ONCE, (),
        [([0.1, 0], [0.2, 0]), NONE, ([0, 0], [0, 0.163746]), ([0.273106, 0.286392], [0.513755, 0.522246]), NONE],
    ),
}  # fmt: skip


def dense(inputs=4, outputs=3, delay=None, **options):
    synapse = DeltaCurrent(spike_charge=1.0)
    return LinearDense(inputs, outputs, 1.0, synapse=synapse, delay=delay, plastic=True, **options)


def parameters(connection, delay=None):
    params = {"weight": jnp.ones(connection.weight_shape)}
    return params if delay is None else params | {"delay": jnp.asarray(delay, jnp.float32)}


def learn(rule, connection, params, sent, fired, *signals):
    """The updates ``{name: (pos, neg)}``, ``[t ...]``, of spikes ``[t b ...]`` before and after the connection."""
    plan = connection.plan(params)

    def step(carry, given):
        state, mine = carry
        x, post, *told = given
        state, _ = connection.step(plan, state, x)
        mine, updates = rule(mine, connection, plan, state, post, *told)
        return (state, mine), updates

    batch = sent.shape[1]
    start = connection.initialize_carry(batch), rule.initialize_carry(connection, batch)
    return jax.lax.scan(step, start, (sent, fired, *signals))[1]


def random_spikes(connection, steps=60, batch=3, seed=0):
    draw = np.random.default_rng(seed)
    shapes = connection.inshape, connection.outshape
    return [jnp.asarray(draw.random((steps, batch, *shape)) < 0.2, jnp.float32) for shape in shapes]


@pytest.mark.parametrize("name", RECORDED)
def test_updates_are_the_recorded_ones_of_inferno(name):
    rule, delay, fired, signal, expected = RECORDED[name]
    connection = dense(2, 1, None if delay is None else 2.0)
    sent, fired = jnp.asarray(SENT, jnp.float32)[:, None], jnp.asarray(fired, jnp.float32)[:, None, None]
    signals = [jnp.full(len(SENT), value) for value in signal]
    found = learn(rule, connection, parameters(connection, delay), sent, fired, *signals)[rule.param]
    for side, values in enumerate(zip(*expected, strict=True)):
        # recorded to six digits
        np.testing.assert_allclose(found[side][:, 0], np.asarray(values), rtol=0, atol=6e-7)


def test_triplets_alone_have_a_sign_of_their_own():
    rates = {"lr_post_pair": 0.0, "lr_post_triplet": 0.05, "lr_pre_pair": 0.0, "lr_pre_triplet": -0.1}
    connection = dense(2, 1)
    given = [jnp.ones((3, 1, size)) for size in (2, 1)]
    pos, neg = learn(plasticity.TripletSTDP(**TRIPLET | rates), connection, parameters(connection), *given)["weight"]
    # slow traces are of the step before the first
    assert not pos[0].any()
    assert not neg[0].any()
    assert (pos[1:] > 0).all()
    assert (neg[1:] > 0).all()


def interpolated(trace, at: float, time_constant: float) -> float:
    """A trace ``[t]`` between its samples, 0 before the first."""
    whole = math.floor(at)
    return trace[whole] * math.exp(-(at - whole) / time_constant) if whole >= 0 else 0.0


def triplets_by_hand(sent, fired, delay):
    """Pfister and Gerstner's rule in float64, spike by spike: added and taken away ``[t o i]``, the mean of a batch."""
    steps, batch, inputs = sent.shape
    changes = np.zeros((2, steps, fired.shape[2], inputs))
    for b in range(batch):
        traces = {}
        for side, spikes, fast, slow in (("pre", sent, 20.0, 40.0), ("post", fired, 10.0, 30.0)):
            for speed, tc in (("fast", fast), ("slow", slow)):
                trace = np.zeros(spikes.shape[::2])
                for t in range(steps):
                    trace[t] = (trace[t - 1] * math.exp(-1 / tc) if t else 0) + spikes[t, b]
                traces[side, speed] = trace.T
        for t, o, i in np.ndindex(steps, fired.shape[2], inputs):
            sample = math.floor(arrival := t - delay[o, i])
            if fired[t, b, o]:
                slow = traces["post", "slow"][o, t - 1] if t else 0
                pre = interpolated(traces["pre", "fast"][i], arrival, 20.0)
                changes[0, t, o, i] += pre * (0.1 + 0.05 * slow) / batch
            if sample >= 0 and sent[sample, b, i]:
                slow = interpolated(traces["pre", "slow"][i], arrival - 1, 40.0)
                changes[1, t, o, i] += traces["post", "fast"][o, t] * (0.2 + 0.1 * slow) / batch
    return changes


def test_triplets_read_the_past_through_delays():
    connection = dense(delay=3.0)
    delay = np.random.default_rng(1).integers(0, 13, connection.delay_shape) / 4
    sent, fired = random_spikes(connection)
    rule = plasticity.TripletSTDP(**TRIPLET, delayed=True)
    found = learn(rule, connection, parameters(connection, delay), sent, fired)["weight"]
    expected = triplets_by_hand(np.asarray(sent), np.asarray(fired), delay)
    # float32 sums of traces up to 5
    np.testing.assert_allclose(np.stack(found), expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize(("param", "sign"), [("weight", 1), ("bias", 1), ("delay", -1)])
@pytest.mark.parametrize("silent", [True, False])
def test_homeostasis_strengthens_silent_neurons_and_weakens_busy_ones(param, sign, silent):
    connection = dense(delay=2.0, bias=True)
    params = parameters(connection, jnp.zeros(connection.delay_shape)) | {"bias": jnp.zeros(3)}
    fired = jnp.full((4, 2, 3), 0.0 if silent else 1.0)
    rule = plasticity.LinearHomeostasis(plasticity=0.5, target=0.25, param=param)
    found = learn(rule, connection, params, jnp.zeros((4, 2, 4)), fired)[param]
    change = plasticity.Updater()(params, {param: tuple(part[-1] for part in found)})[param] - params[param]
    np.testing.assert_allclose(change, np.full(change.shape, sign * 0.5 * (1.0 if silent else -3.0)), rtol=1e-6)


RULES_OF_BATCHES = {
    "mean": (plasticity.STDP(**PAIR, axis_name="devices"), False),
    "sum, rewarded": (plasticity.MSTDP(**PAIR, axis_name="devices"), True),
    "largest": (plasticity.STDP(**PAIR, batch_reduction=jnp.max, axis_name="devices"), False),
    "mean of last pairs": (plasticity.DelayAdjustedSTDP(**LAST, axis_name="devices"), False),
}


@pytest.mark.parametrize("name", RULES_OF_BATCHES)
def test_eight_devices_find_the_updates_of_one(name):
    rule, rewarded = RULES_OF_BATCHES[name]
    connection = dense(delay=2.0)
    params = parameters(connection, np.random.default_rng(2).integers(0, 9, connection.delay_shape) / 4)
    given = random_spikes(connection, steps=20, batch=16)
    if rewarded:
        given.append(jnp.asarray(np.random.default_rng(3).normal(size=(20, 16)), jnp.float32))
    shards = [x.reshape(20, 8, 2, *x.shape[2:]).swapaxes(0, 1) for x in given]
    many = jax.pmap(lambda *shard: learn(rule, connection, params, *shard), axis_name="devices")(*shards)
    one = jax.vmap(lambda *whole: learn(rule, connection, params, *whole), axis_name="devices")(
        *(x[None] for x in given)
    )
    for here, there in zip(many["weight"], one["weight"], strict=True):
        assert np.abs(there).max() > 0
        # another order of summation
        np.testing.assert_allclose(here, np.broadcast_to(there, here.shape), rtol=0, atol=1e-6)


def test_a_compiled_scan_finds_what_single_steps_do():
    connection = dense(delay=2.0)
    params = parameters(connection, np.random.default_rng(2).integers(0, 9, connection.delay_shape) / 4)
    sent, fired = random_spikes(connection, steps=5)
    rule = plasticity.STDP(**PAIR, delayed=True)
    scanned = learn(rule, connection, params, sent, fired)["weight"]
    plan, state = connection.plan(params), connection.initialize_carry(3)
    carry = rule.initialize_carry(connection, 3)
    for t in range(5):
        state, _ = connection.step(plan, state, sent[t])
        carry, updates = rule(carry, connection, plan, state, fired[t])
        for here, there in zip(updates["weight"], scanned, strict=True):
            # fused or not, in float32
            np.testing.assert_allclose(here, there[t], rtol=0, atol=1e-7)


def shapes_within(jaxpr):
    """The shapes of all that is computed, in calls too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                yield from shapes_within(inner)


@pytest.mark.parametrize(("delay", "products_of_samples"), [(None, False), (2.0, True)])
def test_a_dense_connection_without_delays_needs_no_product_of_each_sample(delay, products_of_samples):
    connection = dense(11, 7, delay)
    params = parameters(connection, None if delay is None else jnp.zeros(connection.delay_shape))
    rule, plan, state = plasticity.STDP(**PAIR), connection.plan(params), connection.initialize_carry(5)
    call = jax.make_jaxpr(lambda carry, post: rule(carry, connection, plan, state, post))
    traced = call(rule.initialize_carry(connection, 5), jnp.zeros((5, 7)))
    assert any(math.prod(shape) >= 5 * 7 * 11 for shape in shapes_within(traced.jaxpr)) == products_of_samples


@pytest.mark.parametrize(("sharing", "axis"), [("input", 0), ("output", 1)])
def test_shared_delays_change_by_the_sum_over_what_shares_them(sharing, axis):
    own, shared = dense(delay=2.0), dense(delay=2.0, delay_per=sharing)
    sent, fired = random_spikes(own)
    rule = plasticity.DelayAdjustedSTDPD(**LAST)
    each = learn(rule, own, parameters(own, jnp.full(own.delay_shape, 0.75)), sent, fired)["delay"]
    together = learn(rule, shared, parameters(shared, jnp.full(shared.delay_shape, 0.75)), sent, fired)["delay"]
    for apart, joint in zip(each, together, strict=True):
        np.testing.assert_allclose(joint, apart.sum(axis + 1), rtol=1e-6)


def test_a_delay_out_of_range_teaches_nothing():
    connection = dense(delay=2.0)
    delay = jnp.full(connection.delay_shape, 1.0).at[1, 2].set(5.0)
    kernels = {"kernel_post": plasticity.exp_stdp_post_kernel, "kernel_pre": plasticity.exp_stdp_pre_kernel}
    how = {"learning_rate": 0.1, "time_constant": 10.0}
    by_kernels = plasticity.KernelSTDP(**kernels, kernel_post_kwargs=how, kernel_pre_kwargs=how, delayed=True)
    for rule in (plasticity.STDP(**PAIR, delayed=True), by_kernels):
        added, taken = learn(rule, connection, parameters(connection, delay), *random_spikes(connection))["weight"]
        learned = np.asarray(added + taken).sum(0) > 0
        assert not learned[1, 2]
        assert learned.sum() == learned.size - 1


def test_a_lateral_connection_learns_nothing_of_itself():
    connection = LinearLateral(4, 1.0, synapse=DeltaCurrent(spike_charge=1.0))
    added, _ = learn(plasticity.STDP(**PAIR), connection, parameters(connection), *random_spikes(connection))["weight"]
    np.testing.assert_array_equal(np.asarray(added).sum(0) > 0, ~np.eye(4, dtype=bool))


def test_a_weight_learns_at_all_its_places_in_an_image():
    connection = Conv2D(3, 3, 1, 1, 1.0, 2, synapse=DeltaCurrent(spike_charge=1.0))
    sent, fired = jnp.ones((1, 1, 1, 3, 3)), jnp.ones((1, 1, 1, 2, 2))
    added, taken = learn(plasticity.STDP(**PAIR), connection, parameters(connection), sent, fired)["weight"]
    np.testing.assert_allclose(added[0], np.full((1, 1, 2, 2), 4 * 0.1), rtol=1e-6)
    np.testing.assert_allclose(taken[0], np.full((1, 1, 2, 2), 4 * 0.2), rtol=1e-6)


def test_rules_are_hashable_and_equal_by_their_constants():
    assert hash(plasticity.STDP(**PAIR)) == hash(plasticity.STDP(**PAIR))
    assert plasticity.STDP(**PAIR) != plasticity.STDP(**PAIR, delayed=True)
    how, kernel = {"learning_rate": 0.1, "time_constant": 10.0}, plasticity.exp_stdp_post_kernel
    hash(plasticity.KernelSTDP(kernel_post=kernel, kernel_pre=kernel, kernel_post_kwargs=how, kernel_pre_kwargs=how))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plasticity.STDP(**PAIR | {"tc_pre": 0.0}), "tc_pre must be above 0"),
        (lambda: plasticity.STDP(**PAIR, interp_tolerance=-1.0), "interp_tolerance must be 0 ms or more"),
        (lambda: plasticity.TripletSTDP(**TRIPLET | {"tc_pre_slow": 5.0}), "tc_pre_fast must be below tc_pre_slow"),
        (lambda: plasticity.MSTDPET(**PAIR, tc_eligibility=0.0), "tc_eligibility must be above 0"),
        (lambda: plasticity.LinearHomeostasis(plasticity=0.1, target=0.0), "target must be above 0"),
        (lambda: plasticity.DelayAdjustedSTDP(**LAST).initialize_carry(dense(), 1), "DelayAdjustedSTDP needs a delay"),
        (lambda: HOMEOSTASIS_OF_BIAS.initialize_carry(dense(), 1), "LinearHomeostasis needs a bias"),
    ],
)
def test_a_rule_refuses_what_it_cannot_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_homeostasis_needs_a_target_and_takes_one_at_each_call():
    rule, connection = plasticity.LinearHomeostasis(plasticity=0.5), dense()
    plan, state = connection.plan(parameters(connection)), connection.initialize_carry(2)
    carry, silence = rule.initialize_carry(connection, 2), jnp.zeros((2, 3))
    _, updates = rule(carry, connection, plan, state, silence, jnp.asarray([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(updates["weight"][0], np.full((3, 4), 0.5), rtol=1e-6)
    with pytest.raises(ValueError, match="has no target"):
        rule(carry, connection, plan, state, silence)


def test_arrived_spikes_cannot_be_learned_from_where_the_execution_keeps_no_past():
    connection = dense(delay=2.0, execution="future")
    params = parameters(connection, jnp.zeros(connection.delay_shape))
    with pytest.raises(ValueError, match="keeps no past"):
        learn(plasticity.STDP(**PAIR), connection, params, *random_spikes(connection))
