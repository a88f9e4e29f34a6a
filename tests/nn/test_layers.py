import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit.nn.initializers import initializers
from jaxkit.nn.layers import Conv, Dense

LAYERS = {
    "dense": (Dense(200), torch.nn.Linear(150, 200), (150,)),
    "conv": (Conv(64, (3, 5)), torch.nn.Conv2d(24, 64, (3, 5)), (6, 6, 24)),
    "grouped conv": (Conv(64, (3, 3), groups=4), torch.nn.Conv2d(32, 64, 3, groups=4), (6, 6, 32)),
    "depthwise conv": (Conv(512, (3, 3), groups=512), torch.nn.Conv2d(512, 512, 3, groups=512), (6, 6, 512)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_initial_weights_have_the_bounds_and_variance_of_torchs(name):
    layer, reference, shape = LAYERS[name]
    params = layer.init(jax.random.key(0, impl="rbg"), jnp.zeros((1, *shape)))["params"]
    for leaf, weight in (params["kernel"], reference.weight), (params["bias"], reference.bias):
        fan_in = reference.weight[0].numel()
        bound = 1 / np.sqrt(fan_in)
        assert leaf.size == weight.numel()
        assert 0.9 * bound < abs(leaf).max() <= bound
        assert 0.9 * bound < weight.abs().max() <= bound
        # The variance of m uniform draws scatters by sqrt(4 / 5m) of itself, the mean by bound / sqrt(3m): 5 sigmas.
        assert leaf.var() == pytest.approx(bound**2 / 3, rel=5 * np.sqrt(0.8 / leaf.size))
        assert abs(leaf.mean()) < 5 * bound / np.sqrt(3 * leaf.size)


def test_kernel_and_bias_are_drawn_apart():
    params = Dense(64).init(jax.random.key(0), jnp.zeros((1, 1)))["params"]
    assert not np.isclose(params["kernel"][0], params["bias"]).any()


def test_flax_initialisation_is_linens():
    kernel, bias = initializers("flax", fan_in=300)
    kernel = kernel(jax.random.key(0), (300, 200), jnp.float32)
    assert kernel.var() == pytest.approx(1 / 300, rel=0.03)
    assert not bias(jax.random.key(0), (200,), jnp.float32).any()


def test_kaiming_initialisation_is_torchs_normal_of_the_fan_out_for_kernels_and_zero_for_biases():
    torch.manual_seed(0)
    expected = torch.nn.init.kaiming_normal_(torch.empty(200, 60, 3, 3), mode="fan_out", nonlinearity="relu")
    params = Conv(200, (3, 3), initialization="kaiming").init(jax.random.key(0), jnp.zeros((1, 3, 3, 60)))["params"]
    # 108,000 draws: their standard deviation is known to 0.2 %.
    assert params["kernel"].std() == pytest.approx(expected.std().item(), rel=0.01)
    assert abs(params["kernel"]).max() > 3.5 * expected.std().item()
    assert not params["bias"].any()


def test_an_unknown_initialisation_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"'orthogonal'; there are 'torch', 'flax' and 'kaiming'"):
        Dense(2, initialization="orthogonal").init(jax.random.key(0), jnp.zeros((1, 1)))


@pytest.mark.parametrize(
    ("kernel_size", "strides", "padding", "groups", "size"),
    [((3, 3), 1, 1, 1, 8), ((3, 3), 2, 1, 2, 9), ((7, 7), 2, 3, 1, 10), ((1, 1), 2, 0, 4, 7), ((5, 3), 1, 0, 1, 6)],
)
def test_convolutions_match_torch(kernel_size, strides, padding, groups, size):
    rng = np.random.default_rng(0)
    reference = torch.nn.Conv2d(4, 8, kernel_size, strides, padding, groups=groups)
    x = rng.normal(size=(2, size, size, 4)).astype(np.float32)
    layer = Conv(8, kernel_size, strides=strides, padding=padding, groups=groups)
    params = {
        "kernel": jnp.asarray(reference.weight.detach().numpy().transpose(2, 3, 1, 0)),
        "bias": jnp.asarray(reference.bias.detach().numpy()),
    }
    with jax.default_matmul_precision("highest"):
        y = layer.apply({"params": params}, jnp.asarray(x))
    expected = reference(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy().transpose(0, 2, 3, 1)
    # Sums of up to 196 products of order 0.1, in another order.
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("layer", "shape"), [(Dense(3), (5, 4)), (Conv(3, (3, 3)), (2, 5, 5, 4))])
def test_half_precision_is_of_the_arithmetic_and_not_of_the_parameters(layer, shape):
    layer = layer.clone(dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), jnp.ones(shape))
    assert layer.apply(variables, jnp.ones(shape)).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    x = jnp.ones(shape, jnp.bfloat16)
    np.testing.assert_array_equal(layer.apply(variables, x), layer.apply(low, x))
