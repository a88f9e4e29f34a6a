import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxkit.errors import ConfigError
from jaxkit.losses.diffusion import denoising_loss, draw_noise, min_snr_weights

SHAPE = (4, 3, 3, 2)


def maps(seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=SHAPE), jnp.float32)


def test_an_example_s_noise_is_its_own_on_any_number_of_devices():
    shape = (3, 3, 2)
    keys = jax.random.split(jax.random.PRNGKey(5), 8)
    whole = draw_noise(keys, shape, 1000)
    mesh = jax.make_mesh((8,), ("data",), devices=jax.devices()[:8])
    spread = jax.device_put(keys, NamedSharding(mesh, PartitionSpec("data")))
    for drawn in (
        jax.jit(draw_noise, static_argnums=(1, 2))(spread, shape, 1000),
        jax.tree.map(lambda x: x[::-1], draw_noise(keys[::-1], shape, 1000)),
    ):
        # compiled, the inverse error function may end on another last digit
        np.testing.assert_allclose(drawn.noise, whole.noise, atol=1e-6)
        np.testing.assert_array_equal(drawn.timesteps, whole.timesteps)
    assert len(np.unique(whole.noise[:, 0, 0, 0])) == 8


def test_noise_is_normal_and_every_time_step_is_drawn():
    draw = draw_noise(jax.random.split(jax.random.PRNGKey(0), 400), (8, 8, 1), 10)
    # 25600 numbers: four standard errors
    assert abs(float(draw.noise.mean())) < 0.025
    assert abs(float(draw.noise.std()) - 1) < 0.02
    assert set(np.asarray(draw.timesteps).tolist()) == set(range(10))


def test_weighted_losses_of_every_form_are_one_loss_of_the_image():
    # an error e of ε is √SNR⁻¹ e of x_0, one of v is √(SNR + 1)⁻¹ e
    snr = jnp.asarray([0.01, 1.0, 5.0, 400.0])
    of = lambda kind: min_snr_weights(snr, kind)  # noqa: E731
    np.testing.assert_allclose(of("sample"), [0.01, 1, 5, 5], rtol=1e-6)
    np.testing.assert_allclose(of("epsilon") * snr, of("sample"), rtol=1e-6)
    np.testing.assert_allclose(of("v_prediction") * (snr + 1), of("sample"), rtol=1e-6)


def test_no_signal_at_all_has_finite_weights():
    zero = jnp.zeros(1)
    assert [float(min_snr_weights(zero, kind)[0]) for kind in ("epsilon", "v_prediction", "sample")] == [1, 0, 0]
    with pytest.raises(ConfigError, match="snr_gamma: must be above 0"):
        min_snr_weights(zero, "epsilon", 0.0)


def test_the_loss_is_a_weighted_mean_over_what_the_mask_shows():
    prediction, target, weight = maps(0), maps(1), jnp.asarray([1.0, 2.0, 0.5, 0.0])
    error = np.square(np.asarray(prediction - target))
    # sums of 18 numbers, in another order
    np.testing.assert_allclose(denoising_loss(prediction, target), error.mean((1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(
        denoising_loss(prediction, target, weight=weight), weight * error.mean((1, 2, 3)), rtol=1e-6
    )
    mask = jnp.zeros(SHAPE[:3]).at[:, 0].set(1.0)
    np.testing.assert_allclose(denoising_loss(prediction, target, mask=mask), error[:, 0].mean((1, 2)), rtol=1e-6)


def test_a_hidden_example_costs_nothing_and_has_no_gradient():
    broken = maps(0).at[1].set(jnp.inf)
    mask = jnp.ones(SHAPE[:3]).at[1].set(0.0)
    assert denoising_loss(broken, maps(1), mask=mask)[1] == 0
    gradient = jax.grad(lambda p: denoising_loss(p, maps(1), mask=mask).sum())(maps(0))
    assert not np.any(gradient[1])
    assert np.all(np.isfinite(gradient))


def test_half_precision_is_compared_in_float32():
    prediction = jnp.full(SHAPE, 300.0, jnp.float16)
    # 90000 is beyond float16
    np.testing.assert_allclose(denoising_loss(prediction, jnp.zeros(SHAPE, jnp.float16)), 90000.0)
