import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from interop import reference
from jaxkit.errors import ShapeError
from jaxkit.models import build

TENSORS = [
    ("densenet121_tfkd", 722),
    ("densenet161_tfkd", 962),
    ("densenet169_tfkd", 1010),
    ("densenet201_tfkd", 1202),
    ("densenet_bc_100_12", 596),
]
TINY = ["densenet_tiny", "densenet_tiny_tfkd", "densenet_bc_tiny"]


def shapes(model, height, width):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, height, width, 3)))


def maps(name, side):
    """The sides of the maps after the stem and each stage."""
    model = build(name, num_classes=3)
    x = jnp.zeros((1, side, side, 3))
    features = jax.eval_shape(lambda key: model.init_with_output(key, x)[0][1], jax.random.key(0))
    return [features[stage].shape[1] for stage in ("stem", *sorted(features.keys() - {"stem", "pre_logits"}))]


def drawn(model, x):
    """Variables from NumPy, variances positive."""
    rng = np.random.default_rng(0)
    like = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0, 0.2, leaf.shape), leaf.dtype), like)


@pytest.mark.parametrize(("name", "expected"), TENSORS)
def test_state_dicts_have_as_many_tensors_as_published(name, expected):
    with torch.device("meta"):
        assert len(reference.build(name, 10, (32, 32, 3)).state_dict()) == expected


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("densenet121", 224, [56, 56, 28, 14, 7]),
        ("densenet121_tfkd", 32, [32, 32, 16, 8, 4]),
        ("densenet_bc_100_12", 32, [32, 32, 16, 8]),
    ],
)
def test_the_maps_shrink_as_in_the_published_networks(name, side, expected):
    assert maps(name, side) == expected


@pytest.mark.parametrize(("name", "least"), [("densenet121", 29), ("densenet121_tfkd", 8), ("densenet_bc_100_12", 4)])
def test_images_of_which_no_map_would_be_left_are_refused(name, least):
    assert maps(name, least)[-1] == 1
    with pytest.raises(ShapeError, match=f"at least {least} x {least} pixels, got {least} x {least - 1}"):
        shapes(build(name, num_classes=3), least, least - 1)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_images_of_other_sizes_are_served_by_the_same_parameters(name, size):
    model = build(name, num_classes=3)
    assert shapes(model, *size) == shapes(model, 16, 16)


@pytest.mark.parametrize("name", TINY)
def test_the_map_of_a_stage_begins_with_what_entered_it(name):
    model = build(name, num_classes=3)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, 16, 3)), jnp.float32)
    features = model.apply(drawn(model, x), x)[1]
    entered = features["stem"]
    np.testing.assert_array_equal(features["stage1"][..., : entered.shape[-1]], entered)
    assert features["stage1"].shape[-1] == entered.shape[-1] + 2 * 4


def test_a_transition_passes_negative_values_in_the_reference_and_not_in_the_paper():
    model = build("densenet_tiny_tfkd", num_classes=3)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, 16, 3)), jnp.float32)
    variables = drawn(model, x)
    transition = variables["params"]["transition1"]
    transition["norm"] = {"scale": jnp.zeros(16), "bias": jnp.full(16, -1.0)}

    entered = model.apply(variables, x)[1]["stage2"][..., :8]
    # Every channel is the sum of the kernel's column; its 16 terms are added in another order.
    expected = -transition["conv"]["kernel"][0, 0].sum(0)
    np.testing.assert_allclose(entered, np.broadcast_to(expected, entered.shape), rtol=1e-6)
    assert not model.clone(compat="paper").apply(variables, x)[1]["stage2"][..., :8].any()
