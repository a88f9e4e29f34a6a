import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit.errors import ConfigError
from jaxkit.losses.masked_tokens import (
    Masking,
    TokenLoss,
    drop_conditions,
    mask_counts,
    mask_rates,
    mask_tokens,
    random_masks,
    rectangle_masks,
    soft_token_cross_entropy,
    token_cross_entropy,
    weigh_tokens,
)

pytestmark = pytest.mark.level(1)

K, MASK = 16, 20


def cosine(t):
    return jnp.cos(t * math.pi / 2)


def random_tokens(b, h, w):
    return jax.random.randint(jax.random.key(9), (b, h, w), 0, K)


def masked(masking, b=64, h=6, w=8, seed=0, schedule=cosine):
    tokens = random_tokens(b, h, w)
    return tokens, mask_tokens(jax.random.key(seed), tokens, schedule, masking, codebook_size=K, mask_token=MASK)


def test_each_image_has_exactly_the_count_of_its_rate_masked():
    tokens, out = masked(Masking())
    expected = np.maximum(1, np.round(48 * np.asarray(out.rate)))  # NumPy rounds half to even too
    np.testing.assert_array_equal(out.mask.sum((1, 2)), expected)
    np.testing.assert_array_equal(out.inputs, np.where(out.mask, MASK, tokens))
    np.testing.assert_array_equal(out.weight, out.mask)


def test_counts_are_rounded_half_to_even_and_one_at_least():
    rates = jnp.asarray([0.0, 1e-6, 0.25, 0.75, 1.0])
    assert mask_counts(rates, 2).tolist() == [1, 1, 1, 2, 2]
    assert mask_counts(jnp.asarray([0.25, 0.75]), 10).tolist() == [2, 8]


def test_every_position_is_masked_equally_often():
    n = 20000
    mask = random_masks(jax.random.key(0), jnp.full(n, 5, jnp.int32), 3, 5)
    # five standard deviations of a share of n
    np.testing.assert_allclose(mask.mean(0), 1 / 3, atol=5 * math.sqrt(2 / 9 / n))


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 7), (6, 1), (4, 4), (3, 8), (9, 5)])
def test_rectangles_hold_the_count_and_lie_within_the_grid(h, w):
    counts = np.tile(np.arange(1, h * w + 1), 20)
    masks = np.asarray(rectangle_masks(jax.random.key(0), jnp.asarray(counts), h, w))
    for mask, count in zip(masks, counts, strict=True):
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() >= count
        assert mask.sum() < count + rows.sum()  # no column could be spared
        np.testing.assert_array_equal(mask, rows[:, None] & columns[None])
        for line in (rows, columns):
            assert np.ptp(np.flatnonzero(line)) + 1 == line.sum()


@pytest.mark.parametrize(("count", "fitting"), [(3, [1, 2, 3]), (6, [2, 3, 4])])
def test_rectangles_take_every_height_that_fits_and_reach_every_corner(count, fitting):
    mask = np.asarray(rectangle_masks(jax.random.key(0), jnp.full(4000, count, jnp.int32), 4, 5))
    heights, frequency = np.unique(mask.any(2).sum(1), return_counts=True)
    assert heights.tolist() == fitting
    np.testing.assert_allclose(frequency / 4000, 1 / 3, atol=5 * math.sqrt(2 / 9 / 4000))
    assert np.all(mask[:, [0, 0, -1, -1], [0, -1, 0, -1]].any(0))


@pytest.mark.parametrize(("probability", "contiguous"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_a_batch_is_masked_in_rectangles_with_the_probability_that_is_asked_for(probability, contiguous):
    mask = jax.jit(lambda seed: masked(Masking(rectangle_probability=probability), b=4, seed=seed)[1].mask)
    batches = [np.asarray(mask(seed)) for seed in range(100)]
    whole = [all(np.all(image == image.any(1)[:, None] & image.any(0)[None]) for image in batch) for batch in batches]
    # four standard deviations of 100 coins
    assert np.mean(whole) == pytest.approx(contiguous, abs=4 * math.sqrt(contiguous * (1 - contiguous) / 100) + 0.02)


def test_rates_are_the_schedules_above_the_least():
    rates = np.asarray(mask_rates(jax.random.key(0), 20000, cosine, Masking(min_rate=0.5)))
    assert rates.min() == 0.5
    # P(cos(πt/2) <= 1/2) = 1/3
    assert (rates == 0.5).mean() == pytest.approx(1 / 3, abs=0.015)
    mean = float(mask_rates(jax.random.key(0), 20000, cosine, Masking()).mean())
    assert mean == pytest.approx(2 / math.pi, abs=0.01)


def test_ratios_take_the_place_of_the_schedule():
    rates = np.asarray(mask_rates(jax.random.key(0), 3000, cosine, Masking(ratios=(0.1, 0.5, 0.9))))
    values, counts = np.unique(rates, return_counts=True)
    np.testing.assert_allclose(values, [0.1, 0.5, 0.9], rtol=1e-6)
    np.testing.assert_allclose(counts / 3000, 1 / 3, atol=0.04)


def test_random_replace_replaces_by_codes_and_asks_for_all_tokens():
    tokens, out = masked(Masking(noise="random_replace"), b=400)
    assert out.inputs.min() >= 0
    assert out.inputs.max() < K
    np.testing.assert_array_equal(out.inputs[~out.mask], tokens[~out.mask])
    changed = np.asarray(out.inputs != tokens)[np.asarray(out.mask)].mean()
    assert changed == pytest.approx(1 - 1 / K, abs=0.01)
    assert out.weight.min() > 0


@pytest.mark.parametrize("noise", ["mask", "random_replace"])
def test_tokens_that_are_not_masked_weigh_from_three_tenths_to_one_by_the_rate(noise):
    for rate, weight in ((1 / 48, 1 - 0.7 * 47 / 48), (0.5, 0.65)):
        _, out = masked(Masking(noise=noise, predict_all=True, ratios=(rate,)))
        np.testing.assert_allclose(out.weight[~out.mask], weight, rtol=1e-6)
        np.testing.assert_array_equal(out.weight[out.mask], 1.0)


def test_the_same_key_masks_the_same_tokens():
    masking = Masking(rectangle_probability=0.5, noise="random_replace")
    for a, b in zip(masked(masking, seed=3)[1], masked(masking, seed=3)[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(masked(masking, seed=3)[1].mask != masked(masking, seed=4)[1].mask)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_and_its_gradient_are_torchs_with_labels_to_ignore(smoothing):
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(3, 4, 5, K)).astype(np.float32) * 3, np.asarray(random_tokens(3, 4, 5))
    mask = rng.uniform(size=tokens.shape) < 0.4
    z = torch.tensor(logits, requires_grad=True)
    labels = torch.from_numpy(np.where(mask, tokens, -100).astype(np.int64)).flatten()
    theirs = torch.nn.functional.cross_entropy(z.flatten(0, 2), labels, label_smoothing=smoothing)
    theirs.backward()

    def mean(logits):
        loss = token_cross_entropy(logits, jnp.asarray(tokens), label_smoothing=smoothing)
        return weigh_tokens(loss, jnp.asarray(mask, jnp.float32)).mean

    ours, gradient = jax.value_and_grad(mean)(jnp.asarray(logits))
    # float32: roundings of 6e-8 of losses of about 10
    assert float(ours) == pytest.approx(theirs.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, z.grad, atol=1e-7)


def test_the_loss_of_a_network_that_knows_nothing_is_the_logarithm_of_the_codebook():
    loss = token_cross_entropy(jnp.zeros((2, 4, 4, 8192), jnp.bfloat16), jnp.zeros((2, 4, 4), jnp.int32))
    np.testing.assert_allclose(loss, math.log(8192), rtol=1e-6)


def test_soft_codes_that_are_certain_cost_what_hard_ones_do_and_others_are_torchs():
    rng = np.random.default_rng(1)
    logits, tokens = jnp.asarray(rng.normal(size=(2, 3, 3, K + 4)), jnp.float32), random_tokens(2, 3, 3)
    certain = soft_token_cross_entropy(logits, jax.nn.one_hot(tokens, K))
    np.testing.assert_allclose(certain, token_cross_entropy(logits[..., :K], tokens), rtol=1e-6)
    soft = np.asarray(jax.nn.softmax(jnp.asarray(rng.normal(size=(2, 3, 3, K)), jnp.float32)))
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(np.array(logits[..., :K])).flatten(0, 2), torch.tensor(soft).flatten(0, 2), reduction="none"
    )
    np.testing.assert_allclose(soft_token_cross_entropy(logits, jnp.asarray(soft)).ravel(), theirs, rtol=2e-6)


def test_sums_and_weights_of_parts_add_up_to_the_mean_of_the_whole():
    _, out = masked(Masking(), b=8)
    loss = jax.random.uniform(jax.random.key(1), out.weight.shape)
    whole = weigh_tokens(loss, out.weight)
    parts = [weigh_tokens(loss[rows], out.weight[rows]) for rows in (slice(0, 3), slice(3, 8))]
    summed = TokenLoss(*(sum(values) for values in zip(*parts, strict=True)))
    assert float(summed.mean) == pytest.approx(float(whole.mean), rel=1e-6)
    assert float(np.mean([part.mean for part in parts])) != pytest.approx(float(whole.mean), rel=1e-4)


def test_nothing_to_learn_costs_nothing_and_tokens_without_weight_may_be_infinite():
    zero = jnp.zeros((2, 2, 2))
    gradient = jax.grad(lambda loss: weigh_tokens(loss, zero).mean)(jnp.full((2, 2, 2), 3.0))
    assert float(weigh_tokens(zero + 5, zero).mean) == 0
    np.testing.assert_array_equal(gradient, 0)
    loss = jnp.asarray([[[1.0, jnp.inf]]])
    assert float(weigh_tokens(loss, jnp.asarray([[[2.0, 0.0]]])).mean) == 1


CONDITIONS = (jnp.ones((4000, 3, 2)), jnp.ones((4000, 2)), jnp.full(4000, 7))
EMPTY = (jnp.full((1, 3, 2), -1.0), jnp.full((1, 2), -1.0), jnp.asarray([-1]))


@pytest.mark.parametrize(("parity", "kept"), [(None, 0.9), ("open-muse", 0.1)])
def test_conditions_are_dropped_as_often_as_asked_and_open_muses_sense_is_the_inverse(parity, kept):
    states, pooled, label = drop_conditions(jax.random.key(0), CONDITIONS, EMPTY, 0.1, parity=parity)
    # three standard deviations of a share of 4000
    assert float((label == 7).mean()) == pytest.approx(kept, abs=3 * math.sqrt(0.09 / 4000))
    np.testing.assert_array_equal(states.reshape(4000, -1), np.where(label == 7, 1.0, -1.0)[:, None].repeat(6, 1))
    np.testing.assert_array_equal(pooled, np.where(label == 7, 1.0, -1.0)[:, None].repeat(2, 1))


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 1.0), (1.0, -1.0)])
def test_a_probability_of_nought_or_one_drops_none_or_all(probability, expected):
    states, pooled, label = drop_conditions(jax.random.key(0), (*CONDITIONS[:2], None), (*EMPTY[:2], None), probability)
    assert label is None
    np.testing.assert_array_equal(states, expected)
    np.testing.assert_array_equal(pooled, expected)


def test_zeros_within_a_condition_survive():
    states = jnp.asarray([[[0.0, 1.0]]])
    for seed in range(5):
        kept = drop_conditions(jax.random.key(seed), states, jnp.full((1, 1, 2), -1.0), 0.0)
        np.testing.assert_array_equal(kept, states)


def test_a_network_without_conditions_has_none_to_drop():
    assert drop_conditions(jax.random.key(0), (None, None), (None, None), 0.1) == (None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_rate": 1.5}, "masking.min_rate"),
        ({"rectangle_probability": -0.1}, "masking.rectangle_probability"),
        ({"ratios": ()}, "masking.ratios"),
        ({"ratios": (0.5, 0.0)}, "masking.ratios"),
    ],
)
def test_masking_out_of_range_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Masking(**options)


def test_a_dropout_probability_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="cond_dropout_prob"):
        drop_conditions(jax.random.key(0), CONDITIONS, EMPTY, 1.1)
