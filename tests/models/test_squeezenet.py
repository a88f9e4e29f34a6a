import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import apply, drawn, outputs, shapes, tensors, train

from jaxkit.models import build


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_squeezenet_has_as_many_tensors_as_published(name):
    # A stem, eight fire modules of three convolutions, and the head, each with its bias.
    assert tensors(name, 1000) == 2 * (1 + 8 * 3 + 1)


@pytest.mark.parametrize(
    ("name", "sides"), [("squeezenet1_0", [109, 54, 27, 13]), ("squeezenet1_1", [111, 55, 27, 13])]
)
def test_maps_are_rounded_up(name, sides):
    _, features = outputs(build(name, num_classes=3), 224)
    assert [features[name][1] for name in ("stem", "stage1", "stage2", "stage3")] == sides


def test_logits_are_averaged_behind_the_last_relu():
    model = build("squeezenet_tiny", num_classes=5)
    variables, images = drawn(model, 24)
    assert (apply(model, variables, images)[0] > 0).any()
    head = variables["params"]["head"] | {"bias": jnp.full(5, -1e6)}
    negative = {"params": variables["params"] | {"head": head}}
    np.testing.assert_array_equal(apply(model, negative, images)[0], np.zeros((2, 5)))


def test_dropout_hides_the_last_map_and_no_feature():
    model = build("squeezenet_tiny", num_classes=5, dropout_rate=1.0)
    variables, images = drawn(model, 24)
    logits, features = train(model, variables, images)
    expected = jax.nn.relu(variables["params"]["head"]["bias"])
    # An average of equal values.
    np.testing.assert_allclose(logits, jnp.broadcast_to(expected, (2, 5)), rtol=1e-6)
    assert (features["pre_logits"] > 0).any()


@pytest.mark.parametrize(
    ("name", "size"), [("squeezenet1_0", (21, 21)), ("squeezenet1_1", (17, 17)), ("squeezenet1_1", (32, 77))]
)
def test_images_of_other_sizes_have_the_same_weights(name, size):
    model = build(name, num_classes=3)
    assert shapes(model, *size) == shapes(model, 224)
    assert min(outputs(model, *size)[1]["stage3"]) >= 1


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("squeezenet1_0", (20, 224), "at least 21 x 21 pixels, got 20 x 224"),
        ("squeezenet1_1", (32, 16), "at least 17 x 17 pixels, got 32 x 16"),
    ],
)
def test_images_of_which_no_map_would_be_left_are_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        shapes(build(name, num_classes=3), *size)
