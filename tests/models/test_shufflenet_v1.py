import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.models import build
from jaxkit.nn.pooling import average_pool


def shapes(model, size=(32, 32)):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (33, 47)])
def test_images_of_any_size_are_served_by_the_same_parameters(size):
    model = build("shufflenet_v1_tiny", num_classes=3)
    assert shapes(model, size) == shapes(model)


def test_all_convolutions_of_one_pixel_but_the_first_stages_first_are_grouped():
    params = shapes(build("shufflenet_v1", num_classes=100))["params"]
    read = {
        (unit, layer): params[unit][layer]["kernel"].shape[2]
        for unit in ("stage1_block0", "stage1_block1", "stage2_block0")
        for layer in ("conv1", "conv3")
    }
    assert read == {
        ("stage1_block0", "conv1"): 24,
        ("stage1_block0", "conv3"): 54 / 3,
        ("stage1_block1", "conv1"): 240 / 3,
        ("stage1_block1", "conv3"): 60 / 3,
        ("stage2_block0", "conv1"): 240 / 3,
        ("stage2_block0", "conv3"): 60 / 3,
    }


def test_the_average_of_a_strided_units_input_lies_behind_its_own_channels():
    model = build("shufflenet_v1_tiny", num_classes=3, stage_sizes=(1, 1))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 9, 3)), jnp.float32)
    features = jax.jit(model.init_with_output)(jax.random.key(0), x)[0][1]
    average = average_pool(features["stem"], 3, 2, padding=1)
    # Sums of nine float32, compiled alone and with the rest.
    np.testing.assert_allclose(features["stage1"][..., -12:], average, rtol=1e-6, atol=1e-7)
