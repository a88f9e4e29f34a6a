"""Adam with moments of a byte each: what bytes stand for, how far its steps are from Adam's, what it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkit.adam8bit import Blocks, dequantize, dynamic_codes, quantize, scale_by_adam_8bit
from jaxkit.optimizer import make_optimizer, scale_by_adam
from jaxkit.schema.optimizer import OPTIMIZERS


@pytest.mark.parametrize("signed", [True, False])
def test_a_byte_stands_for_256_numbers_of_which_one_is_0_and_the_last_1(signed):
    codes = dynamic_codes(signed)
    assert len(np.unique(codes)) == 256
    assert codes[-1] == 1
    assert 0 in codes
    assert (codes.min() < 0) == signed
    # the published map's smallest positive number and its neighbour of 1
    positive = codes[codes > 0]
    assert positive[0] == pytest.approx(5.5e-7 if signed else 3.25e-7)
    assert positive[-2] == pytest.approx(1 - 0.45 / (64 if signed else 128))


@settings(max_examples=25, deadline=None)
# few sizes: each is a program of its own to compile
@given(st.integers(0, 1000), st.sampled_from([1, 255, 256, 257, 700]), st.sampled_from([1e-12, 1.0, 1e6]))
def test_an_array_in_bytes_is_off_by_half_a_gap_between_codes_at_most(seed, size, scale):
    array = jnp.asarray(np.random.default_rng(seed).normal(size=size) * scale, jnp.float32)
    again = dequantize(quantize(array, True), (size,), True)
    # the widest gap is that of the last decade: 0.9 / 64 of a block's largest entry
    assert float(jnp.abs(again - array).max()) <= 0.5 * 0.9 / 64 * float(jnp.abs(array).max()) * 1.001
    assert jnp.array_equal(jnp.sign(again) * jnp.sign(array) >= 0, jnp.ones(size, bool))


def test_codes_are_fixed_points_and_blocks_of_zeros_stay_so():
    codes = jnp.asarray(dynamic_codes(True))
    assert jnp.array_equal(dequantize(quantize(codes, True), codes.shape, True), codes)
    assert not dequantize(quantize(jnp.zeros(300), False), (300,), False).any()


def test_large_parameters_have_moments_of_a_byte_and_small_ones_adams_own_steps():
    params = {"large": jnp.ones((64, 65)), "small": jnp.ones((7,))}
    ours, exact = scale_by_adam_8bit(0.9, 0.999, 1e-8), scale_by_adam(0.9, 0.999, 1e-8)
    state, reference = ours.init(params), exact.init(params)
    assert isinstance(state.mu["large"], Blocks)
    assert state.nu["large"].codes.dtype == jnp.uint8
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state.mu["large"])) < 0.27 * params["large"].nbytes
    for step in range(5):
        gradients = jax.tree.map(lambda p, s=step: jax.random.normal(jax.random.key(s), p.shape), params)
        directions, state = ours.update(gradients, state)
        wanted, reference = exact.update(gradients, reference)
        # the same formula, whose powers of the decay are folded in another order
        np.testing.assert_allclose(directions["small"], wanted["small"], rtol=1e-5)
        # codes near a block's largest are 1.4 % apart, small ones up to 10 %
        apart = jnp.linalg.norm(directions["large"] - wanted["large"]) / jnp.linalg.norm(wanted["large"])
        assert (0 if step else -1) < apart < 0.02


def test_a_regression_ends_where_that_of_adamw_ends():
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(512, 64)), jnp.float32), jnp.asarray(rng.normal(size=(64, 64)), jnp.float32)

    def trained(name):
        rule = OPTIMIZERS[name](name=name, learning_rate=0.02, weight_decay=1e-4)
        optimizer = make_optimizer(rule, 300, 300)

        def step(carry, _):
            params, state = carry
            loss, slope = jax.value_and_grad(lambda p: jnp.square(x @ p - x @ w).mean())(params)
            updates, state = optimizer.update(slope, state, params)
            return (optax.apply_updates(params, updates), state), loss

        start = jnp.zeros_like(w)
        return jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), None, 300)[1])()

    exact, bytes_ = trained("adamw"), trained("adamw_8bit")
    assert exact[0] > 50
    assert bytes_[-1] < 1e-3 * exact[0]
    assert np.abs(np.asarray(bytes_[:50] / exact[:50]) - 1).max() < 0.05


def test_gradients_that_are_rare_and_of_many_sizes_make_no_steps_that_adam_does_not_make():
    rng = np.random.default_rng(0)
    sizes = np.exp(2 * rng.normal(size=256))
    ours, exact = scale_by_adam_8bit(0.9, 0.999, 1e-8), scale_by_adam(0.9, 0.999, 1e-8)
    update, wanted_update = jax.jit(ours.update), jax.jit(exact.update)
    params = jnp.zeros((32, 256))
    state, reference = ours.init(params), exact.init(params)
    largest = [0.0, 0.0]
    for _ in range(60):
        seen = rng.random((1, 256)) < 0.1
        gradient = jnp.asarray(rng.normal(size=(32, 256)) * sizes * seen, jnp.float32)
        directions, state = update(gradient, state)
        wanted, reference = wanted_update(gradient, reference)
        largest = [max(old, float(jnp.abs(new).max())) for old, new in zip(largest, (directions, wanted), strict=True)]
    # a second moment that is rounded to 0 would make steps of thousands
    assert largest[0] < 2 * largest[1]
