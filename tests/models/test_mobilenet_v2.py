import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from interop import reference
from jaxkit.models import build

pytestmark = pytest.mark.level(1)

TINY = ["mobilenet_v2_tiny", "mobilenet_v2_tiny_tfkd", "mobile_tiny"]


def shapes(model, size):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


def maps(name, side):
    """The sides of the maps after the stem and each stage."""
    model = build(name, num_classes=3)
    x = jnp.zeros((1, side, side, 3))
    features = jax.eval_shape(lambda key: model.init_with_output(key, x)[0][1], jax.random.key(0))
    return [features[stage].shape[1] for stage in ("stem", *(f"stage{i}" for i in range(1, 8)))]


def images(scale=1.0, n=4):
    return jnp.asarray(np.random.default_rng(0).normal(0, scale, (n, 16, 16, 3)), jnp.float32)


def initialised(name, **fields):
    model = build(name, num_classes=3, **fields)
    return model, jax.jit(model.init)(jax.random.key(0), images())


def test_the_state_dict_of_teacher_free_distillation_has_as_many_tensors_as_published():
    with torch.device("meta"):
        assert len(reference.build("mobilenet_v2_tfkd", 100, (32, 32, 3)).state_dict()) == 373


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (33, 47)])
def test_images_of_any_size_are_served_by_the_same_parameters(name, size):
    model = build(name, num_classes=3)
    assert shapes(model, size) == shapes(model, (16, 16))


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("mobilenet_v2", 224, [112, 112, 56, 28, 14, 14, 7, 7]),
        ("mobilenet_v2_tfkd", 32, [34, 34, 17, 9, 5, 5, 5, 5]),
        ("mobile_half", 32, [16, 16, 16, 8, 4, 4, 2, 2]),
    ],
)
def test_the_maps_shrink_as_in_the_published_networks(name, side, expected):
    assert maps(name, side) == expected


def test_the_padded_stem_of_the_reference_has_a_border_of_its_bias():
    model, variables = initialised("mobilenet_v2_tiny_tfkd")
    stem = model.apply(variables, images())[1]["stem"]
    # Norms begin with statistics 0 and 1: they divide by the root of 1 + 1e-5.
    border = np.clip(variables["params"]["conv_stem"]["bias"] / np.sqrt(1 + 1e-5), 0, 6)
    for edge in stem[:, 0], stem[:, -1], stem[:, :, 0], stem[:, :, -1]:
        np.testing.assert_allclose(edge, np.broadcast_to(border, edge.shape), rtol=1e-6)

    plain = model.clone(compat="paper").apply(variables, images())[1]["stem"]
    # Sums of three products near 1, in another order.
    np.testing.assert_allclose(plain, stem[:, 1:-1, 1:-1], rtol=0, atol=1e-6)


def test_activations_are_bounded_in_the_paper_and_not_in_the_reference():
    model, variables = initialised("mobile_tiny")
    unbounded = model.apply(variables, images(scale=30))[1]["stem"]
    bounded = model.clone(compat="paper").apply(variables, images(scale=30))[1]["stem"]
    assert unbounded.max() > 6
    np.testing.assert_array_equal(bounded, np.minimum(unbounded, 6))


def test_a_block_that_keeps_its_maps_shape_adds_to_its_input():
    model, variables = initialised("mobilenet_v2_tiny")
    block = variables["params"]["stage3_block0"]
    block["norm_project"] = jax.tree.map(jnp.zeros_like, block["norm_project"])
    features = model.apply(variables, images())[1]
    np.testing.assert_array_equal(features["stage3"], features["stage2"])


def test_a_block_that_strides_adds_nothing_even_where_a_map_of_one_pixel_keeps_its_shape():
    model, variables = initialised("mobilenet_v2_tiny")
    stages = model.stages
    # The last stage's block now has as many channels before as behind it.
    model = model.clone(stages=(*stages[:-1], stages[-1]._replace(channels=stages[-2].channels)))
    one = images()[:, :1, :1]
    variables = jax.jit(model.init)(jax.random.key(0), one)
    block = variables["params"]["stage4_block0"]
    block["norm_project"] = jax.tree.map(jnp.zeros_like, block["norm_project"])
    features = model.apply(variables, one)[1]
    assert features["stage4"].shape == features["stage3"].shape
    assert not features["stage4"].any()


def test_dropout_draws_from_its_key_in_training_alone():
    model, variables = initialised("mobilenet_v2_tiny", dropout_rate=0.5)
    train = jax.jit(
        lambda seed: model.apply(
            variables, images(), train=True, mutable="batch_stats", rngs={"dropout": jax.random.key(seed)}
        )[0][0]
    )
    np.testing.assert_array_equal(train(1), train(1))
    assert not np.allclose(train(1), train(2))
    np.testing.assert_array_equal(
        model.apply(variables, images())[0], model.clone(dropout_rate=0.0).apply(variables, images())[0]
    )
