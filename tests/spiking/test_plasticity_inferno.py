"""Learning rules find the updates that inferno's trainers do, on every kind of connection."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import thinned
from einops import rearrange

from jaxkit.spiking import connections, plasticity
from jaxkit.spiking.plasticity import bounds, exp_stdp_post_kernel, exp_stdp_pre_kernel
from jaxkit.spiking.synapses import DeltaCurrent

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("inferno")
    from inferno import functional, learn, neural
    from inferno.learn.trainers import two_factor_stdp

STEPS, BATCH = 200, 3
# Both sides round in the last digit of float32, 6e-8 of an update, and sum up to 30 of them.
TOLERANCE = 1e-6

PAIR = {"lr_post": 0.1, "lr_pre": -0.2, "tc_post": 10.0, "tc_pre": 20.0}
TRIPLET = {"lr_post_pair": 0.1, "lr_post_triplet": 0.05, "lr_pre_pair": -0.2, "lr_pre_triplet": 0.1}
TRIPLET |= {"tc_post_fast": 10.0, "tc_post_slow": 30.0, "tc_pre_fast": 20.0, "tc_pre_slow": 40.0}
LAST = {"lr_pos": 0.1, "lr_neg": -0.2, "tc_pos": 10.0, "tc_neg": 20.0}
KERNELS = {
    "kernel_post_kwargs": {"learning_rate": 0.1, "time_constant": 10.0},
    "kernel_pre_kwargs": {"learning_rate": -0.2, "time_constant": 20.0},
}
# name of the rule, its options, what it is told at each step
RULES = {
    "pairs": ("STDP", PAIR, ""),
    "pairs of past spikes": ("STDP", PAIR | {"delayed": True}, ""),
    "pairs with tolerance": ("STDP", PAIR | {"delayed": True, "interp_tolerance": 0.3}, ""),
    "pairs, reversed, nearest": ("STDP", PAIR | {"lr_post": -0.1, "lr_pre": 0.2, "trace_mode": "nearest"}, ""),
    "pairs, both up": ("StableSTDP", PAIR | {"lr_pre": 0.2, "delayed": True, "trace_mode": "nearest"}, ""),
    "pairs, both down, the largest of a batch": ("StableSTDP", PAIR | {"lr_post": -0.1, "batch_reduction": "max"}, ""),
    "triplets": ("TripletSTDP", TRIPLET, ""),
    "triplets, nearest": ("StableTripletSTDP", TRIPLET | {"lr_post_pair": -0.1, "trace_mode": "nearest"}, ""),
    "reward": ("MSTDP", PAIR, "signal"),
    "reward of each sample": ("MSTDP", PAIR | {"delayed": True}, "signals"),
    "mean reward of each sample": ("MSTDP", PAIR | {"batch_reduction": "mean"}, "signals"),
    "late reward": ("MSTDPET", PAIR | {"tc_eligibility": 5.0}, "signal"),
    "late reward of each sample": ("MSTDPET", PAIR | {"tc_eligibility": 5.0, "lr_pre": 0.2}, "signals"),
    "kernels": ("KernelSTDP", KERNELS, ""),
    "kernels of past spikes": ("KernelSTDP", KERNELS | {"delayed": True, "interp_tolerance": 0.3}, ""),
    "kernels less delay": ("DelayAdjustedKernelSTDP", KERNELS, ""),
    "kernels of delay": ("DelayAdjustedKernelSTDPD", KERNELS, ""),
    "last pair less delay": ("DelayAdjustedSTDP", LAST, ""),
    "last pair, delay": ("DelayAdjustedSTDPD", LAST | {"lr_neg": -0.2, "lr_pos": 0.1}, ""),
    "last pair less delay, reward": ("DelayAdjustedMSTDP", LAST, "signals"),
    "last pair, delay, reward": ("DelayAdjustedMSTDPD", LAST, "signal"),
    "last pair, delay, reward of each sample": ("DelayAdjustedMSTDPD", LAST | {"lr_neg": 0.2}, "signals"),
    "rate by weight": ("LinearHomeostasis", {"plasticity": 0.3, "target": 0.25, "param": "weight"}, ""),
    "rate by bias": ("LinearHomeostasis", {"plasticity": 0.3, "target": 0.25, "param": "bias"}, ""),
    "rate by delay": ("LinearHomeostasis", {"plasticity": 0.3, "target": 0.25, "param": "delay"}, ""),
}
CONNECTIONS = {
    "dense": ("LinearDense", {"in_shape": (2, 2), "out_shape": (3,)}),
    "direct": ("LinearDirect", {"shape": (2, 2)}),
    "lateral": ("LinearLateral", {"shape": (4,)}),
    "convolution": ("Conv2D", {"height": 4, "width": 3, "channels": 2, "filters": 2, "kernel": (2, 3), "padding": 1}),
}


# These compile slowest, so that not all variants are tried of them.
OF_CONVOLUTIONS = ("pairs", "pairs of past spikes", "triplets", "reward of each sample", "late reward", "kernels")
OF_CONVOLUTIONS += (
    "kernels of past spikes",
    "last pair less delay",
    "last pair, delay",
    "rate by weight",
    "rate by bias",
)


@pytest.fixture(autouse=True)
def one_thread():
    """Lets torch work alone: its threads cost more than such small arrays, many times more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def possible(rule: str, delay: float | None) -> bool:
    return delay is not None or not (
        rule.startswith(("kernels less", "kernels of delay", "last")) or "by delay" in rule
    )


class Forced(neural.LIF):
    """A neuron that fires when it is told to."""

    def forward(self, inputs, **kwargs):
        return self.spikes

    @property
    def spike(self):
        return self.spikes


def random_run(kind: str, delay: float | None, step_time: float):
    """A connection, its parameters, spikes before and after it, rewards."""
    name, options = CONNECTIONS[kind]
    connection = getattr(connections, name)(
        **options, step_time=step_time, synapse=DeltaCurrent(spike_charge=1.0), bias=True, delay=delay, plastic=True
    )
    draw = np.random.default_rng(len(kind))
    params = {"weight": draw.random(connection.weight_shape, np.float32)}
    params["bias"] = draw.random(connection.bias_shape, np.float32)
    if delay is not None:
        # Quarters of a step are exact; the original refuses delays out of range.
        params["delay"] = draw.integers(0, 4 * delay / step_time + 1, connection.delay_shape) * np.float32(
            step_time / 4
        )
    before, after = (draw.random((STEPS, BATCH, *shape)) < 0.2 for shape in (connection.inshape, connection.outshape))
    signal = draw.normal(size=STEPS).astype(np.float32)
    return (
        connection,
        connection.project(jax.tree.map(jnp.asarray, params)),
        before,
        after,
        signal,
        draw.normal(size=(STEPS, BATCH)).astype("f"),
    )


def trainer(name: str, options: dict):
    """Inferno's rule."""
    options = dict(options)
    if "kernel_post_kwargs" in options:
        options |= {"kernel_post": functional.exp_stdp_post_kernel, "kernel_pre": functional.exp_stdp_pre_kernel}
    if "batch_reduction" in options:
        options["batch_reduction"] = {"max": torch.amax, "mean": torch.mean}[options["batch_reduction"]]
    return (getattr(learn, name, None) or getattr(two_factor_stdp, name))(**options)


def rule_of(name: str, options: dict):
    """The same here."""
    options = dict(options)
    if "kernel_post_kwargs" in options:
        options |= {"kernel_post": exp_stdp_post_kernel, "kernel_pre": exp_stdp_pre_kernel}
    if options.get("batch_reduction") == "max":
        options["batch_reduction"] = jnp.max
    return getattr(plasticity, name)(**options)


def inferno_layer(kind, delay, step_time, params, outshape):
    """Inferno's connection with the same parameters before neurons that fire when told to."""
    name, options = CONNECTIONS[kind]
    synapse = neural.DeltaCurrent.partialconstructor(1.0)
    connection = getattr(neural, name)(
        **options, step_time=step_time, synapse=synapse, bias=True, delay=delay, batch_size=BATCH
    )
    for key, value in params.items():
        setattr(connection, key, torch.from_numpy(np.array(value)))
    constants = {"rest_v": -60.0, "reset_v": -65.0, "thresh_v": -50.0, "refrac_t": 1.0, "time_constant": 20.0}
    neuron = Forced(outshape, step_time, batch_size=BATCH, **constants)
    connection.updater = connection.defaultupdater()
    return neural.Serial(connection, neuron), neuron, connection


@torch.no_grad()
def inferno_updates(kind, delay, step_time, params, before, after, signal, signals, rules):
    """What inferno's trainers find at each step: of each rule ``pos`` and ``neg``, ``[t ...]``."""
    layer, neuron, theirs = inferno_layer(kind, delay, step_time, params, after.shape[2:])
    trainers = {key: trainer(*rules[key][:2]) for key in rules}
    for each in trainers.values():
        each.register_cell("cell", layer.cell)

    found = {key: [] for key in rules}
    for x, post, one, many in zip(*map(torch.from_numpy, (before, after, signal, signals)), strict=True):
        neuron.spikes = post
        layer(x)
        for key, each in trainers.items():
            each(*{"": (), "signal": (one.item(),), "signals": (many,)}[rules[key][2]])
            accumulator = getattr(theirs.updater, parameter(rules[key]))
            pair = (accumulator.pos, accumulator.neg)
            found[key].append([0.0 if part is None else part.numpy() for part in pair])
            theirs.updater.clear()
    shape = {key: params[parameter(rules[key])].shape for key in rules}
    return {
        key: [np.stack([np.broadcast_to(step[side], shape[key]) for step in steps]) for side in (0, 1)]
        for key, steps in found.items()
    }


def parameter(rule) -> str:
    return rule[1].get("param", "delay" if rule[0].endswith("D") else "weight")


def our_updates(connection, params, before, after, signal, signals, rules):
    """The same from one scan of all rules."""
    mine = {key: rule_of(*rules[key][:2]) for key in rules}
    plan = connection.plan(params)

    def step(carries, given):
        x, post, one, many = given
        state, carries = carries
        state, _ = connection.step(plan, state, x.astype(jnp.float32))
        found = {}
        for key, rule in mine.items():
            told = {"": (), "signal": (one,), "signals": (many,)}[rules[key][2]]
            carries[key], updates = rule(carries[key], connection, plan, state, post, *told)
            found[key] = updates[parameter(rules[key])]
        return (state, carries), found

    start = (
        connection.initialize_carry(BATCH),
        {k: rule.initialize_carry(connection, BATCH) for k, rule in mine.items()},
    )
    return jax.jit(partial(jax.lax.scan, step))(start, tuple(map(jnp.asarray, (before, after, signal, signals))))[1]


def largest_error(connection, here, there) -> float:
    """The largest difference at any step, as a part of the largest update."""
    # The original takes the diagonal of lateral connections out when it applies updates.
    if there[0].shape == connection.weight_shape:
        there = jax.vmap(connection.masked)(jnp.asarray(there))
    return np.abs(np.asarray(here) - there).max() / max(np.abs(there).max(), 1e-30)


@pytest.mark.parametrize(
    ("kind", "delay", "step_time"),
    thinned(
        [(kind, delay, 1.0) for kind in CONNECTIONS for delay in (None, 2.0)] + [("dense", 3.0, 0.5)],
        [("dense", 3.0, 0.5)],
    ),
)
def test_rules_find_infernos_updates_at_each_of_200_steps(kind, delay, step_time, monkeypatch):
    # The original's pattern is invalid, so that no rule works on its convolutions.
    pattern = partial(rearrange, pattern="b (c kh kw) l ... -> b (...) c kh kw l", kh=2, kw=3)
    monkeypatch.setattr(neural.Conv2D, "presyn_receptive", lambda self, data: pattern(data))
    keys = OF_CONVOLUTIONS if kind == "convolution" else RULES
    rules = {key: RULES[key] for key in keys if possible(key, delay)}
    connection, params, *given = random_run(kind, delay, step_time)
    # Its eligibility reads traces by a name that other trainers on a connection take over.
    alone = [key for key in rules if rules[key][0] == "MSTDPET"]
    theirs = {}
    for together in ([key for key in rules if key not in alone], *([key] for key in alone)):
        some = {key: rules[key] for key in together}
        theirs |= inferno_updates(kind, delay, step_time, params, *given, some)
    with jax.default_matmul_precision("highest"):
        ours = our_updates(connection, params, *given, rules)

    errors = {}
    for key, (added, taken) in ours.items():
        assert added.min() >= 0
        assert taken.min() >= 0
        assert added.max() + taken.max() > 0, key
        # The original takes away less than nothing where homeostasis should take away.
        more, less = theirs[key]
        less = -less if key.startswith("rate") else less
        errors[key] = max(largest_error(connection, *pair) for pair in ((added, more), (taken, less)))
    assert not {key: float(error) for key, error in errors.items() if not error <= TOLERANCE}


@torch.no_grad()
def test_weights_and_delays_go_infernos_way_while_both_change_at_each_of_200_steps():
    connection, params, before, after, *_ = random_run("dense", 3.0, 1.0)
    connection = connection.clone(out_of_range="project")
    options = {"weight": PAIR, "delay": {"lr_neg": -0.05, "lr_pos": 0.03, "tc_neg": 10.0, "tc_pos": 20.0}}
    layer, neuron, theirs = inferno_layer("dense", 3.0, 1.0, params, after.shape[2:])
    theirs.updater.weight.fullbound(functional.bound_multiplicative, 1.0, 0.0)
    trainers = [learn.STDP(**options["weight"]), learn.DelayAdjustedSTDPD(**options["delay"])]
    for each in trainers:
        each.register_cell("cell", layer.cell)
    expected = []
    for x, post in zip(*map(torch.from_numpy, (before, after)), strict=True):
        neuron.spikes = post
        layer(x)
        for each in trainers:
            each()
        theirs.update()
        theirs.delay = theirs.delay.clamp(0, 3)
        expected.append([theirs.weight.numpy().copy(), theirs.delay.numpy().copy()])

    rules = [plasticity.STDP(**options["weight"]), plasticity.DelayAdjustedSTDPD(**options["delay"])]
    updater = plasticity.Updater(weight=partial(bounds.bound_multiplicative, max=1.0, min=0.0))

    def step(carry, given):
        params, state, *carries = carry
        plan = connection.plan(params)
        state, _ = connection.step(plan, state, given[0])
        told = (connection, plan, state, given[1])
        carries, updates = zip(*(rule(mine, *told) for rule, mine in zip(rules, carries, strict=True)), strict=True)
        params = connection.project(updater(params, *updates))
        return (params, state, *carries), (params["weight"], params["delay"])

    carries = [rule.initialize_carry(connection, BATCH) for rule in rules]
    start = (params, connection.initialize_carry(BATCH), *carries)
    given = jnp.asarray(before, jnp.float32), jnp.asarray(after, jnp.float32)
    _, found = jax.jit(partial(jax.lax.scan, step))(start, given)
    # Rounding adds up over 200 updates of up to 3 ms.
    np.testing.assert_allclose(found[0], np.stack([weight for weight, _ in expected]), rtol=0, atol=5e-6)
    np.testing.assert_allclose(found[1], np.stack([delay for _, delay in expected]), rtol=0, atol=5e-6)
    assert np.ptp(found[1][-1]) > 0.5
