import warnings
from itertools import combinations, permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.spiking.readouts import (
    MaxRateClassifier,
    first_spike_times,
    isi,
    spike_counts,
    spike_rates,
    spike_times,
    victor_purpura_pair_dist,
)

NAN = np.nan
TRAINS = jnp.array([[1.0, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0], [1, 0, 0]])


def original():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("inferno")


def random_trains(seed, shape=(40, 3, 4), rate=0.2):
    return jnp.asarray(np.random.default_rng(seed).random(shape) < rate, jnp.float32)


def test_counts_and_rates_are_those_of_the_train():
    np.testing.assert_array_equal(spike_counts(TRAINS), [3, 0, 1])
    # 3 spikes in 5 steps of 2 ms
    np.testing.assert_allclose(spike_rates(TRAINS, 2.0), [300, 0, 100], rtol=1e-6)


def test_counts_of_bfloat16_spikes_are_not_rounded():
    assert float(spike_counts(jnp.ones((1001, 1), jnp.bfloat16))[0]) == 1001


def test_counts_pass_gradients_on():
    np.testing.assert_array_equal(jax.grad(lambda s: spike_counts(s)[0])(TRAINS)[:, 0], np.ones(5))


def test_the_first_spike_of_a_silent_neuron_never_comes():
    np.testing.assert_array_equal(first_spike_times(TRAINS, 0.5), [0, np.inf, 1])


def test_spike_times_come_in_order_then_nan():
    np.testing.assert_array_equal(spike_times(TRAINS, 0.5)[:, 0], [0, 1, 2, NAN, NAN])
    np.testing.assert_array_equal(spike_times(TRAINS, 0.5)[:, 1], [NAN] * 5)


def test_intervals_lie_between_successive_spikes():
    np.testing.assert_array_equal(isi(TRAINS, 0.5)[:, 0], [1, 1, NAN, NAN])
    # one spike or none has no interval
    assert np.isnan(isi(TRAINS, 0.5)[:, 1:]).all()


def test_intervals_match_the_original_which_cuts_the_rows_of_nan():
    import torch

    spikes = random_trains(0)
    expected = original().isi(torch.from_numpy(np.array(spikes)).bool(), 0.7).numpy()
    ours = np.asarray(jax.jit(isi, static_argnums=1)(spikes, 0.7))
    # times of up to 28 ms in float32 are off by up to 2e-6
    np.testing.assert_allclose(ours[: len(expected)], expected, atol=4e-6)
    assert np.isnan(ours[len(expected) :]).all()


def cheapest(t0, t1, cost):
    """Tries all ways to keep some spikes of one train as some of the other, in order."""
    best = len(t0) + len(t1)
    for k in range(1, min(len(t0), len(t1)) + 1):
        for kept in combinations(t0, k):
            for made in permutations(t1, k):
                moved = sum(cost * abs(a - b) for a, b in zip(kept, made, strict=True))
                best = min(best, len(t0) + len(t1) - 2 * k + moved)
    return best


@pytest.mark.parametrize("cost", [0.0, 0.05, 0.5, 3.0])
def test_the_distance_is_the_cheapest_of_all_ways(cost):
    rng = np.random.default_rng(1)
    for _ in range(5):
        t0, t1 = (np.sort(rng.uniform(0, 20, n)).astype(np.float32) for n in (4, 3))
        ours = victor_purpura_pair_dist(jnp.array(t0), jnp.array(t1), cost)
        np.testing.assert_allclose(ours, [cheapest(t0, t1, cost)], atol=1e-5)


def test_the_distance_matches_the_original_for_many_costs_and_padded_pairs_at_once():
    import torch

    inferno = original()
    costs = np.array([0.01, 0.1, 0.3, 1.0, 10.0], np.float32)
    first, second = (spike_times(random_trains(seed, (30, 6)), 1.0).T for seed in (2, 3))
    distances = jax.jit(jax.vmap(victor_purpura_pair_dist, (0, 0, None)))(first, second, jnp.array(costs))
    for t0, t1, ours in zip(np.array(first), np.array(second), distances, strict=True):
        pair = (torch.from_numpy(t[~np.isnan(t)]) for t in (t0, t1))
        # sums of up to 20 terms in float32, in another order
        np.testing.assert_allclose(
            ours, inferno.victor_purpura_pair_dist(*pair, torch.from_numpy(costs)).numpy(), atol=1e-5
        )


def test_an_infinite_cost_leaves_spikes_at_the_same_time_alike():
    t0, t1 = jnp.array([1.0, 2.0, 5.0]), jnp.array([2.0, 4.0])
    assert victor_purpura_pair_dist(t0, t1, jnp.inf).item() == 3


def test_the_distance_to_an_empty_train_is_the_number_of_spikes():
    t0 = jnp.array([1.0, 2.0, 5.0])
    for empty in (jnp.zeros(0), jnp.full(4, jnp.nan)):
        assert victor_purpura_pair_dist(t0, empty, 0.3).item() == 3
        assert victor_purpura_pair_dist(empty, t0, 0.3).item() == 3


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_classifier_matches_the_original_over_many_batches(proportional, decay):
    import torch

    original()
    from inferno.learn import MaxRateClassifier as Original

    rng = np.random.default_rng(4)
    theirs, ours = Original((3, 4), 5, decay=decay), MaxRateClassifier((3, 4), 5, decay)
    rates, step = ours.initialize_carry(), jax.jit(ours.update)
    for _ in range(8):
        inputs, labels = rng.random((7, 3, 4), np.float32), rng.integers(0, 5, 7).astype(np.int32)
        theirs.update(torch.from_numpy(inputs), torch.from_numpy(labels).long())
        rates = step(rates, inputs, labels)
    # float32: sums over 7 inputs and 8 batches
    np.testing.assert_allclose(rates, theirs.rates.numpy(), rtol=1e-5)
    np.testing.assert_allclose(ours.proportions(rates), theirs.proportions.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(ours.assignments(rates), theirs.assignments.numpy())
    np.testing.assert_array_equal(ours.occurrences(rates), theirs.occurrences.numpy())
    logits = ours.regress(rates, jnp.array(inputs), proportional=proportional)
    np.testing.assert_allclose(logits, theirs.regress(torch.from_numpy(inputs), proportional).numpy(), rtol=1e-5)
    predicted = ours.classify(rates, jnp.array(inputs), proportional=proportional)
    np.testing.assert_array_equal(predicted, theirs.classify(torch.from_numpy(inputs), proportional).numpy())


def test_a_neuron_that_never_fired_does_not_dilute_the_first_class():
    classifier = MaxRateClassifier((4,), 2)
    rates = jnp.array([[0.2, 0.0], [0.0, 0.3], [0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(classifier.assignments(rates), [0, 1, -1, -1])
    np.testing.assert_array_equal(classifier.occurrences(rates), [1, 1])
    # the original would divide the first by three neurons, two of which are silent, and say 1
    assert classifier.classify(rates, jnp.array([[0.5, 0.4, 0.0, 0.0]])).item() == 0


def test_a_class_without_neurons_has_a_logit_of_zero():
    logits = MaxRateClassifier((1,), 3).regress(jnp.array([[0.0, 1.0, 0.0]]), jnp.array([[0.5]]))
    np.testing.assert_array_equal(logits, [[0, 0.5, 0]])


def test_a_batch_is_classified_before_its_labels_are_learned():
    classifier = MaxRateClassifier((2,), 2)
    # [t b n]: in the first half the first neuron fires for the first input, the second for the second
    spikes = jnp.zeros((10, 2, 2)).at[:5].set(jnp.eye(2))
    labels = jnp.array([1, 0])
    rates, before = classifier(classifier.initialize_carry(), spikes, labels)
    _, after = classifier(rates, spikes, labels)
    assert before.tolist() == [0, 0]
    assert after.tolist() == [1, 0]


def test_a_classifier_of_nothing_is_refused():
    with pytest.raises(ValueError, match="shape must be"):
        MaxRateClassifier((0,), 3)
    with pytest.raises(ValueError, match="decay"):
        MaxRateClassifier((3,), 3, -1.0)
