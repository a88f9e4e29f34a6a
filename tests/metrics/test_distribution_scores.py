import math

import jax
import numpy as np
import pytest
from scipy import linalg

from jaxkit.metrics.distributions import (
    Moments,
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold_scores,
)


def features(n, d, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + shift


def moments(mean, covariance):
    """Of a Gaussian, exactly."""
    return Moments(2, np.asarray(mean, float), np.asarray(covariance, float))


def test_moments_added_up_are_those_of_all_features():
    x = features(100, 7, shift=50.0)
    joined = Moments.of(x[:1]) + Moments.of(x[1:30]) + (Moments.of(x[30:90]) + Moments.of(x[90:]))
    assert joined.count == 100
    np.testing.assert_allclose(joined.mean, x.mean(0), rtol=1e-13)
    # a covariance of features of about 50 has lost four of float64's sixteen digits
    np.testing.assert_allclose(joined.covariance, np.cov(x, rowvar=False), rtol=1e-11, atol=1e-11)


def test_frechet_distance_equals_that_of_scipys_matrix_root():
    x, y = features(200, 12), features(150, 12, seed=1, shift=0.5)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(a @ b).real
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * root)
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    # commuting covariances: the sum of squared differences of standard deviations
    a, b = moments([1, 2, 3], np.diag([1.0, 4.0, 9.0])), moments([1, 2, 5], np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(4 + 1 + 0 + 4, rel=1e-12)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_frechet_distance_of_fewer_features_than_their_width_is_finite_and_zero_to_itself():
    x, y = features(20, 64), features(15, 64, seed=1)
    a, b = Moments.of(x), Moments.of(y)
    # singular covariances: exact by the singular values of the two centred sets' product
    centred = (x - x.mean(0)).T / math.sqrt(19), (y - y.mean(0)).T / math.sqrt(14)
    overlap = np.linalg.svd(centred[0].T @ centred[1], compute_uv=False).sum()
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance) - 2 * overlap
    # eigenvalues that should be 0 are about 1e-13 of the largest, their roots 3e-7
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5 * np.trace(a.covariance))


def test_features_of_float32_on_a_device_are_taken_in_float64():
    x = jax.random.normal(jax.random.key(0), (50, 4)) + 1000
    assert Moments.of(x).mean.dtype == np.float64
    np.testing.assert_allclose(Moments.of(x).covariance, np.cov(np.asarray(x, np.float64), rowvar=False), rtol=1e-9)


def loop_mmd(x, y):
    k = lambda a, b: (a @ b / len(a) + 1) ** 3  # noqa: E731
    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kernel_distance_of_all_features_equals_that_of_loops():
    x, y = features(12, 5), features(12, 5, seed=1)
    score = kernel_distance(x, y, subsets=3, subset_size=100)
    assert score.mean == pytest.approx(loop_mmd(x, y), rel=1e-12)
    assert score.deviation == pytest.approx(0, abs=1e-12)


def test_kernel_distance_is_unbiased_seeded_and_grows_with_the_distance():
    rng = np.random.default_rng(0)
    real, same = rng.normal(size=(2, 2000, 8))
    score = kernel_distance(real, same, subsets=200, subset_size=50)
    # the mean of 200 subsets: nearly independent, as each takes 50 of 2000
    assert abs(score.mean) < 4 * score.deviation / math.sqrt(200)
    assert kernel_distance(real, same, subsets=5, subset_size=50) == kernel_distance(
        real, same, subsets=5, subset_size=50
    )
    assert kernel_distance(real, same, subsets=5, subset_size=50, seed=1) != kernel_distance(
        real, same, subsets=5, subset_size=50
    )
    far = [kernel_distance(real, same + shift, subsets=20, subset_size=200).mean for shift in (0.2, 0.4, 0.8)]
    assert 0 < far[0] < far[1] < far[2]


def loop_manifolds(x, y, k):
    distance = lambda a, b: math.sqrt(sum((a - b) ** 2))  # noqa: E731
    radius = lambda rows: [sorted(distance(a, b) for b in rows)[k] for a in rows]  # noqa: E731
    rx, ry = radius(x), radius(y)
    inside = [[distance(x[i], b) <= rx[i] for i in range(len(x))] for b in y]
    recalled = [any(distance(a, y[j]) <= ry[j] for j in range(len(y))) for a in x]
    return (
        np.mean([any(row) for row in inside]),
        np.mean(recalled),
        np.sum(inside) / (k * len(y)),
        np.mean(np.any(inside, 0)),
    )


@pytest.mark.parametrize(("neighbours", "shift"), [(1, 0.0), (3, 0.5), (5, 2.0)])
def test_manifolds_equal_those_of_loops(neighbours, shift):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(25, 3)) * 0.7 + shift
    ours = manifold_scores(x, y, neighbours=neighbours)
    np.testing.assert_allclose(ours, loop_manifolds(x, y, neighbours), rtol=1e-12)


def test_manifolds_in_several_blocks_equal_those_in_one(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(37, 4))
    whole = manifold_scores(x, y)
    monkeypatch.setattr("jaxkit.metrics.distributions.BLOCK", 8)
    assert manifold_scores(x, y) == whole


def test_a_set_far_away_has_neither_precision_nor_recall_and_collapse_loses_recall():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    assert tuple(manifold_scores(x, x + 100)) == (0, 0, 0, 0)
    collapsed = manifold_scores(x, x[:1] + 0.01 * rng.normal(size=(200, 4)))
    assert collapsed.precision > 0.95
    assert collapsed.recall < 0.05
    assert collapsed.coverage < 0.1


def test_inception_score_is_the_number_of_classes_at_best_and_one_at_worst():
    assert inception_score(np.eye(10)[np.arange(100) % 10], splits=1).mean == pytest.approx(10, rel=1e-12)
    assert inception_score(np.full((100, 10), 0.1)).mean == pytest.approx(1, rel=1e-12)
    assert inception_score(np.eye(10)[np.zeros(100, int)], splits=5) == pytest.approx((1, 0))


def test_inception_score_of_splits_equals_that_of_loops():
    p = np.random.default_rng(0).dirichlet(np.full(5, 0.3), size=23)
    scores = []
    for part in (p[:8], p[8:16], p[16:]):
        marginal = part.mean(0)
        kl = [sum(q * math.log(q / m) for q, m in zip(row, marginal, strict=True) if q > 0) for row in part]
        scores.append(math.exp(sum(kl) / len(kl)))
    assert inception_score(p, splits=3) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


def test_sets_that_cannot_be_compared_are_refused():
    x, y = features(10, 3), features(10, 4)
    with pytest.raises(ValueError, match="3 and of 4 numbers"):
        frechet_distance(Moments.of(x), Moments.of(y))
    with pytest.raises(ValueError, match="3 and of 4 numbers"):
        kernel_distance(x, y)
    with pytest.raises(ValueError, match="3 neighbours need more features than 3 and 10"):
        manifold_scores(x[:3], x)
    with pytest.raises(ValueError, match="two features of each kind"):
        kernel_distance(x[:1], x)
    with pytest.raises(ValueError, match="3 rows cannot be split into 10"):
        inception_score(np.eye(3))
    with pytest.raises(ValueError, match="no features"):
        Moments.of(x[:0])
