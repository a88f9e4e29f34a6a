from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange

from jaxkit.nn.pooling import adaptive_average_pool, average_pool, max_pool

# (size, stride, padding): those of the classifiers, and some where windows overlap, skip values or reach far out.
WINDOWS = [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (2, 2, 1), (3, 3, 1), (5, 3, 2), (2, 3, 0), (2, 3, 1), (1, 4, 0)]
POOLS = {"max": (max_pool, torch.nn.functional.max_pool2d), "average": (average_pool, torch.nn.functional.avg_pool2d)}
# Sides of every remainder modulo the strides.
SHAPES = [(5, 8), (6, 5), (7, 6), (8, 7)]


def maps(height, width):
    """Values below zero too, all apart, so that padding shows in a maximum and no two maxima are equal."""
    values = np.random.default_rng(0).permutation(2 * height * width * 3) / 7 - height * width / 3
    return values.reshape(2, height, width, 3).astype(np.float32)


def for_torch(x):
    return torch.from_numpy(np.array(rearrange(x, "b h w c -> b c h w"))).requires_grad_()


def from_torch(x):
    return rearrange(x.detach().numpy(), "b c h w -> b h w c")


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_pooling_matches_torch_at_every_size(name, window, ceil):
    ours, theirs = POOLS[name]
    for shape in SHAPES:
        x = maps(*shape)
        expected = from_torch(theirs(for_torch(x), *window, ceil_mode=ceil))
        y = jax.jit(lambda x: ours(x, *window, ceil))(x)
        assert y.shape == expected.shape
        # A maximum is exact; a mean of up to 25 values of up to 60 is summed in another order.
        np.testing.assert_allclose(y, expected, rtol=0, atol=0 if name == "max" else 1e-5)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("window", [(3, 2, 0), (3, 2, 1), (2, 2, 0)], ids=str)
def test_gradients_flow_to_the_values_that_torch_sends_them_to(name, window):
    ours, theirs = POOLS[name]
    x = maps(8, 7)
    given = for_torch(x)
    theirs(given, *window, ceil_mode=True).square().sum().backward()
    gradient = jax.jit(jax.grad(lambda x: jnp.square(ours(x, *window, True)).sum()))(x)
    # Float32 roundings of gradients of up to some hundreds.
    np.testing.assert_allclose(gradient, from_torch(given.grad), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("name", POOLS)
def test_a_map_that_no_window_fits_into_is_refused_exactly_where_torch_refuses_it(name, ceil):
    ours, theirs = POOLS[name]
    refused = 0
    for height, size, stride, padding in product((1, 2, 3), (2, 3, 4), (1, 2), (0, 1)):
        x = maps(height, 6)
        try:
            expected = from_torch(theirs(for_torch(x), size, stride, padding, ceil_mode=ceil))
        except RuntimeError:
            refused += 1
            with pytest.raises(ValueError, match=f"no window of {size} fits into a map of {height} values"):
                ours(jnp.asarray(x), size, stride, padding, ceil)
        else:
            np.testing.assert_allclose(ours(jnp.asarray(x), size, stride, padding, ceil), expected, atol=1e-5)
    assert refused


@pytest.mark.parametrize("side", [1, 6, 7])
def test_adaptive_pooling_matches_torch_at_every_size(side):
    pool = jax.jit(partial(adaptive_average_pool, side=side))
    for height in range(1, 16):
        x = maps(height, 16 - height)
        expected = from_torch(torch.nn.functional.adaptive_avg_pool2d(for_torch(x), side))
        # A mean over both axes is taken here as a mean of means, of up to 64 values of up to 40.
        np.testing.assert_allclose(pool(x), expected, rtol=1e-6, atol=1e-5)


def test_adaptive_pooling_repeats_a_single_value_and_keeps_a_map_of_its_own_size_bit_for_bit():
    single, whole = jnp.asarray(maps(1, 1)), jnp.asarray(maps(7, 7))
    np.testing.assert_array_equal(adaptive_average_pool(single, 7), np.broadcast_to(single, (2, 7, 7, 3)))
    np.testing.assert_array_equal(adaptive_average_pool(whole, 7), whole)


@pytest.mark.parametrize("pool", [max_pool, average_pool])
def test_pooling_keeps_half_precision(pool):
    assert pool(jnp.ones((1, 4, 4, 1), jnp.bfloat16), 3, 2, 1, True).dtype == jnp.bfloat16
    assert adaptive_average_pool(jnp.ones((1, 4, 4, 1), jnp.bfloat16), 7).dtype == jnp.bfloat16
