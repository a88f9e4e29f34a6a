"""What makes no sense is refused in one clear message, and not computed anyway."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxkit.errors import ShapeError
from jaxkit.spiking import encoders, plasticity
from jaxkit.spiking.connections import Conv2D, LinearDense, LinearDirect
from jaxkit.spiking.layers import Biclique, RecurrentSerial, Serial
from jaxkit.spiking.neurons import LIF
from jaxkit.spiking.plasticity import bounds
from jaxkit.spiking.readouts import MaxRateClassifier, victor_purpura_pair_dist
from jaxkit.spiking.surrogate import arctan
from jaxkit.spiking.synapses import DeltaCurrent, DeltaPlusCurrent

SYNAPSE = DeltaCurrent(spike_charge=1.0)
PAIR = {"lr_post": 0.1, "lr_pre": -0.2, "tc_post": 10.0, "tc_pre": 20.0}
MEMBRANE = {"rest_v": 0.0, "reset_v": 0.0, "thresh_v": 1.0, "refrac_t": 0.0, "time_constant": 10.0}


@pytest.fixture(autouse=True)
def types_are_not_checked(monkeypatch):
    """As users run it: the types that tests check would hide the messages."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def dense(inputs=4, outputs=3, **options):
    return LinearDense(inputs, outputs, 1.0, synapse=SYNAPSE, **options)


def conv(height=5, **options):
    return Conv2D(height, 5, 1, 2, 1.0, **{"kernel": 3, **options}, synapse=SYNAPSE)


def ones(connection):
    params = {"weight": connection.weight_shape, "bias": connection.bias_shape}
    if connection.delay is not None:
        params["delay"] = connection.delay_shape
    return {name: jnp.ones(shape) for name, shape in params.items() if name != "bias" or connection.bias}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: conv(kernel=(3,)), r"Conv2D: kernel must be a whole number or 2 of them, 1 or more, got \(3,\)"),
        (lambda: conv(stride=0), "Conv2D: stride must be .*, got 0"),
        (lambda: conv(padding=(0, -1)), "Conv2D: padding must be .*, 0 or more, got"),
        (lambda: conv(dilation=0), "Conv2D: dilation must be"),
        (lambda: conv(height=(5, 5)), "Conv2D: height must be a whole number, 1 or more"),
        (lambda: conv(height=2).outshape, "a kernel of 3 with dilation 1 does not fit into 2 pixels"),
        (lambda: dense(4.0), "LinearDense: in_shape must be a whole number or a tuple of them, 1 or more, got 4.0"),
        (lambda: dense(outputs=(3, 0)), "LinearDense: out_shape"),
        (lambda: LIF(3.0, 1.0, **MEMBRANE), "LIF: shape must be"),
        (lambda: MaxRateClassifier(3, 2.5), "MaxRateClassifier: num_classes must be a whole number"),
    ],
)
def test_sizes_are_whole_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sizes_may_be_numpys():
    n = np.int64(3)
    assert dense(n, (n, n)).weight_shape == (9, 3)
    assert LIF(n, 1.0, **MEMBRANE) == LIF(3, 1.0, **MEMBRANE)
    assert Conv2D(n, n, n, n, 1.0, n, padding=np.int64(1), synapse=SYNAPSE).outshape == (3, 3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": jnp.ones(1)}, r"LinearDirect: weight must be \(4,\), got \(1,\)"),
        ({"delay": jnp.ones((4, 4))}, r"delay must be \(4,\), got \(4, 4\)"),
        ({"bias": jnp.ones(4)}, "LinearDirect has the parameters weight, delay; given are .*bias"),
    ],
)
def test_parameters_are_those_of_the_connection(change, message):
    connection = LinearDirect(4, 1.0, synapse=SYNAPSE, delay=2.0)
    with pytest.raises(ShapeError, match=message):
        connection.plan(ones(connection) | change)


@pytest.mark.parametrize(("mode", "width"), [("gaussian", 0.0), ("gaussian", -1.0), ("triangle", -0.5)])
def test_windows_have_a_width(mode, width):
    connection = LinearDense(
        2, 2, 1.0, synapse=DeltaCurrent(spike_charge=1.0, interp_mode=mode), delay=2.0, execution="future"
    )
    with pytest.raises(ValueError, match=f"the window of '{mode}' must be wider than 0 steps, got {width}"):
        connection.plan(ones(connection), width)


@pytest.mark.parametrize(
    ("rule", "signal"),
    [
        (plasticity.STDP(**PAIR), ()),
        (plasticity.MSTDP(**PAIR), (1.0,)),
        (plasticity.LinearHomeostasis(plasticity=0.1), (0.1,)),
    ],
)
def test_a_rule_learns_from_neurons_of_every_sample(rule, signal):
    connection = dense()
    state, plan = connection.initialize_carry(2), connection.plan(ones(connection))
    with pytest.raises(ShapeError, match=r"LinearDense: .* are \(2, 3\), not \(1, 3\)"):
        rule(rule.initialize_carry(connection, 2), connection, plan, state, jnp.ones((1, 3)), *signal)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1)])
def test_a_reward_is_one_number_or_one_of_each_sample(shape):
    connection, rule = dense(), plasticity.MSTDP(**PAIR)
    state, plan = connection.initialize_carry(2), connection.plan(ones(connection))
    with pytest.raises(ShapeError, match=r"MSTDP: a signal is one number or \[2\], not"):
        rule(rule.initialize_carry(connection, 2), connection, plan, state, jnp.ones((2, 3)), jnp.ones(shape))


@pytest.mark.parametrize(
    "hook",
    [
        plasticity.Normalization(attr="wieght", order=1, scale=1.0, dim=1),
        plasticity.Clamping(attr="wieght", max=1.0),
    ],
)
def test_a_hook_names_a_parameter_that_is_there(hook):
    with pytest.raises(ValueError, match="no parameter is named 'wieght', did you mean 'weight'.; there are weight"):
        hook(ones(dense()))


@pytest.mark.parametrize(
    "bound",
    [bounds.bound_scaled_multiplicative, partial(bounds.bound_scaled_power, upper_power=1.0, lower_power=1.0)],
)
def test_scaled_bounds_have_a_range(bound):
    for highest in (0.0, -1.0):
        with pytest.raises(ValueError, match="max - min: it must be above 0"):
            bound(jnp.ones(2), jnp.ones(2), jnp.ones(2), highest, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LIF(3, 1.0, **MEMBRANE, surrogate=arctan), "LIF: surrogate must be a Surrogate, such as arctan"),
        (lambda: DeltaCurrent(spike_charge=float("nan")), "spike_charge is nan pC"),
        (lambda: encoders.LatencyEncoder(5.5, 1.0), "LatencyEncoder: steps must be a whole number"),
        (lambda: plasticity.Normalization(order=1, scale=1.0, dim=1, epsilon=0.0), "epsilon must be above 0"),
        (lambda: plasticity.exp_stdp_pre_kernel(jnp.zeros(2), 0.1, 0.0), "time_constant must be above 0 ms"),
        (lambda: victor_purpura_pair_dist(jnp.ones(1), jnp.ones(1), -1.0), "must cost 0 or more"),
    ],
)
def test_constants_make_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_currents_that_come_together_are_of_one_shape():
    parts, neuron = {"a": dense(), "b": dense(outputs=1)}, LIF(3, 1.0, **MEMBRANE)
    biclique = Biclique(parts, {"n": neuron})
    recurrent = RecurrentSerial(dense(), dense(3, 3), dense(3, 1), neuron, neuron)
    for layer, x in ((biclique, dict.fromkeys("ab", jnp.ones((1, 4)))), (recurrent, jnp.ones((1, 4)))):
        plans = layer.plan({name: ones(part) for name, part in layer.parts()[0].items()})
        with pytest.raises(ShapeError, match=r"of one shape, not {.*: \(1, 3\), .*: \(1, 1\)}"):
            layer.step(plans, layer.initialize_carry(1), x)


def test_what_a_connection_or_a_layer_is_given_fits():
    connection = LinearDense(4, 3, 1.0, synapse=DeltaPlusCurrent(spike_charge=1.0))
    step = partial(connection.step, connection.plan(ones(connection)), connection.initialize_carry(2))
    with pytest.raises(ShapeError, match=r"input \(1, 4\) for a carry of 2 samples"):
        step(jnp.ones((2, 4)), jnp.ones((1, 4)))
    with pytest.raises(ShapeError, match="given no spikes"):
        step()
    with pytest.raises(ShapeError, match="Serial: no parameters of connection; given are those of weight"):
        Serial(connection, LIF(3, 1.0, **MEMBRANE)).plan(ones(connection))


def test_updates_and_targets_are_not_broadcast():
    params, change = ones(dense()), jnp.ones((1, 4))
    with pytest.raises(ShapeError, match=r"updates of weight are \(1, 4\), and the parameter is \(3, 4\)"):
        plasticity.Updater()(params, {"weight": (change, change)})
    rule, connection = plasticity.LinearHomeostasis(plasticity=0.1), dense()
    at = (rule.initialize_carry(connection, 2), connection, connection.plan(params), connection.initialize_carry(2))
    with pytest.raises(ValueError, match="target must be above 0, got 0.0"):
        rule(*at, jnp.ones((2, 3)), 0.0)
    with pytest.raises(ShapeError, match=r"target is a number or \(3,\), not \(2, 1\)"):
        rule(*at, jnp.ones((2, 3)), jnp.ones((2, 1)))


def test_a_kernel_rule_has_no_tolerance_below_0():
    how = {"kernel_post": jnp.exp, "kernel_pre": jnp.exp, "kernel_post_kwargs": {}, "kernel_pre_kwargs": {}}
    with pytest.raises(ValueError, match="KernelSTDP: interp_tolerance must be 0 or more, got -1"):
        plasticity.KernelSTDP(**how, interp_tolerance=-1.0)


@pytest.mark.parametrize(("inputs", "labels"), [((2, 1), 2), ((2, 4), 1)])
def test_a_readout_does_not_broadcast(inputs, labels):
    readout = MaxRateClassifier(4, 3)
    with pytest.raises(ShapeError, match="for neurons .4,. and 3 classes"):
        readout.update(readout.initialize_carry(), jnp.ones(inputs), jnp.zeros(labels, int))


def test_labels_name_a_class_where_they_are_known():
    readout, labels = MaxRateClassifier(4, 3), jnp.asarray([-1, 0, 3])
    learn = partial(readout.update, readout.initialize_carry(), jnp.ones((3, 4)))
    for update in (lambda: learn(labels), jax.jit(lambda: learn(labels))):
        with pytest.raises(ValueError, match=r"labels \[-1  3\] are none of the classes 0 to 2"):
            update()
    assert jax.jit(learn)(labels).sum() == 4


@pytest.mark.parametrize("name", ["HomogeneousPoissonEncoder", "RegularEncoder", "LatencyEncoder"])
def test_pixels_from_0_to_255_are_no_intensities(name):
    encoder = getattr(encoders, name)(5, 1.0, *[50.0] * (name != "LatencyEncoder"))
    with pytest.raises(ValueError, match="intensities are floats in .* not uint8: divide images of 0 to 255 by 255"):
        encoder(jax.random.key(0), jnp.full((1, 4), 255, jnp.uint8))
