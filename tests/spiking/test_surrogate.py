import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.errors import ConfigError
from jaxkit.spiking.surrogate import (
    SURROGATES,
    arctan,
    boxcar,
    fast_sigmoid,
    gaussian,
    sigmoid,
    straight_through,
    surrogate_named,
    triangular,
)

# the derivatives by hand, where they are simple: (surrogate, x, derivative)
BY_HAND = [
    (arctan(2.0), [0.0, 1 / np.pi, -1 / np.pi], [1.0, 0.5, 0.5]),
    (arctan(4.0), [0.0, 0.5 / np.pi], [2.0, 1.0]),
    (fast_sigmoid(25.0), [0.0, 0.04, -0.04, 0.36], [1.0, 0.25, 0.25, 0.01]),
    (sigmoid(4.0), [0.0, np.log(3) / 4, -np.log(3) / 4], [1.0, 0.75, 0.75]),
    (triangular(2.0), [0.0, 1.0, -1.0, 2.0, -3.0], [0.5, 0.25, 0.25, 0.0, 0.0]),
    (boxcar(0.5), [0.0, 0.2, -0.2, 0.3, -9.0], [2.0, 2.0, 2.0, 0.0, 0.0]),
    (gaussian(0.5), [0.0, 0.5], [0.7978846, 0.7978846 * np.exp(-0.5)]),
    (straight_through(), [-9.0, 0.0, 9.0], [1.0, 1.0, 1.0]),
]


def derivative(surrogate, x):
    return jax.vmap(jax.grad(lambda x: surrogate(x)))(jnp.asarray(x))


@pytest.mark.parametrize("name", SURROGATES)
def test_a_spike_is_fired_exactly_from_the_threshold_on(name):
    smallest = np.finfo(np.float32).tiny
    x = jnp.asarray([-jnp.inf, -1.0, -smallest, -0.0, 0.0, smallest, 1.0, jnp.inf])
    for dtype in (jnp.float32, jnp.bfloat16):
        spikes = SURROGATES[name]()(x.astype(dtype))
        assert spikes.dtype == dtype
        assert spikes.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert not SURROGATES[name]()(jnp.asarray([jnp.nan])).any()


@pytest.mark.parametrize(("surrogate", "x", "expected"), BY_HAND, ids=lambda value: getattr(value, "derivative", None))
def test_the_derivative_is_the_one_worked_out_by_hand(surrogate, x, expected):
    np.testing.assert_allclose(derivative(surrogate, x), expected, rtol=1e-6)


def test_the_derivative_is_that_of_a_smooth_step_in_torch():
    """The antiderivative of each, written in torch and differentiated by torch."""
    torch = pytest.importorskip("torch")
    smooth = {
        arctan(3.0): lambda x: torch.atan(torch.pi / 2 * 3.0 * x) / torch.pi,
        fast_sigmoid(10.0): lambda x: x / (1 + 10.0 * x.abs()),
        sigmoid(5.0): lambda x: torch.sigmoid(5.0 * x),
        triangular(0.7): lambda x: x.sign() * (1 - (1 - x.abs() / 0.7).clamp(min=0) ** 2) / 2,
        boxcar(0.6): lambda x: (x / 0.6).clamp(-0.5, 0.5),
        gaussian(0.4): lambda x: torch.erf(x / 0.4 / 2**0.5) / 2,
        straight_through(): lambda x: x,
    }
    x = np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32)
    for surrogate, step in smooth.items():
        there = torch.tensor(x, requires_grad=True)
        (expected,) = torch.autograd.grad(step(there).sum(), there)
        # float32 on both sides, with differences of nearly equal numbers in the tails: a few of its last digits
        np.testing.assert_allclose(derivative(surrogate, x), expected, rtol=1e-5, atol=1e-6, err_msg=str(surrogate))


@pytest.mark.parametrize("name", SURROGATES)
def test_forward_and_reverse_mode_give_the_same_derivative(name):
    surrogate, x = SURROGATES[name](), jnp.linspace(-2, 2, 41)
    _, forward = jax.jvp(surrogate, (x,), (jnp.ones_like(x),))
    np.testing.assert_array_equal(forward, derivative(surrogate, x))


@pytest.mark.parametrize("name", sorted(set(SURROGATES) - {"straight_through"}))
def test_far_from_the_threshold_the_derivative_is_finite_and_vanishes(name):
    far = derivative(SURROGATES[name](), [-1e30, 1e30, -jnp.inf, jnp.inf])
    np.testing.assert_array_equal(far, 0)


def test_equal_surrogates_are_equal_and_compile_once():
    assert arctan(2.0) == arctan()
    assert hash(arctan(2.0)) == hash(arctan())
    assert arctan(2.0) != arctan(3.0)
    assert triangular(1.0) != boxcar(1.0)
    traced = []

    def fire(surrogate, x):
        traced.append(surrogate)
        return surrogate(x)

    compiled = jax.jit(fire, static_argnums=0)
    for surrogate in (arctan(2.0), arctan(2.0), arctan(3.0)):
        compiled(surrogate, jnp.ones(2))
    assert traced == [arctan(2.0), arctan(3.0)]


def test_a_surrogate_is_found_by_its_name():
    assert surrogate_named("triangular")(width=0.5) == triangular(0.5)


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'arctg' is no surrogate gradient, did you mean 'arctan'\?; one of arctan"):
        surrogate_named("arctg")


@pytest.mark.parametrize("sharpness", [0.0, -1.0, float("nan")])
def test_a_sharpness_must_be_above_zero(sharpness):
    with pytest.raises(ValueError, match="slope or width must be above 0, got"):
        arctan(sharpness)
