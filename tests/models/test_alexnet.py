import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import drawn, outputs, shapes, tensors, train

from jaxkit.models import build


def test_alexnet_for_cifar_has_as_many_tensors_as_published():
    assert tensors("alexnet_tfkd", 100) == tensors("alexnet_sween", 10) == 12


def test_the_maps_of_an_imagenet_image_have_the_published_sides():
    _, features = outputs(build("alexnet", num_classes=3), 224)
    assert [features[name][1] for name in ("stem", "stage1", "stage2")] == [27, 13, 6]


def test_the_map_of_a_cifar_image_ends_as_a_single_value():
    _, features = outputs(build("alexnet_tfkd", num_classes=3), 32)
    assert [features[name][1] for name in ("stem", "stage1", "stage2")] == [4, 2, 1]


def test_dropout_hides_the_map_and_the_first_hidden_layer_but_not_the_second():
    model = build("alexnet_tiny", num_classes=3, dropout_rate=1.0)
    variables, images = drawn(model, 64)
    logits, features = train(model, variables, images)
    params = variables["params"]
    hidden = jax.nn.relu(params["dense2"]["bias"])
    np.testing.assert_array_equal(features["pre_logits"], jnp.broadcast_to(hidden, (2, 8)))
    expected = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    # A sum of 8 products.
    np.testing.assert_allclose(logits, jnp.broadcast_to(expected, (2, 3)), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "other"),
    [
        ("alexnet", (63, 63), 224),
        ("alexnet", (80, 300), 224),
        ("alexnet_tfkd", (29, 29), 32),
        ("alexnet_tfkd", (64, 47), 32),
    ],
)
def test_images_of_other_sizes_have_the_same_weights(name, size, other):
    model = build(name, num_classes=3)
    assert shapes(model, *size) == shapes(model, other)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("alexnet", (62, 224), "at least 63 x 63 pixels, got 62 x 224"),
        ("alexnet", (32, 32), "at least 63 x 63 pixels, got 32 x 32"),
        ("alexnet_sween", (32, 28), "at least 29 x 29 pixels, got 32 x 28"),
    ],
)
def test_images_of_which_no_map_would_be_left_are_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        shapes(build(name, num_classes=3), *size)
