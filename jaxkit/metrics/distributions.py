"""How alike two sets of images are, by their features in any frozen network: float64, on the host.

Features are rows ``[n d]`` of what a classifier makes of each image before its last layer. Figures can be compared with
published ones only if the network is the one they were made with: Inception-v3's 2048 pooled features for FID.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

Rows = Float[np.ndarray, "n d"] | Float[Array, "n d"]
Others = Float[np.ndarray, "m e"] | Float[Array, "m e"]
BLOCK = 1024


class Score(NamedTuple):
    """The mean over subsets or splits, and their standard deviation."""

    mean: float
    deviation: float


class Manifolds(NamedTuple):
    """Precision, recall, density and coverage: how real the generated are, and how many of the real they cover."""

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True, eq=False)
class Moments:
    """The mean and scatter of features seen so far: memory for ``d²`` numbers, however many the features.

    Build by ``Moments.of(features)``, add another batch by ``+``; the sum is that of all features at once.
    """

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Rows) -> "Moments":
        """Takes the moments of one batch.

        Raises:
            ValueError: for no features at all.
        """
        x = _rows(features)
        mean = x.mean(0)
        return cls(len(x), mean, (x - mean).T @ (x - mean))

    def __add__(self, other: "Moments") -> "Moments":
        """Joins two batches. Source: Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance", 1983."""
        count = self.count + other.count
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), scatter)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """The unbiased covariance; 0 of a single row."""
        return self.scatter / max(1, self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Takes the Fréchet distance of two Gaussians, squared: FID, 0 if they are alike.

    ``|μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a^½ Σ_b Σ_a^½)^½)``. The root's trace is the sum of the roots of eigenvalues of
    a symmetric matrix, which are real and not negative however few the features, so singular covariances are no matter.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017.

    Raises:
        ValueError: for features of different widths.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} numbers cannot be compared")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    inner = root @ b.covariance @ root
    overlap = np.sqrt(np.linalg.eigvalsh((inner + inner.T) / 2).clip(0)).sum()
    distance = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    # what rounding leaves of two that are alike may lie below 0
    return float(max(distance, 0.0))


def kernel_distance(
    real: Rows, generated: Others, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Score:
    """Takes KID: the unbiased squared maximum mean discrepancy by the kernel ``(x·y / d + 1)³``.

    0 on average if both come from one distribution, whatever their number; single values may lie below 0.

    Source: Bińkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4.

    Args:
        real: features.
        generated: features.
        subsets: random subsets to take the mean over.
        subset_size: features of each, drawn without repetition; all where there are fewer.
        seed: of the subsets.

    Raises:
        ValueError: for fewer than two rows, or features of different widths.
    """
    x, y = _pair(real, generated)
    size = min(subset_size, len(x), len(y))
    if size < 2:
        raise ValueError("KID needs two features of each kind at least")
    rng = np.random.default_rng(seed)
    pick = lambda rows: rows[rng.choice(len(rows), size, replace=False)]  # noqa: E731
    values = [_mmd(pick(x), pick(y)) for _ in range(subsets)]
    return Score(float(np.mean(values)), float(np.std(values)))


def manifold_scores(real: Rows, generated: Others, *, neighbours: int = 3) -> Manifolds:
    """Compares manifolds, each the balls around its features that reach to the k-th neighbour.

    Precision is the share of generated features within any ball of real ones, recall that of real ones within any of
    generated ones; density counts the balls of real ones around each generated feature, by ``k``, and coverage is the
    share of real balls with a generated feature in them.

    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019
    (k = 3); Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020 (k = 5).

    Raises:
        ValueError: for ``neighbours`` or fewer rows of either kind, or features of different widths.
    """
    x, y = _pair(real, generated)
    if not 1 <= neighbours < min(len(x), len(y)):
        raise ValueError(f"{neighbours} neighbours need more features than {len(x)} and {len(y)}")
    x_radius, y_radius = _radii(x, neighbours), _radii(y, neighbours)
    precise, balls, recalled, covered = [], 0, np.zeros(len(x), bool), np.zeros(len(x), bool)
    for block in _blocks(len(y)):
        distance = _squared_distances(y[block], x)
        inside = distance <= x_radius
        precise.append(inside.any(1))
        balls += inside.sum()
        covered |= inside.any(0)
        recalled |= (distance <= y_radius[block, None]).any(0)
    return Manifolds(
        precision=float(np.concatenate(precise).mean()),
        recall=float(recalled.mean()),
        density=float(balls / (neighbours * len(y))),
        coverage=float(covered.mean()),
    )


def inception_score(probabilities: Rows, *, splits: int = 10) -> Score:
    """Takes ``exp(mean KL(p(class | image) ‖ p(class)))`` of each of some splits: 1 to the number of classes.

    Source: Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016, section 4.

    Args:
        probabilities: of the classes, a row an image, in the order they were generated.
        splits: parts of the rows, one after the other, whose score is taken apart.

    Raises:
        ValueError: for fewer rows than splits.
    """
    p = _rows(probabilities)
    if not 1 <= splits <= len(p):
        raise ValueError(f"{len(p)} rows cannot be split into {splits} parts")
    scores = []
    for part in np.array_split(p, splits):
        ratio = np.where(part > 0, part, 1) / np.where(part > 0, part.mean(0), 1)
        scores.append(np.exp(np.mean(np.sum(part * np.log(ratio), 1))))
    return Score(float(np.mean(scores)), float(np.std(scores)))


def _rows(features) -> np.ndarray:
    rows = np.asarray(features, np.float64)
    if not len(rows):
        raise ValueError("there are no features")
    return rows


def _pair(real, generated) -> tuple[np.ndarray, np.ndarray]:
    x, y = _rows(real), _rows(generated)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of {x.shape[1]} and of {y.shape[1]} numbers cannot be compared")
    return x, y


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    n, d = x.shape
    kernel = lambda a, b: (a @ b.T / d + 1) ** 3  # noqa: E731
    within = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y)))
    return within / (n * (n - 1)) - 2 * kernel(x, y).mean()


def _radii(x: np.ndarray, neighbours: int) -> np.ndarray:
    """The squared distance of each row to its k-th neighbour, itself not counted."""
    # itself is the nearest, so the k-th other is at index k
    nearest = [np.partition(_squared_distances(x[block], x), neighbours, 1)[:, neighbours] for block in _blocks(len(x))]
    return np.concatenate(nearest)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = np.sum(x * x, 1)[:, None] + np.sum(y * y, 1)[None]
    return np.maximum(squares - 2 * x @ y.T, 0)


def _blocks(rows: int) -> list[slice]:
    """Parts of the rows small enough for their distances to all others to fit in memory."""
    return [slice(start, start + BLOCK) for start in range(0, rows, BLOCK)]
