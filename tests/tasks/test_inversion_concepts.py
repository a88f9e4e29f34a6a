import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.errors import ConfigError
from jaxkit.tasks import concepts

pytestmark = pytest.mark.level(1)

SIDE = 8


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), np.uint8)


def encode(vae, images):
    """Latents of two pixels a side, which know left from right."""
    return images[:, ::2, ::2] * vae, images[:, ::2, 1::2] - 1


def test_moments_are_those_of_every_picture_and_its_mirror_image():
    given = [pictures(9), pictures(3, seed=1)]
    found = concepts.moments(encode, jnp.float32(3), given, mirrored=True)
    assert found["mean"].shape == (2, 2, 9, SIDE // 2, SIDE // 2, 3)
    for c, array in enumerate(given):
        for mirror in (0, 1):
            seen = array[:, :, ::-1] if mirror else array
            mean, logvar = encode(3, seen.astype(np.float32) / 127.5 - 1)
            np.testing.assert_allclose(found["mean"][c, mirror, : len(array)], mean, atol=1e-6)
            np.testing.assert_allclose(found["logvar"][c, mirror, : len(array)], logvar, atol=1e-6)
    # of the concept of less pictures the first fills up
    np.testing.assert_array_equal(found["mean"][1, 0, 3:], np.repeat(found["mean"][1, 0, :1], 6, axis=0))
    assert concepts.moments(encode, 3, given, mirrored=False)["mean"].shape[1] == 1


def test_a_latent_counts_as_much_as_its_pixels_do_on_average():
    mask = np.zeros((1, SIDE, SIDE), np.float32)
    mask[0, 0, :3] = 1
    found = concepts.masks([mask, None], [1, 1], SIDE, 2, mirrored=True)
    assert found.shape == (2, 2, 1, 4, 4)
    np.testing.assert_array_equal(found[0, 0, 0, 0], [0.5, 0.25, 0, 0])
    np.testing.assert_array_equal(found[0, 1, 0, 0], [0, 0, 0.25, 0.5])
    assert (found[1] == 1).all()
    assert concepts.masks([None], [3], SIDE, 2, mirrored=False) is None


def test_a_mask_that_hides_a_whole_picture_is_refused():
    with pytest.raises(ConfigError, match=r"data.masks: hide all"):
        concepts.masks([np.zeros((1, SIDE, SIDE), np.float32)], [1], SIDE, 2, mirrored=False)


def drawn(count, keys, flip=0.5, captions=False):
    ids = jnp.arange(count * 5 * 4).reshape(count, 5, 4)
    picture = jnp.arange(len(keys) * count).reshape(len(keys), count) % 5
    return concepts.drawn({"ids": [ids]}, picture, keys, flip, captions)


def test_what_an_example_of_a_concept_draws_is_a_function_of_its_key_alone():
    keys = jax.random.split(jax.random.PRNGKey(0), 6)
    one, both, turned = drawn(1, keys), drawn(2, keys), drawn(1, keys[::-1])
    np.testing.assert_array_equal(both.key_noise[::2], one.key_noise)
    np.testing.assert_array_equal(both.place[1][::2], one.place[1])
    np.testing.assert_array_equal(turned.key_latents[::-1], one.key_latents)
    assert len(np.unique(np.concatenate([both.key_noise, both.key_latents]), axis=0)) == 24
    np.testing.assert_array_equal(both.place[0], [0, 1] * 6)


def test_mirrors_and_texts_are_drawn_alike_and_captions_are_the_pictures_own():
    keys = jax.random.split(jax.random.PRNGKey(1), 2000)
    found = drawn(1, keys, flip=0.25)
    # four standard errors
    assert abs(float(found.place[1].mean()) - 0.25) < 0.04
    counts = np.bincount(np.asarray(found.ids[0][:, 0]) // 4, minlength=5)
    assert (abs(counts / 2000 - 0.2) < 0.036).all()
    own = drawn(1, keys[:7], flip=0.0, captions=True)
    np.testing.assert_array_equal(own.ids[0][:, 0] // 4, own.place[2])
    assert not own.place[1].any()
