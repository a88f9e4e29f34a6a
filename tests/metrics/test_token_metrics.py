import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkit.metrics.tokens import (
    ByMaskRatio,
    by_mask_ratio,
    image_entropy,
    mask_ratio_bucket,
    masked_accuracy,
    masked_cross_entropy,
    pixel_entropy,
    token_probabilities,
)

B, H, W, K = 9, 4, 5, 6


def batch(seed=0, scale=3.0):
    """Logits, tokens and masks: nothing masked in the first image, all in the last."""
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(B, H, W, K))).astype(np.float32)
    mask = rng.uniform(size=(B, H, W)) < np.linspace(0, 1, B)[:, None, None]
    return jnp.asarray(logits), jnp.asarray(rng.integers(0, K, (B, H, W))), jnp.asarray(mask)


def softmax(z):
    p = np.exp(np.asarray(z, np.float64) - np.max(z))
    return p / p.sum()


def loop(logits, tokens, mask):
    """Every figure of every image, one masked token after the other, in float64."""
    figures = np.zeros((4, B))
    for i in range(B):
        rows = []
        for y in range(H):
            for x in range(W):
                if mask[i, y, x]:
                    p = softmax(logits[i, y, x])
                    right = np.argmax(p) == tokens[i, y, x]
                    entropy = -sum(q * math.log(q) for q in p)
                    rows.append((right, -math.log(p[tokens[i, y, x]]), entropy, p))
        if rows:
            mean = np.mean([row[3] for row in rows], 0)
            figures[:3, i] = [np.mean([row[j] for row in rows]) for j in range(3)]
            figures[3, i] = -sum(q * math.log(q) for q in mean)
    return figures


def test_figures_of_masked_tokens_equal_those_of_loops():
    logits, tokens, mask = batch()
    ours = [
        masked_accuracy(logits, tokens, mask),
        masked_cross_entropy(logits, tokens, mask),
        pixel_entropy(logits, mask),
        image_entropy(logits, mask),
    ]
    # float32 sums of at most 20 numbers of about 1
    np.testing.assert_allclose(ours, loop(logits, tokens, mask), rtol=2e-6, atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(masked=st.integers(0, 256), size=st.sampled_from([(16, 16), (3, 7), (1, 10)]))
def test_a_bucket_holds_its_upper_end_and_not_its_lower(masked, size):
    h, w = size
    masked = min(masked, h * w)
    mask = jnp.asarray((np.arange(h * w) < masked).reshape(1, h, w))
    # exact: masked / (h w) in (i / 10, (i + 1) / 10]
    expected = next((i for i in range(10) if i * h * w < 10 * masked <= (i + 1) * h * w), -1)
    assert int(mask_ratio_bucket(mask)[0]) == expected


def test_means_by_mask_ratio_are_those_of_loops_and_empty_buckets_are_nan():
    _, _, mask = batch()
    values = jnp.asarray(np.random.default_rng(1).normal(size=B), jnp.float32)
    by_ratio = by_mask_ratio(values, mask)
    fraction = np.asarray(mask).mean((1, 2))
    for i in range(10):
        inside = [float(v) for v, f in zip(values, fraction, strict=True) if i / 10 < f <= (i + 1) / 10]
        assert by_ratio.count[i] == len(inside)
        assert float(by_ratio.mean[i]) == pytest.approx(np.mean(inside) if inside else math.nan, nan_ok=True, rel=1e-5)
    assert by_ratio.count.sum() == B - 1  # where nothing is masked, nothing is predicted


def test_sums_of_two_batches_are_the_sums_of_both():
    _, _, mask = batch()
    values = jnp.arange(B, dtype=jnp.float32)
    parts = [by_mask_ratio(values[rows], mask[rows]) for rows in (slice(0, 4), slice(4, B))]
    both = ByMaskRatio(*(sum(field) for field in zip(*parts, strict=True)))
    np.testing.assert_array_equal(both.mean, by_mask_ratio(values, mask).mean)


@pytest.mark.parametrize("value", [300.0, -jnp.inf])
def test_figures_are_finite_when_probabilities_underflow_and_when_nothing_is_masked(value):
    logits = jnp.zeros((2, 2, 2, K)).at[..., 0].set(value)
    tokens, none = jnp.ones((2, 2, 2), jnp.int32), jnp.zeros((2, 2, 2), bool)
    for mask in (none, ~none):
        for figure in (pixel_entropy(logits, mask), image_entropy(logits, mask)):
            assert np.all(np.isfinite(figure))
        assert np.all(np.isfinite(masked_cross_entropy(logits, tokens, mask)))
    assert np.all(np.asarray(masked_accuracy(logits, tokens, none)) == 0)


def test_the_prediction_shown_of_a_bucket_is_that_of_its_first_images_first_masked_token():
    logits, _, mask = batch(seed=2)
    p, found = token_probabilities(logits, mask)
    buckets = np.asarray(mask_ratio_bucket(mask))
    assert not np.all(found)
    for i in range(10):
        images = np.flatnonzero(buckets == i)
        assert bool(found[i]) == bool(len(images))
        if len(images):
            y, x = np.argwhere(mask[images[0]])[0]
            np.testing.assert_allclose(p[i], softmax(logits[images[0], y, x]), rtol=2e-6, atol=1e-7)
        else:
            np.testing.assert_array_equal(p[i], 0)


def test_a_network_that_knows_nothing_has_the_logarithm_of_the_codebook_throughout():
    mask = jnp.ones((1, 3, 3), bool)
    logits = jnp.zeros((1, 3, 3, 1024))
    for figure in (
        masked_cross_entropy(logits, jnp.zeros((1, 3, 3), jnp.int32), mask),
        pixel_entropy(logits, mask),
        image_entropy(logits, mask),
    ):
        assert float(figure[0]) == pytest.approx(math.log(1024), rel=1e-5)


def test_figures_are_the_same_inside_jit():
    logits, tokens, mask = batch()
    jitted = jax.jit(lambda z, tokens, mask: by_mask_ratio(masked_cross_entropy(z, tokens, mask), mask).mean)
    expected = by_mask_ratio(masked_cross_entropy(logits, tokens, mask), mask).mean
    np.testing.assert_allclose(jitted(logits, tokens, mask), expected, rtol=1e-5)
