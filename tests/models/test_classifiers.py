from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import thinned

from jaxkit.models import IMAGE_SIDES, MODELS, WITH_DROPOUT, build
from jaxkit.nn.norms import BatchNorm

pytestmark = pytest.mark.level(1)

TINY = [name for name in MODELS if "tiny" in name]
# of residual, dense, inverted and parallel blocks
SOME = ("cifar_resnet_tiny", "vgg_tiny", "densenet_tiny", "mobilenet_v2_tiny", "shufflenet_v1_tiny", "googlenet_tiny")


def shapes(model, image_shape=(32, 32, 3)):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, *image_shape)))


def drawn(model, image_shape):
    """Variables from NumPy, positive as variances must be: to compile an ``init`` takes longer than all the rest."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.uniform(0, 0.2, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, shapes(model, image_shape))


def train_once(name, channels=3, seed=1, **fields):
    model, side = build(name, num_classes=3, **fields), IMAGE_SIDES[name]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, side, side, channels)), jnp.float32)
    variables = drawn(model, x.shape[1:])
    forward = jax.jit(partial(model.apply, train=True, mutable="batch_stats"))
    outputs, state = forward(variables, x, rngs={"dropout": jax.random.key(seed)})
    return variables, outputs, state


@pytest.mark.parametrize("name", thinned(TINY, SOME))
def test_training_on_grey_images_moves_every_statistic(name):
    variables, (logits, _), state = train_once(name, channels=1)

    assert np.isfinite(logits).all()
    before = variables.get("batch_stats", {})
    moved = jax.tree.map(lambda old, new: bool((old != new).any()), before, state.get("batch_stats", {}))
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", thinned(TINY, SOME))
def test_half_precision_keeps_parameters_statistics_and_logits_float32(name):
    variables, (logits, features), state = train_once(name, dtype=jnp.bfloat16)
    auxiliary = [features.pop(key) for key in list(features) if key.startswith("aux")]

    assert {leaf.dtype for leaf in jax.tree.leaves((variables, state, logits, auxiliary))} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in features.values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", ["resnet_tiny", "resnet_tiny_cifar", "cifar_resnet_tiny"])
@pytest.mark.parametrize("size", [(8, 8), (33, 47)])
def test_residual_networks_take_images_of_any_size(name, size):
    model = build(name, num_classes=3)
    assert shapes(model, (*size, 3)) == shapes(model)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("cnn", (30, 32), "30 x 32 pixels are no multiples of 8"),
        ("cnn", (32, 12), "32 x 12 pixels are no multiples of 8"),
        ("lenet", (15, 32), "at least 16 x 16 pixels, got 15 x 32"),
        ("lenet", (8, 8), "at least 16 x 16 pixels, got 8 x 8"),
    ],
)
def test_images_a_model_cannot_serve_are_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        shapes(build(name, num_classes=3), (*size, 3))


@pytest.mark.parametrize(("name", "size"), [("cnn", 8), ("cnn", 24), ("lenet", 16), ("lenet", 28)])
def test_the_smallest_images_and_odd_multiples_are_served(name, size):
    assert shapes(build(name, num_classes=3), (size, size, 1))["params"]["head"]["bias"].shape == (3,)


@pytest.mark.parametrize("name", thinned(TINY, SOME))
def test_initialisation_by_name_reaches_every_layer(name):
    x = jnp.zeros((2, IMAGE_SIDES[name], IMAGE_SIDES[name], 3))
    params = {
        kind: jax.jit(build(name, num_classes=3, initialization=kind).init)(jax.random.key(0, impl="rbg"), x)["params"]
        for kind in ("torch", "flax")
    }
    for path, kernel in jax.tree.leaves_with_path(params["torch"]):
        if path[-1].key == "kernel":
            bound = np.prod(kernel.shape[:-1]) ** -0.5
            assert 0.5 * bound < abs(kernel).max() <= bound
            layer = params["flax"]
            for part in path[:-1]:
                layer = layer[part.key]
            # Truncated LeCun normal: most of some dozen draws lie within the bound, some beyond.
            assert bound < abs(layer["kernel"]).max() < 2.3 * bound
            assert not layer.get("bias", jnp.zeros(1)).any()


@pytest.mark.parametrize("name", TINY)
def test_every_norm_is_built_by_the_factory_handed_in(name):
    built = []

    def norm(**fields):
        built.append(fields["name"])
        return BatchNorm(**fields)

    side = IMAGE_SIDES[name]
    statistics = shapes(build(name, num_classes=3, norm=norm), (side, side, 3)).get("batch_stats", {})
    assert len(built) == len(jax.tree.leaves(statistics)) / 2


def test_dropout_draws_from_its_key_in_training_and_keeps_all_in_evaluation():
    model = build("cnn_tiny", num_classes=3)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 3)), jnp.float32)
    variables = drawn(model, x.shape[1:])
    forward = jax.jit(partial(model.apply, train=True, mutable="batch_stats"))
    logits = [forward(variables, x, rngs={"dropout": jax.random.key(seed)})[0][0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])

    evaluated = model.apply(variables, x)[0]
    np.testing.assert_array_equal(evaluated, model.clone(dropout_rate=0.0).apply(variables, x)[0])


def test_models_with_a_dropout_rate_are_the_ones_the_schema_lets_have_one():
    with_rate = {name for name in MODELS if hasattr(build(name, num_classes=2), "dropout_rate")}
    assert with_rate == set(WITH_DROPOUT)
