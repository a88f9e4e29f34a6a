import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import reduce

from jaxkit.models import build
from jaxkit.nn.layers import Conv

MNASNETS = ["mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"]


def shapes(model, size=(64, 64)):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


def test_the_stem_scales_with_the_width_as_in_the_second_version_of_the_published_weights():
    stems = [shapes(build(name, num_classes=2))["params"]["conv_stem"]["kernel"].shape[-1] for name in MNASNETS]
    assert stems == [16, 24, 32, 40]


def test_the_windows_of_the_stages_are_those_that_the_search_found():
    params = shapes(build("mnasnet1_0", num_classes=2))["params"]
    windows = [params[f"stage{stage}_block0"]["conv_depthwise"]["kernel"].shape[0] for stage in range(1, 8)]
    assert windows == [3, 3, 5, 5, 3, 5, 3]


@pytest.mark.parametrize("size", [(1, 1), (33, 47)])
def test_images_of_any_size_are_served_by_the_same_parameters(size):
    model = build("mnasnet_tiny", num_classes=3)
    assert shapes(model, size) == shapes(model)


def test_running_statistics_move_by_three_in_ten_thousand():
    model = build("mnasnet_tiny", num_classes=3, dropout_rate=0.0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 16, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    _, state = jax.jit(lambda v: model.apply(v, x, train=True, mutable="batch_stats"))(variables)

    stem = Conv(8, (3, 3), strides=2, padding=1, use_bias=False)
    y = stem.apply({"params": variables["params"]["conv_stem"]}, x)
    # They begin at 0. Means of 256 values of size 1 are exact to some 1e-7; so is 1 - 0.9997 of them.
    expected = 3e-4 * reduce(y, "b h w c -> c", "mean")
    np.testing.assert_allclose(state["batch_stats"]["norm_stem"]["mean"], expected, rtol=1e-4, atol=1e-10)
