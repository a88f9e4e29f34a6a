import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import apply, drawn, outputs, shapes, tensors, train

from jaxkit.models import build


def test_vgg19_with_norms_has_as_many_tensors_as_published():
    assert tensors("vgg19_bn", 100) == 118


@pytest.mark.parametrize(("height", "last"), [(32, 4), (48, 6), (64, 4), (65, 8), (96, 12)])
def test_repdistillers_map_is_halved_a_fourth_time_at_64_pixels_and_at_no_other_size(height, last):
    logits, features = outputs(build("vgg13_repdistiller", num_classes=100), height)
    assert logits == (2, 100)
    assert features["stage3"] == (2, height // 8, height // 8, 512)
    assert features["stage4"] == (2, last, last, 512)


def test_features_are_the_blocks_maps_before_they_are_halved():
    _, features = outputs(build("vgg16", num_classes=3), 64)
    sides = {name: shape[1:] for name, shape in features.items()}
    assert sides == {
        "stem": (64, 64, 64),
        "stage1": (32, 32, 128),
        "stage2": (16, 16, 256),
        "stage3": (8, 8, 512),
        "stage4": (4, 4, 512),
        "pre_logits": (4096,),
    }


def test_an_image_reduced_to_one_value_weighs_every_place_of_the_first_hidden_layer_alike():
    model = build("vgg_tiny", num_classes=3)
    variables, images = drawn(model, 8)
    kernel = variables["params"]["dense1"]["kernel"]
    flat = variables["params"]["dense1"] | {"kernel": jnp.broadcast_to(kernel.mean((0, 1)), kernel.shape)}
    same = {"params": variables["params"] | {"dense1": flat}}

    logits, _ = apply(model, variables, images)
    assert logits.std() > 0.1
    # Sums of 49 float32 values in another order.
    np.testing.assert_allclose(apply(model, same, images)[0], logits, rtol=1e-5, atol=1e-5)


def test_dropout_hides_both_hidden_layers():
    model = build("vgg_tiny", num_classes=3, dropout_rate=1.0)
    variables, images = drawn(model, 16)
    logits, features = train(model, variables, images)
    params = variables["params"]
    hidden = jax.nn.relu(params["dense2"]["bias"])
    np.testing.assert_array_equal(features["pre_logits"], jnp.broadcast_to(hidden, (2, 8)))
    np.testing.assert_array_equal(logits, jnp.broadcast_to(params["head"]["bias"], (2, 3)))


@pytest.mark.parametrize("size", [(32, 32), (40, 57), (224, 224)])
@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn", "vgg11_sween", "vgg11_repdistiller"])
def test_images_of_other_sizes_have_the_same_weights(name, size):
    model = build(name, num_classes=3)
    assert shapes(model, *size) == shapes(model, 32)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vgg16", (31, 64), "at least 32 x 32 pixels, got 31 x 64"),
        ("vgg16_sween", (64, 16), "at least 32 x 32 pixels, got 64 x 16"),
        ("vgg16_repdistiller", (7, 7), "at least 8 x 8 pixels, got 7 x 7"),
        ("vgg16_repdistiller", (64, 8), "at least 16 x 16 pixels, got 64 x 8"),
    ],
)
def test_images_of_which_no_map_would_be_left_are_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        shapes(build(name, num_classes=3), *size)
