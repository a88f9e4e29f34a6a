import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit.errors import ConfigError
from jaxkit.sampling import schedules
from jaxkit.sampling.guidance import (
    Guidance,
    both_at_once,
    guide,
    guide_adapted,
    scale_of_weight,
    weight_of_scale,
)
from jaxkit.sampling.schedules import MASK_SCHEDULES, mask_schedule

CONSTANTS = {"pow": {"exponent": 3.0}}


def sigma(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("name", "constants", "t", "rate"),
    [
        ("cosine", {}, 1 / 3, math.sqrt(3) / 2),
        ("linear", {}, 0.25, 0.75),
        ("linear", {}, 1.0, 1e-6),
        ("pow", {"exponent": 3.0}, 0.5, 0.875),
        ("pow2.5", {}, 0.5, 1 - 0.5**2.5),
        ("pow.5", {}, 0.25, 0.5),
        ("square", {}, 0.5, 0.75),
        ("root", {}, 0.25, 0.5),
        ("sigmoid", {}, 0.5, 0.5),
        ("sigmoid", {"start": 0.0, "end": 3.0, "tau": 0.5}, 0.5, (sigma(6) - sigma(3)) / (sigma(6) - 0.5)),
        ("log", {"tokens": 256.0}, 0.0625, 0.5),
        ("log", {"tokens": 16.0}, 0.001, 1.0),
        ("exp", {"tokens": 256.0}, 0.5, 1 - 1 / 16),
        ("exp", {"tokens": 256.0}, 1.0, 1e-6),
        ("arccos", {}, 0.5, 2 / 3),
    ],
)
def test_rates_are_those_of_the_formulas(name, constants, t, rate):
    # float32: some units of 6e-8, and the subtraction from 1 makes them relative to 1
    assert float(mask_schedule(name, constants)(t)) == pytest.approx(rate, rel=3e-7, abs=3e-7)


@pytest.mark.parametrize("name", MASK_SCHEDULES)
def test_schedules_fall_from_all_masked_to_none(name):
    rates = np.asarray(mask_schedule(name, CONSTANTS.get(name, {}))(np.linspace(0, 1, 101, dtype=np.float32)))
    assert rates[0] == pytest.approx(1, abs=0.005)  # that of exp is 1 - 1/256
    assert rates[-1] == pytest.approx(0, abs=2e-6)
    assert np.all(np.diff(rates) <= 1e-6)


def test_cosine_has_the_density_of_muse_and_arccos_has_not():
    t = (np.arange(10000, dtype=np.float32) + 0.5) / 10000
    assert float(mask_schedule("cosine")(t).mean()) == pytest.approx(2 / math.pi, abs=1e-6)
    # P(r <= x) = ∫ 2/π (1 - r²)^-½ = 2/π arcsin x
    for x in (0.1, 0.5, 0.9):
        density = 2 / math.pi * math.asin(x)
        # to one of the 10,000 times on either side
        assert (np.asarray(mask_schedule("cosine")(t)) <= x).mean() == pytest.approx(density, abs=2e-4)
        assert (np.asarray(mask_schedule("arccos")(t)) <= x).mean() != pytest.approx(density, abs=0.02)


def test_counts_equal_those_of_torchs_float32_cosine():
    # the last step of each is left out: none follows it
    steps = np.concatenate([np.full(steps - 1, steps) for steps in range(2, 65)])
    done = np.concatenate([np.arange(1, steps) for steps in range(2, 65)])
    theirs = torch.cos(torch.from_numpy(done) / torch.from_numpy(steps) * math.pi / 2)
    ours = mask_schedule("cosine")((done / steps).astype(np.float32))
    for size in (16, 25, 64, 100, 256, 576, 1024):
        np.testing.assert_array_equal(np.floor(size * np.asarray(ours)), (size * theirs.float()).floor())


def test_equal_schedules_are_one_static_argument():
    assert mask_schedule("pow2") == mask_schedule("square") == mask_schedule("pow", {"exponent": 2.0})
    assert hash(mask_schedule("pow2")) == hash(mask_schedule("square"))
    assert mask_schedule("sigmoid", {"tau": 0.5}) != mask_schedule("sigmoid")
    assert pickle.loads(pickle.dumps(mask_schedule("log"))) == mask_schedule("log")


@pytest.mark.parametrize(
    ("name", "constants", "message"),
    [
        ("cosin", {}, "did you mean 'cosine'"),
        ("sigmoid", {"taus": 1.0}, "did you mean 'tau'"),
        ("cosine", {"tau": 1.0}, "has no constants"),
        ("pow", {}, "exponent is missing"),
        ("pow0", {}, "above 0"),
        ("sigmoid", {"tau": 0.0}, "tau > 0"),
        ("log", {"tokens": 1.0}, "above 1"),
    ],
)
def test_a_wrong_schedule_is_named(name, constants, message):
    with pytest.raises(ConfigError, match=message):
        mask_schedule(name, constants)


def test_temperatures_are_those_of_their_sources():
    np.testing.assert_array_equal(schedules.constant(0.7).values(3), np.float32([0.7] * 3))
    # torch.linspace counts from both ends: a unit in the last place
    np.testing.assert_allclose(schedules.linspace(2.0, 0.0).values(12), torch.linspace(2, 0, 12), rtol=2e-7)
    np.testing.assert_allclose(schedules.linspace(4.0).values(7), torch.linspace(4, 0.01, 7), rtol=2e-7)
    np.testing.assert_array_equal(schedules.linspace(2.0, 0.0).values(1), np.float32([2]))
    np.testing.assert_allclose(schedules.remaining(4.5).values(3), [3, 1.5, 0], rtol=2e-7)


def test_compounding_overwrites_the_temperature_step_by_step():
    temperature, expected = 2.0, []
    for step in range(5):
        temperature = temperature * (1 - (step + 1) / 5)
        expected.append(temperature)
    np.testing.assert_allclose(schedules.compounding(2.0).values(5), expected, rtol=2e-7)


def test_a_negative_temperature_is_refused():
    with pytest.raises(ConfigError, match="0 or more"):
        schedules.linspace(2.0, -0.1)


@pytest.mark.parametrize("steps", [1, 3, 8, 12, 16, 24])
@pytest.mark.parametrize("strength", [2.0, 8.0, 10.0])
def test_guidance_schedules_are_those_of_open_muse(steps, strength):
    np.testing.assert_array_equal(Guidance(strength=strength).scales(steps), np.full(steps, strength))
    linear = Guidance(strength=strength, schedule="linear").scales(steps)
    np.testing.assert_allclose(linear, torch.linspace(0, strength, steps), rtol=3e-7)
    ratios = [torch.tensor(1 - (step + 1) / steps) for step in range(steps)]
    floors = [(torch.cos(ratio * math.pi * 0.5) * strength).floor() for ratio in ratios]
    np.testing.assert_array_equal(Guidance(strength=strength, schedule="cosine").scales(steps), floors)


def test_power_cosine_grows_from_no_guidance_towards_its_strength():
    scales = Guidance(strength=5.0, schedule="power_cosine", power=3.0).scales(8)
    expected = [1 + 4 * (1 - math.cos((step / 8) ** 3 * math.pi)) / 2 for step in range(8)]
    np.testing.assert_allclose(scales, expected, rtol=2e-7)


@pytest.mark.parametrize("schedule", ["constant", "power_cosine"])
def test_a_weight_is_a_scale_less_one(schedule):
    power = 2.0 if schedule == "power_cosine" else None
    by_scale = Guidance(strength=4.0, schedule=schedule, power=power)
    by_weight = Guidance(strength=3.0, schedule=schedule, power=power, convention="weight")
    np.testing.assert_allclose(by_weight.scales(9), by_scale.scales(9), rtol=2e-7)


def test_both_conventions_give_the_same_logits():
    conditional, unconditional = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 7))
    weight = 2.5
    # rounding of sums of a few logits of about 1
    np.testing.assert_allclose(
        guide(conditional, unconditional, scale_of_weight(weight)),
        (1 + weight) * conditional - weight * unconditional,
        atol=3e-6,
    )
    assert weight_of_scale(scale_of_weight(weight)) == weight
    linear = Guidance(strength=3.0, schedule="linear", convention="weight").scales(4)
    np.testing.assert_allclose(linear, [1, 2, 3, 4], rtol=2e-7)


def test_an_adapter_is_guided_away_from_the_network_without_it():
    a, c, u = jax.random.normal(jax.random.key(1), (3, 2, 2, 2, 5))
    np.testing.assert_allclose(guide_adapted(a, c, u, 0.0, 0.0), a)
    np.testing.assert_allclose(guide_adapted(a, c, u, 2.0, 3.0), 3 * a + c - 3 * u, atol=3e-6)


def test_both_logits_come_from_one_call_of_twice_the_batch():
    calls = []

    def network(tokens, conditions):
        calls.append(tokens.shape)
        return (tokens * 10)[..., None] + conditions["class"][:, None, None, None]

    conditions = {"class": jnp.asarray([1.0, 2.0])}
    logits = both_at_once(network, conditions, {"class": jnp.asarray([9.0])})
    conditional, unconditional = logits(jnp.asarray([[[3]], [[4]]]), jnp.asarray(0))
    assert calls == [(4, 1, 1)]
    assert conditional.ravel().tolist() == [31, 42]
    assert unconditional.ravel().tolist() == [39, 49]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "0 or more"),
        ({"strength": 3.0, "power": 2.0}, "is for power_cosine"),
        ({"strength": 3.0, "schedule": "power_cosine"}, "needs it"),
        ({"strength": 3.0, "schedule": "power_cosine", "power": 0.0}, "above 0"),
    ],
)
def test_guidance_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Guidance(**options)


def test_schedules_run_inside_jit():
    t = jnp.linspace(0, 1, 5)
    schedule = mask_schedule("sigmoid", {"tau": 0.7})
    np.testing.assert_allclose(jax.jit(schedule)(t), schedule(t), atol=1e-7)
