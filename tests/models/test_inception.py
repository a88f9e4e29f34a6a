import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.errors import ShapeError
from jaxkit.models import build
from jaxkit.nn.norms import BatchNorm


def shapes(model, *size):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


def maps(side):
    """The sides of the maps after the stem and each stage."""
    model = build("inception_tiny", num_classes=3)
    x = jnp.zeros((1, side, side, 3))
    features = jax.eval_shape(lambda key: model.init_with_output(key, x)[0][1], jax.random.key(0))
    return [features[stage].shape[1] for stage in ("stem", "stage1", "stage2", "stage3")]


def test_the_maps_shrink_as_in_the_published_network():
    assert maps(299) == [35, 35, 17, 8]


def test_images_of_which_no_map_would_be_left_are_refused():
    assert maps(75)[-1] == 1
    with pytest.raises(ShapeError, match="at least 75 x 75 pixels, got 75 x 74"):
        shapes(build("inception_v3", num_classes=3), 75, 74)


@pytest.mark.parametrize("size", [(80, 80), (299, 299), (98, 131)])
def test_images_of_other_sizes_are_served_by_the_same_parameters_auxiliary_head_included(size):
    model = build("inception_tiny", num_classes=3)
    assert shapes(model, *size) == shapes(model, 75, 75)


def test_every_norm_has_the_epsilon_of_tensorflow():
    epsilons = set()

    def norm(**options):
        epsilons.add(options.get("epsilon"))
        return BatchNorm(**options)

    shapes(build("inception_v3_aux", num_classes=3, norm=norm), 75, 75)
    assert epsilons == {1e-3}


def test_the_auxiliary_head_changes_neither_logits_nor_maps():
    model = build("inception_tiny", num_classes=3)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 80, 80, 3)), jnp.float32)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0, 0.2, leaf.shape), leaf.dtype), shapes(model, 80, 80)
    )
    logits, features = jax.jit(model.apply)(variables, x)
    expected_logits, expected = jax.jit(model.clone(auxiliary=False).apply)(variables, x)

    # One program has more to fuse than the other.
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-5)
    assert set(features) - set(expected) == {"aux1"}
    assert features["aux1"].shape == (2, 3)
    for name, leaf in expected.items():
        np.testing.assert_allclose(features[name], leaf, rtol=1e-5, atol=1e-6)
