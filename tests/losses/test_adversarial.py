import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from jaxkit.losses.adversarial import (
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    non_saturating_discriminator,
    non_saturating_generator,
    r1_penalty,
)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


REAL, FAKE = draw(3, 2, 4, 1), draw(3, 2, 4, 1, seed=1)


def each(values):
    return values.mean((1, 2, 3))


def test_the_hinge_is_zero_where_real_and_fake_are_two_apart():
    expected = each(0.5 * (np.maximum(0, 1 - np.asarray(REAL)) + np.maximum(0, 1 + np.asarray(FAKE))))
    np.testing.assert_allclose(hinge_discriminator(REAL, FAKE), expected, rtol=1e-6)
    assert not hinge_discriminator(1 + abs(REAL), -1 - abs(FAKE)).any()
    np.testing.assert_allclose(hinge_generator(FAKE), -each(FAKE), rtol=1e-6)


def test_the_non_saturating_losses_are_cross_entropies():
    def entropy(logits, target):
        logits = torch.from_numpy(np.array(logits))
        found = binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="none")
        return each(found.numpy())

    expected = entropy(REAL, 1) + entropy(FAKE, 0)
    np.testing.assert_allclose(non_saturating_discriminator(REAL, FAKE), expected, rtol=1e-5)
    np.testing.assert_allclose(non_saturating_generator(FAKE), entropy(FAKE, 1), rtol=1e-5)


@pytest.mark.parametrize("loss", [hinge_generator, non_saturating_generator])
def test_the_generator_raises_logits_that_the_discriminator_lowers(loss):
    discriminator = {
        hinge_generator: hinge_discriminator,
        non_saturating_generator: non_saturating_discriminator,
    }[loss]
    weak = 0.5 * jnp.tanh(FAKE)
    up = jax.grad(lambda fake: loss(fake).sum())(weak)
    down = jax.grad(lambda fake: discriminator(REAL, fake).sum())(weak)
    assert (up < 0).all()
    assert (down > 0).all()


def test_r1_is_half_the_squared_gradient_of_each_image():
    images, a = draw(3, 4, 5, 2), draw(4, 5, 2, seed=2)
    found = r1_penalty(lambda x: (a * x**2).sum(-1), images)
    np.testing.assert_allclose(found, 0.5 * ((2 * a * images) ** 2).sum((1, 2, 3)), rtol=1e-5)


def decode(kernel, features):
    return jnp.einsum("bhwi,io->bhwo", features, kernel)


@pytest.fixture
def layer():
    features, target = draw(8, 3, 4, 5, seed=3), draw(8, 3, 4, 2, seed=4)
    return draw(5, 2, seed=5), features, target


def test_the_adaptive_weight_is_the_ratio_of_the_gradients_at_the_last_layer(layer):
    kernel, features, target = layer

    def reconstruction(images):
        return abs(images - target).mean()

    def adversarial(images):
        return -jnp.tanh(images).mean()

    def norm(loss):
        return np.linalg.norm(jax.grad(lambda kernel: loss(decode(kernel, features)))(kernel))

    found = adaptive_weight(lambda kernel: decode(kernel, features), kernel, reconstruction, adversarial)
    np.testing.assert_allclose(found, norm(reconstruction) / (norm(adversarial) + 1e-4), rtol=1e-5)


def test_the_adaptive_weight_is_bounded_and_has_no_gradient(layer):
    kernel, features, _ = layer

    def weight(kernel):
        images_of = lambda kernel: decode(kernel, features)  # noqa: E731
        return adaptive_weight(images_of, kernel, lambda x: (x**2).sum(), lambda x: 0 * x.sum(), largest=3.0)

    assert weight(kernel) == 3
    assert not jax.grad(weight)(kernel).any()


def test_eight_devices_weigh_by_the_gradients_of_the_whole_batch(layer):
    kernel, features, _ = layer

    def weight(features, axis_name=None):
        return adaptive_weight(
            lambda kernel: decode(kernel, features),
            kernel,
            lambda x: (x**2).mean(),
            lambda x: jnp.tanh(x).mean(),
            axis_name=axis_name,
        )

    found = jax.pmap(lambda part: weight(part, "data"), "data")(features[:, None])
    np.testing.assert_allclose(found, np.full(8, weight(features)), rtol=1e-5)
