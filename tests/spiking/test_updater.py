"""Bounds, several rules on one parameter, norms and limits."""

import warnings
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.spiking.plasticity import Clamping, Normalization, Updater, bounds

PARAM = jnp.asarray([0.0, 0.2, 0.5, 1.0])
POS = jnp.asarray([0.1, 0.2, 0.3, 0.4])
NEG = jnp.asarray([0.4, 0.3, 0.2, 0.1])
HALVES = {
    "power": {"power": 1.5},
    "scaled_power": {"power": 0.5, "range": 1.0},
    "multiplicative": {},
    "scaled_multiplicative": {"range": 1.0},
    "sharp": {},
}


@pytest.fixture
def functional():
    """Inferno's functions, and torch."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("inferno")
        from inferno import functional

    return functional, lambda x: torch.from_numpy(np.array(x))


@pytest.mark.parametrize("side", ["upper", "lower"])
@pytest.mark.parametrize("kind", HALVES)
def test_half_bounds_are_infernos(functional, kind, side):
    theirs, tensor = functional
    name, limit = f"bound_{side}_{kind}", 1.0 if side == "upper" else 0.0
    expected = getattr(theirs, name)(tensor(PARAM), tensor(POS), limit, **HALVES[kind])
    np.testing.assert_allclose(getattr(bounds, name)(PARAM, POS, limit, **HALVES[kind]), expected, rtol=1e-6)


@pytest.mark.parametrize("limits", [(1.0, 0.0), (1.0, None), (None, 0.0), (None, None)])
@pytest.mark.parametrize("kind", ["multiplicative", "sharp"])
def test_full_bounds_are_infernos(functional, kind, limits):
    theirs, tensor = functional
    expected = getattr(theirs, f"bound_{kind}")(tensor(PARAM), tensor(POS), tensor(NEG), *limits)
    found = getattr(bounds, f"bound_{kind}")(PARAM, POS, NEG, *limits)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_scaled_multiplicative_full_bounds_are_infernos(functional):
    theirs, tensor = functional
    expected = theirs.bound_scaled_multiplicative(tensor(PARAM), tensor(POS), tensor(NEG), 2.0, -1.0)
    found = bounds.bound_scaled_multiplicative(PARAM, POS, NEG, 2.0, -1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_full_bounds_by_a_power_which_inferno_fails_at_are_their_equations():
    p, pos, neg = (np.asarray(x, np.float64) for x in (PARAM, POS, NEG))
    powers = {"upper_power": 2.0, "lower_power": 0.5}
    expected = (2 - p) ** 2 * pos - (p + 1) ** 0.5 * neg
    np.testing.assert_allclose(bounds.bound_power(PARAM, POS, NEG, 2.0, -1.0, **powers), expected, rtol=1e-6, atol=1e-7)
    expected = ((2 - p) / 3) ** 2 * pos - ((p + 1) / 3) ** 0.5 * neg
    found = bounds.bound_scaled_power(PARAM, POS, NEG, 2.0, -1.0, **powers)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(bounds.bound_power(PARAM, POS, NEG, **powers), pos - neg, rtol=1e-6)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_beyond_a_limit_a_power_turns_updates_around(power):
    beyond = jnp.asarray([1.3])
    assert bounds.bound_upper_power(beyond, jnp.ones(1), 1.0, power=power) < 0
    assert bounds.bound_lower_power(-beyond, jnp.ones(1), -1.0, power=power) < 0


def test_at_a_sharp_limit_updates_stop():
    np.testing.assert_allclose(bounds.bound_sharp(PARAM, POS, NEG, 1.0, 0.0), [0.1, -0.1, 0.1, -0.1], rtol=1e-6)


def test_half_bounds_make_a_full_one():
    upper = partial(bounds.bound_upper_multiplicative, limit=1.0)
    found = bounds.HalfBounds(upper=upper)(PARAM, POS, NEG)
    np.testing.assert_allclose(found, bounds.bound_multiplicative(PARAM, POS, NEG, 1.0), rtol=1e-6)
    lower = partial(bounds.bound_lower_sharp, limit=0.0)
    np.testing.assert_allclose(
        bounds.HalfBounds(lower=lower)(PARAM, POS, NEG), bounds.bound_sharp(PARAM, POS, NEG, min=0.0), rtol=1e-6
    )


def test_what_several_rules_say_adds_up_and_other_parameters_stay():
    params = {"weight": PARAM, "delay": NEG}
    found = Updater()(params, {"weight": (POS, NEG)}, {"weight": (NEG, NEG)})
    np.testing.assert_allclose(found["weight"], PARAM + POS + NEG - 2 * NEG, rtol=1e-6, atol=1e-7)
    assert found["delay"] is NEG
    greatest = Updater(reduction=jnp.max)(params, {"weight": (POS, NEG)}, {"weight": (NEG, POS)})["weight"]
    np.testing.assert_allclose(greatest, PARAM, atol=1e-7)


def test_each_parameter_has_its_own_bound():
    updater = Updater(weight=partial(bounds.bound_multiplicative, max=1.0, min=0.0))
    found = updater({"weight": PARAM, "delay": PARAM}, {"weight": (POS, NEG)}, {"delay": (POS, NEG)})
    np.testing.assert_allclose(found["weight"], PARAM + (1 - PARAM) * POS - PARAM * NEG, rtol=1e-6)
    np.testing.assert_allclose(found["delay"], PARAM + POS - NEG, rtol=1e-6)


def test_updates_of_what_is_not_there_are_refused():
    with pytest.raises(ValueError, match="updates of delay, but the parameters are weight"):
        Updater()({"weight": PARAM}, {"delay": (POS, NEG)})


@pytest.mark.parametrize("dim", [None, 0, 1, (0, 1)])
@pytest.mark.parametrize("order", [1, 2, 2.5, float("inf"), -float("inf")])
def test_normalization_is_torchs(order, dim):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    x[1] = 0
    every = tuple(range(2)) if dim is None else dim
    expected = 0.7 * torch.nn.functional.normalize(torch.from_numpy(x), p=order, dim=every, eps=1e-12)
    found = Normalization(order=order, scale=0.7, dim=dim)({"weight": jnp.asarray(x)})["weight"]
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_clamping_keeps_a_parameter_between_its_limits():
    params = {"weight": PARAM, "delay": PARAM}
    found = Clamping(attr="delay", min=0.1, max=0.6)(params)
    np.testing.assert_allclose(found["delay"], [0.1, 0.2, 0.5, 0.6], rtol=1e-6)
    assert found["weight"] is PARAM
    np.testing.assert_allclose(Clamping(max=0.6)(params)["weight"], [0.0, 0.2, 0.5, 0.6], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Clamping, "needs min or max"),
        (lambda: Clamping(min=1.0, max=1.0), "min must be below max"),
        (lambda: Normalization(order=0.0, scale=1.0, dim=None), "must not be 0"),
    ],
)
def test_hooks_refuse_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
