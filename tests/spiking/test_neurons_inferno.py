"""Every neuron steps as inferno's does, with random constants, shapes, batches and currents."""

import warnings

import jax
import numpy as np
import pytest

from jaxkit.spiking.neurons import NEURONS

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("inferno")
    from inferno import neural

STEPS = 240
ADAPTIVE = ("ALIF", "GLIF2", "Izhikevich", "AdEx")
# Both sides round differently in the last digit of float32, 6e-8 of a voltage; a membrane that rises by itself, and an
# adaptation that averages over many steps, carry that along.
FLOAT32 = 1e-6
# The same in float64, where no threshold is ever crossed within rounding.
FLOAT64 = 1e-12


def random_constants(name: str, draw: np.random.Generator) -> dict:
    """Constants with which normal currents of mean 15 and deviation 12 nA make a neuron fire now and then."""
    uniform, k = draw.uniform, int(draw.integers(1, 4))
    constants = {"rest_v": uniform(-63, -60), "refrac_t": float(draw.choice([0.0, 1.0, 2.0, 3.5]))}
    constants["resistance"] = uniform(1.0, 1.5)
    constants["tc_membrane" if name in ADAPTIVE else "time_constant"] = uniform(8, 15)
    if name in ("ALIF", "GLIF2"):
        constants |= {"thresh_eq_v": uniform(-54, -50), "spike_increment": tuple(uniform(0.2, 2, k))}
    else:
        constants["thresh_v"] = uniform(-54, -50)
    if name == "GLIF2":
        constants |= {"reset_v_add": uniform(1, 5), "reset_v_mul": uniform(0.2, 0.8)}
        constants["rc_adaptation"] = tuple(uniform(0.02, 0.2, k))
    else:
        constants["reset_v"] = uniform(-68, -64)
    if name in ("ALIF", "Izhikevich", "AdEx"):
        constants["tc_adaptation"] = tuple(uniform(5, 50, k))
    if name in ("Izhikevich", "AdEx"):
        constants |= {"voltage_coupling": tuple(uniform(0, 0.2, k)), "spike_increment": tuple(uniform(0.2, 1, k))}
    if name in ("QIF", "Izhikevich"):
        constants |= {"crit_v": uniform(-58, -55), "affinity": uniform(0.05, 0.2)}
    if name in ("EIF", "AdEx"):
        constants |= {"rheobase_v": uniform(-58, -55), "sharpness": uniform(1, 3)}
    return {key: value if isinstance(value, tuple) else float(value) for key, value in constants.items()}


def inferno_trace(name, constants, shape, step_time, currents, *, refrac_lock, reduction=None):
    """Spikes, voltages, refractory periods and adaptations of inferno's neuron, after each step."""
    options = {"batch_reduction": reduction} if reduction else {}
    neuron = getattr(neural, name)(shape, step_time, batch_size=currents.shape[1], **constants, **options)
    trace = []
    for current in torch.from_numpy(currents):
        spike = neuron(current, refrac_lock=refrac_lock)
        adaptation = getattr(neuron, "threshold_adaptation", getattr(neuron, "current_adaptation", None))
        trace.append([spike, neuron.voltage, neuron.refrac, *([] if adaptation is None else [adaptation])])
    return [torch.stack(values).numpy() for values in zip(*trace, strict=True)]


def trace_of(neuron, currents):
    @jax.jit
    def run(carry, currents):
        def step(carry, current):
            carry, spike = neuron(carry, current)
            kept = [] if carry.adaptation is None else [carry.adaptation]
            return carry, [spike, carry.voltage, carry.refrac, *kept]

        return jax.lax.scan(step, carry, currents)[1]

    return run(neuron.initialize_carry(currents.shape[1], currents.dtype), currents)


def assert_same_trace(ours, theirs, tolerance):
    np.testing.assert_array_equal(np.asarray(ours[0]), theirs[0], "spikes")
    assert 0.01 < theirs[0].mean() < 0.9, "a case without spikes proves nothing"
    scale = np.abs(theirs[1]).max()
    for what, a, b in zip(("voltage", "refrac", "adaptation"), ours[1:], theirs[1:], strict=False):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), what
        np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=tolerance * scale, err_msg=what)


def random_case(name, seed, dtype, steps=STEPS):
    draw = np.random.default_rng([seed, *name.encode()])
    shape = tuple(int(n) for n in draw.integers(1, 5, draw.integers(1, 4)))
    currents = draw.normal(15, 12, (steps, int(draw.integers(1, 5)), *shape)).astype(dtype)
    step_time = float(draw.choice([0.5, 1.0]))
    return random_constants(name, draw), shape, step_time, currents, bool(seed % 2)


@pytest.fixture
def double():
    """Both worlds in float64: inferno takes the precision of its state from torch's default."""
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", NEURONS)
def test_each_neuron_steps_as_in_inferno_in_double_precision(name, seed, double):
    constants, shape, step_time, currents, lock = random_case(name, seed, np.float64)
    theirs = inferno_trace(name, constants, shape, step_time, currents, refrac_lock=lock)
    ours = trace_of(NEURONS[name](shape, step_time, **constants, refrac_lock=lock), currents)
    assert_same_trace(ours, theirs, FLOAT64)


@pytest.mark.parametrize("seed", [10, 11])
@pytest.mark.parametrize("name", NEURONS)
def test_each_neuron_steps_as_in_inferno(name, seed):
    constants, shape, step_time, currents, lock = random_case(name, seed, np.float32)
    theirs = inferno_trace(name, constants, shape, step_time, currents, refrac_lock=lock)
    ours = trace_of(NEURONS[name](shape, step_time, **constants, refrac_lock=lock), currents)
    assert_same_trace(ours, theirs, FLOAT32)


@pytest.mark.parametrize("reduction", ["sum", "max", "min"])
@pytest.mark.parametrize("name", ["ALIF", "AdEx"])
def test_adaptations_are_reduced_over_the_batch_as_in_inferno(name, reduction, double):
    # a sum multiplies the adaptation by the batch at every step: few steps, before neurons fall silent
    constants, shape, step_time, currents, _ = random_case(
        name, 5, np.float64, steps=8 if reduction == "sum" else STEPS
    )
    currents = np.concatenate([currents, currents[::-1] + 3], axis=1)
    reduce = {"sum": torch.sum, "max": torch.amax, "min": torch.amin}[reduction]
    theirs = inferno_trace(name, constants, shape, step_time, currents, refrac_lock=True, reduction=reduce)
    ours = trace_of(NEURONS[name](shape, step_time, **constants, batch_reduction=reduction), currents)
    assert_same_trace(ours, theirs, FLOAT64)


def test_one_time_constant_serves_several_increments_as_in_inferno(double):
    constants, shape, step_time, currents, _ = random_case("ALIF", 6, np.float64)
    constants |= {"tc_adaptation": 20.0, "spike_increment": (0.5, 1.0)}
    theirs = inferno_trace("ALIF", constants, shape, step_time, currents, refrac_lock=True)
    assert_same_trace(trace_of(NEURONS["ALIF"](shape, step_time, **constants), currents), theirs, FLOAT64)
