import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange

from interop import reference, table
from interop.engine import to_flax
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


def test_with_transform_input_logits_are_those_of_the_torch_twin():
    torch.manual_seed(0)
    net = reference.build("inception_tiny", 3, (80, 80, 3), transform_input=True)
    model = build("inception_tiny", num_classes=3, transform_input=True)
    x = np.random.default_rng(0).normal(size=(4, 80, 80, 3)).astype(np.float32)
    images = torch.from_numpy(rearrange(x, "b h w c -> b c h w"))
    # Statistics of these images: with others a deep random network gives the same logits whatever it sees.
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
        expected = net.eval()(images).numpy()
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    variables = to_flax(state, table("inception_tiny"), shapes(model, 80, 80))

    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda model, x: model.apply(variables, x)[0], static_argnums=0)
        # Statistics of four images magnify roundings from layer to layer: to 5e-5 here.
        np.testing.assert_allclose(found(model, x), expected, rtol=0, atol=2e-4 * np.abs(expected).max())
        # Without it they are others by more than a hundred times that.
        assert np.abs(found(model.clone(transform_input=False), x) - expected).max() > 2e-2 * np.abs(expected).max()


def test_transform_input_is_for_three_channels():
    model = build("inception_v3", num_classes=3, transform_input=True)
    with pytest.raises(ShapeError, match="transform_input is for images of ImageNet's three channels, got 1"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 80, 80, 1)))
