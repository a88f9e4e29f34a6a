import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxkit.data import DataError
from jaxkit.data import augment as module
from jaxkit.data.augment import (
    AUGMENTATIONS,
    NORMALIZATIONS,
    make_augment,
    make_preprocess,
    rotate,
    rotation_table,
)
from jaxkit.schema.data import Augment, Digits, Normalize

augment = jax.jit(module.augment, static_argnums=2)
normalize = jax.jit(module.normalize, static_argnums=(1, 2))


def keys(count, seed=0):
    return jax.random.key_data(jax.random.split(jax.random.key(seed), count))


def noise(*shape):
    """Pixels that are never 0, so that every zero of a result was filled in."""
    return np.random.default_rng(0).integers(1, 256, shape, np.uint8)


def config(**fields):
    return Digits(name="digits", batch_size=4, **fields)


def distinct(height, width):
    """An image whose every pixel is different, so that where a pixel came from can be read off it."""
    return np.arange(1, height * width + 1, dtype=np.float32).reshape(height, width, 1)


@pytest.mark.parametrize(
    ("height", "width"), [(8, 8), (32, 32), (33, 33), (64, 64), (31, 47), (48, 20), (1, 5), (224, 160)]
)
def test_rotation_is_pillows_pixel_for_pixel(height, width):
    image = noise(height, width, 3)
    drawn = np.random.default_rng(1).uniform(-180, 180, 60)
    degrees = np.concatenate([drawn, [0, 15, -15, 20, -20, 30, 45, 60, 90, -90, 180, -180, 1e-9]])
    rotated = jax.jit(jax.vmap(rotate, (None, 0)))(image, rotation_table(degrees, height, width))
    for angle, ours in zip(degrees, np.asarray(rotated), strict=True):
        theirs = Image.fromarray(image).rotate(angle, Image.Resampling.NEAREST, fillcolor=0)
        np.testing.assert_array_equal(ours, np.asarray(theirs), err_msg=f"{angle} degrees")


def test_a_crop_is_a_window_of_the_padded_image_and_every_window_is_equally_likely():
    image, padding, count = distinct(5, 7), 2, 5000
    crops = np.asarray(augment(keys(count), np.broadcast_to(image, (count, 5, 7, 1)), Augment(crop_padding=padding)))
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    windows = {padded[y : y + 5, x : x + 7].tobytes(): 0 for y in range(5) for x in range(5)}
    assert len(windows) == 25
    for crop in crops:
        windows[crop.tobytes()] += 1
    # 5 standard deviations of a count of probability 1/25.
    assert max(abs(n - count / 25) for n in windows.values()) < 5 * np.sqrt(count * 24 / 25**2)


def test_a_flip_mirrors_the_columns_with_its_probability():
    image, count = distinct(3, 4), 4000
    images = np.asarray(augment(keys(count), np.broadcast_to(image, (count, 3, 4, 1)), Augment(flip=0.3)))
    flipped = (images == image[:, ::-1]).all(axis=(1, 2, 3))
    assert ((images == image).all(axis=(1, 2, 3)) ^ flipped).all()
    # 5 standard deviations of a share of probability 0.3.
    assert abs(flipped.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / count)


@pytest.mark.parametrize(("flip", "expected"), [(0.0, slice(None)), (1.0, slice(None, None, -1))])
def test_flip_0_never_mirrors_and_flip_1_always_does(flip, expected):
    images = noise(50, 3, 4, 3)
    np.testing.assert_array_equal(augment(keys(50), images, Augment(flip=flip)), images[:, :, expected])


def test_angles_are_uniform_between_minus_and_plus_the_rotation():
    count, size = 3000, 65
    # One bright pixel at the right end of the middle row turns to where its angle can be measured.
    image = np.zeros((size, size, 1), np.uint8)
    image[30:35, 60:65] = 1
    rotated = np.asarray(augment(keys(count), np.broadcast_to(image, (count, *image.shape)), Augment(rotation=30)))
    rows, columns = np.arange(size)[:, None] - 32, np.arange(size)[None] - 32
    spots = rotated[..., 0]
    angles = np.degrees(np.arctan2(-(spots * rows).sum((1, 2)), (spots * columns).sum((1, 2))))
    # Nearest pixels place the spot's centre to within a fraction of a degree.
    assert abs(angles).max() < 31
    share = np.histogram(angles, bins=6, range=(-30, 30))[0] / count
    # 5 standard deviations of a share of probability 1/6, and the edge that a fraction of a degree moves.
    assert np.abs(share - 1 / 6).max() < 5 * np.sqrt(5 / 36 / count) + 0.01


def test_one_gather_equals_a_crop_then_a_flip_then_a_rotation():
    # The draws are not shown, so the result is looked for among all crops, flips and angles there are.
    image, padding, rotation = noise(8, 8, 3), 1, 90.0
    turns = jax.jit(jax.vmap(rotate, (None, 0)))
    changed = np.asarray(
        augment(keys(40), np.broadcast_to(image, (40, 8, 8, 3)), Augment(crop_padding=1, flip=0.5, rotation=rotation))
    )
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    degrees = np.linspace(-1, 1, 2 * 4096 + 1)[1::2] * rotation
    candidates = set()
    for y in range(3):
        for x in range(3):
            for step in (1, -1):
                window = np.ascontiguousarray(padded[y : y + 8, x : x + 8][:, ::step])
                turned = turns(window, rotation_table(degrees, 8, 8))
                candidates |= {each.tobytes() for each in np.asarray(turned)}
    assert all(each.tobytes() in candidates for each in changed)
    assert len({each.tobytes() for each in changed}) > 30


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_dtype_is_kept_and_no_change_returns_the_images(dtype):
    images = noise(4, 6, 5, 2).astype(dtype)
    assert augment(keys(4), images, AUGMENTATIONS["cifar"]).dtype == dtype
    np.testing.assert_array_equal(augment(keys(4), images, AUGMENTATIONS["none"]), images)


def test_an_example_is_changed_by_its_own_key_alone():
    images, draws = noise(16, 9, 9, 3), keys(16)
    together = np.asarray(augment(draws, images, AUGMENTATIONS["cifar"]))
    backwards = np.asarray(augment(draws[::-1], images[::-1], AUGMENTATIONS["cifar"]))[::-1]
    alone = np.concatenate([augment(draws[i : i + 1], images[i : i + 1], AUGMENTATIONS["cifar"]) for i in range(16)])
    np.testing.assert_array_equal(together, backwards)
    np.testing.assert_array_equal(together, alone)
    assert (np.asarray(augment(keys(16, seed=1), images, AUGMENTATIONS["cifar"])) != together).any()


def test_augmentation_over_eight_devices_equals_one_device_bit_for_bit():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    by_example = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    images, draws = noise(16, 8, 8, 3), keys(16)
    apply = jax.jit(make_augment(config(augment="cifar", normalize="imagenet"), (8, 8, 3)))
    one = apply(draws, {"image": images})["image"]
    sharded = apply(jax.device_put(draws, by_example), {"image": jax.device_put(images, by_example)})["image"]
    np.testing.assert_array_equal(one, sharded)


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS.keys() - {"none"}))
def test_normalisation_is_torchvisions_to_tensor_and_normalize(name):
    images = noise(2, 5, 5, 3)
    values = NORMALIZATIONS[name]
    mean, std = (np.array(each, np.float32) for each in (values.mean, values.std))
    expected = (images / np.float32(255) - mean) / std
    # XLA may turn a division into a product with the reciprocal: an ulp of the values, which reach 2.7.
    np.testing.assert_allclose(normalize(images, values.mean, values.std), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(
        normalize(images / np.float32(255), values.mean, values.std), expected, atol=1e-6, rtol=0
    )


def test_the_recipes_are_those_of_the_original_training_scripts():
    assert AUGMENTATIONS["cifar"] == Augment(crop_padding=4, flip=0.5, rotation=15.0)
    assert AUGMENTATIONS["cifar_plain"] == Augment(crop_padding=4, flip=0.5, rotation=0.0)
    assert AUGMENTATIONS["tiny_imagenet"] == Augment(crop_padding=0, flip=0.5, rotation=20.0)
    assert NORMALIZATIONS["cifar100_repdistiller"].mean == (0.5071, 0.4867, 0.4408)
    assert NORMALIZATIONS["imagenet"].std == (0.229, 0.224, 0.225)


def test_a_custom_recipe_equals_the_named_one():
    named = make_augment(config(augment="cifar", normalize="imagenet"), (8, 8, 3))
    spelled = make_augment(
        config(
            augment=Augment(crop_padding=4, flip=0.5, rotation=15),
            normalize=Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ),
        (8, 8, 3),
    )
    batch = {"image": jnp.asarray(noise(4, 8, 8, 3))}
    np.testing.assert_array_equal(named(keys(4), batch)["image"], spelled(keys(4), batch)["image"])


def test_evaluation_is_not_augmented_and_the_rest_of_the_batch_is_untouched():
    batch = {
        "image": jnp.asarray(noise(4, 8, 8, 1)),
        "label": np.arange(4, dtype=np.int32),
        "mask": np.ones(4, np.float32),
    }
    evaluated = make_preprocess(config(augment="cifar"), (8, 8, 1))(batch)
    trained = make_augment(config(augment="cifar"), (8, 8, 1))(keys(4), batch)
    np.testing.assert_allclose(evaluated["image"], batch["image"] / 255, atol=1e-7)
    assert evaluated["image"].dtype == trained["image"].dtype == jnp.float32
    for result in (evaluated, trained):
        assert result["label"] is batch["label"]
        assert result["mask"] is batch["mask"]


def test_padding_is_black_before_normalisation():
    normalized = make_augment(config(augment=Augment(crop_padding=8), normalize="imagenet"), (8, 8, 3))(
        keys(20), {"image": jnp.asarray(noise(20, 8, 8, 3))}
    )["image"]
    black = np.array([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], np.float32)
    # Single precision of values near 2.
    assert (np.abs(normalized - black) < 1e-6).all(axis=-1).any(axis=(1, 2)).sum() >= 19


@pytest.mark.parametrize("make", [make_augment, make_preprocess])
def test_a_mean_with_another_number_of_channels_than_the_images_fails_before_any_batch(make):
    with pytest.raises(DataError, match=r"imagenet has 3 channels but the images of digits have 1"):
        make(config(normalize="imagenet"), (8, 8, 1))
    with pytest.raises(DataError, match=r"the mean has 1 channels but .* have 3"):
        make(config(normalize=Normalize(mean=(0.5,), std=(0.5,))), (8, 8, 3))


def test_new_keys_and_images_do_not_recompile():
    apply = jax.jit(make_augment(config(augment="cifar", normalize="cifar100"), (8, 8, 3)))
    for seed in range(4):
        apply(keys(4, seed), {"image": noise(4, 8, 8, 3) // (seed + 1)})
    assert apply._cache_size() == 1


def test_the_compiled_augmentation_never_calls_back_to_the_host():
    apply = jax.jit(make_augment(config(augment="cifar", normalize="cifar100"), (8, 8, 3)))
    assert "callback" not in apply.lower(keys(4), {"image": noise(4, 8, 8, 3)}).as_text()
