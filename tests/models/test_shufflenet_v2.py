from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from interop import reference
from jaxkit.models import build
from jaxkit.models.shufflenet_v2 import ShuffleUnit
from jaxkit.nn.layers import Conv
from jaxkit.nn.norms import BatchNorm

pytestmark = pytest.mark.level(1)

TINY = ["shufflenet_v2_tiny", "shufflenet_v2_tiny_tfkd", "shufflenet_v2_tiny_repdistiller"]


def shapes(model, size=(32, 32)):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


def draw(channels, n=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, 8, 8, channels)), jnp.float32)


@pytest.mark.parametrize("ratio", ["x0_5", "x1_0", "x1_5", "x2_0"])
def test_the_state_dicts_of_teacher_free_distillation_have_as_many_tensors_as_published(ratio):
    with torch.device("meta"):
        assert len(reference.build(f"shufflenet_v2_{ratio}_tfkd", 100, (32, 32, 3)).state_dict()) == 394


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (33, 47)])
def test_images_of_any_size_are_served_by_the_same_parameters(name, size):
    model = build(name, num_classes=3)
    assert shapes(model, size) == shapes(model)


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("shufflenet_v2_x1_0", 224, [56, 28, 14, 7]),
        ("shufflenet_v2_x1_0_tfkd", 32, [32, 16, 8, 4]),
        ("shufflenet_v2_repdistiller", 32, [32, 16, 8, 4]),
    ],
)
def test_the_maps_shrink_as_in_the_published_networks(name, side, expected):
    model = build(name, num_classes=3)
    x = jnp.zeros((1, side, side, 3))
    features = jax.eval_shape(lambda key: model.init_with_output(key, x)[0][1], jax.random.key(0))
    assert [features[stage].shape[1] for stage in ("stem", "stage1", "stage2", "stage3")] == expected


def test_a_unit_passes_the_first_half_of_its_channels_on_to_every_other_place():
    unit = ShuffleUnit(8, 1, False, Conv, partial(BatchNorm, use_running_average=True))
    x = draw(8)
    y, variables = jax.jit(unit.init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(y[..., ::2], x[..., :4])
    assert variables["params"]["conv1"]["kernel"].shape == (1, 1, 4, 4)


@pytest.mark.parametrize(("wide", "width"), [(True, 6), (False, 4)])
def test_a_wide_strided_unit_has_its_inputs_width_inside(wide, width):
    unit = ShuffleUnit(8, 2, wide, Conv, BatchNorm)
    params = jax.eval_shape(unit.init, jax.random.key(0), draw(6))["params"]
    assert params["conv2"]["kernel"].shape == (3, 3, 1, width)
    assert params["conv_proj1"]["kernel"].shape == (3, 3, 1, 6)


def test_a_relu_follows_the_stem_in_the_paper_and_not_in_the_reference():
    model = build("shufflenet_v2_tiny_tfkd", num_classes=3)
    variables = jax.jit(model.init)(jax.random.key(0), draw(3))
    linear = model.apply(variables, draw(3))[1]["stem"]
    assert linear.min() < 0
    paper = model.clone(compat="paper").apply(variables, draw(3))[1]["stem"]
    np.testing.assert_array_equal(paper, np.maximum(linear, 0))
