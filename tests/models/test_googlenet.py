from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange

from interop import reference, table
from interop.engine import to_flax
from jaxkit.data.augment import NORMALIZATIONS
from jaxkit.errors import ShapeError
from jaxkit.models import MODELS, WITH_TRANSFORM_INPUT, build
from jaxkit.models.googlenet import transform_imagenet
from jaxkit.nn.norms import BatchNorm
from jaxkit.schema.model import Model
from jaxkit.tasks import classifier
from jaxkit.tasks.task import Context

pytestmark = pytest.mark.level(1)


def images(side=16, n=4):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, side, side, 3)), jnp.float32)


def shapes(model, *size):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


def maps(name, side):
    """The sides of the maps after the stem and each stage."""
    model = build(name, num_classes=3)
    features = jax.eval_shape(lambda key: model.init_with_output(key, images(side, 1))[0][1], jax.random.key(0))
    return [features[stage].shape[1] for stage in ("stem", "stage1", "stage2", "stage3")]


def drawn(model):
    """Variables from NumPy, variances positive."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0, 0.2, leaf.shape), leaf.dtype), shapes(model, 16, 16))


def epsilons(name, side, **fields):
    """The ``epsilon`` of every norm, in the order in which they are built."""
    built = []

    def norm(**options):
        built.append(options.get("epsilon", 1e-5))
        return BatchNorm(**options)

    shapes(build(name, num_classes=3, norm=norm, **fields), side, side)
    return built


def test_the_state_dict_of_teacher_free_distillation_has_as_many_tensors_as_published():
    with torch.device("meta"):
        assert len(reference.build("googlenet_tfkd", 100, (32, 32, 3)).state_dict()) == 450


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [("googlenet", 224, [28, 28, 14, 7]), ("googlenet", 97, [12, 12, 6, 3]), ("googlenet_tfkd", 32, [32, 32, 16, 8])],
)
def test_the_maps_shrink_as_in_the_published_networks(name, side, expected):
    assert maps(name, side) == expected


def test_images_of_which_no_map_would_be_left_are_refused():
    assert maps("googlenet", 15) == [2, 2, 1, 1]
    with pytest.raises(ShapeError, match="at least 15 x 15 pixels, got 15 x 14"):
        shapes(build("googlenet", num_classes=3), 15, 14)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("googlenet_tiny", (64, 64)),
        ("googlenet_tiny", (33, 47)),
        ("googlenet_tiny_tfkd", (1, 1)),
        ("googlenet_tiny_tfkd", (64, 64)),
        ("googlenet_tiny_tfkd", (33, 47)),
    ],
)
def test_images_of_other_sizes_are_served_by_the_same_parameters(name, size):
    model = build(name, num_classes=3)
    assert shapes(model, *size) == shapes(model, 16, 16)


@pytest.mark.parametrize(("compat", "size"), [("reference", 3), ("paper", 5)])
def test_the_5x5_branch_is_a_3x3_in_the_reference(compat, size):
    params = shapes(build("googlenet", num_classes=3, compat=compat), 32, 32)["params"]
    assert params["inception3a"]["conv5x5"]["conv"]["kernel"].shape == (size, size, 16, 32)


def test_a_norm_takes_its_channels_for_epsilon_in_the_reference_of_teacher_free_distillation():
    wide = [epsilon for epsilon in epsilons("googlenet_tfkd", 32) if epsilon != 1e-5]
    assert wide == [32, 96, 48, 64, 64, 64, 128, 128, 128]
    assert set(epsilons("googlenet_tfkd", 32, compat="paper")) == {1e-5}


def test_every_norm_of_torchvision_has_the_epsilon_of_tensorflow():
    assert set(epsilons("googlenet_aux", 32)) == {1e-3}


def test_auxiliary_heads_change_neither_logits_nor_maps():
    model = build("googlenet_tiny", num_classes=3)
    variables = drawn(model)
    logits, features = model.apply(variables, images())
    expected_logits, expected = model.clone(auxiliary=None).apply(variables, images())

    np.testing.assert_array_equal(logits, expected_logits)
    assert set(features) - set(expected) == {"aux1", "aux2"}
    assert features["aux1"].shape == features["aux2"].shape == (4, 3)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(features[name], leaf)


def test_a_dropout_rate_of_zero_turns_off_the_dropout_of_every_head():
    model = build("googlenet_tiny", num_classes=3)
    variables = drawn(model)

    def outputs(model):
        forward = jax.jit(partial(model.apply, train=True, mutable="batch_stats"))
        pairs = [forward(variables, images(), rngs={"dropout": jax.random.key(seed)})[0] for seed in (0, 1)]
        return zip(*[(logits, features["aux1"], features["aux2"]) for logits, features in pairs], strict=True)

    assert not any(np.allclose(first, second) for first, second in outputs(model))
    for first, second in outputs(model.clone(dropout_rate=0.0)):
        np.testing.assert_array_equal(first, second)


def test_with_transform_input_logits_are_those_of_the_torch_twin():
    torch.manual_seed(0)
    net = reference.build("googlenet_tiny", 3, (33, 33, 3), transform_input=True)
    model = build("googlenet_tiny", num_classes=3, transform_input=True)
    x = np.random.default_rng(0).normal(size=(4, 33, 33, 3)).astype(np.float32)
    images = torch.from_numpy(rearrange(x, "b h w c -> b c h w"))
    # Statistics of these images: with others a deep random network gives the same logits whatever it sees.
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
        state = {key: value.numpy().copy() for key, value in net.state_dict().items()}
        expected = net.double().eval()(images.double()).numpy()
    variables = to_flax(state, table("googlenet_tiny"), shapes(model, 33, 33))

    # In float32 such a network is 1e-5 of the exact logits in either framework, and more or less by the processor.
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        found = jax.jit(lambda model, x: model.apply(double, x)[0], static_argnums=0)
        # the logits themselves are float32
        x = x.astype(np.float64)
        np.testing.assert_allclose(found(model, x), expected, rtol=0, atol=1e-7 * np.abs(expected).max())
        # Without it they are others by far more than that.
        assert np.abs(found(model.clone(transform_input=False), x) - expected).max() > 1e-3 * np.abs(expected).max()


def test_transform_input_is_for_three_channels():
    model = build("googlenet", num_classes=3, transform_input=True)
    with pytest.raises(ShapeError, match="transform_input is for images of ImageNet's three channels, got 1"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 80, 80, 1)))


def test_transform_input_leads_from_the_normalisation_of_imagenet_to_pixels_within_1():
    normalize = NORMALIZATIONS["imagenet"]
    pixels = np.random.default_rng(0).uniform(size=(2, 4, 4, 3))
    x = jnp.asarray((pixels - normalize.mean) / normalize.std, jnp.float32)
    # Some roundings of float32.
    np.testing.assert_allclose(transform_imagenet(x), 2 * pixels - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("switch", [True, False])
def test_the_networks_with_transform_input_are_the_ones_a_config_may_set_it_for(switch):
    with_field = {name for name in MODELS if hasattr(build(name, num_classes=2), "transform_input")}
    assert with_field == set(WITH_TRANSFORM_INPUT)
    context = Context(3, load_weights=None)
    for name in WITH_TRANSFORM_INPUT:
        assert classifier.build(Model(name=name, transform_input=switch), context).transform_input is switch
    assert classifier.build(Model(name="lenet"), context).num_classes == 3
    with pytest.raises(ValueError, match="lenet has no transform_input; the models that do are googlenet, "):
        Model(name="lenet", transform_input=True)
