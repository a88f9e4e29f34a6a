import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit import losses
from jaxkit.losses.classification import cross_entropy, label_smoothing, tfkd_regularization
from jaxkit.schema.losses import CLASSIFY_LOSSES, TfkdRegularization

# float64 throughout: 1e-12 leaves room for a few hundred roundings of 2e-16
TIGHT = 1e-12


def reference_batch():
    """Logits and labels of the figures published with the reference code: 8 examples, 100 classes."""
    i, j = np.arange(8.0)[:, None], np.arange(100.0)[None]
    return 3 * np.sin(7 * i + 0.37 * j), (13 * np.arange(8) + 5) % 100


def random_batch(num_classes=7):
    rng = np.random.default_rng(0)
    return 3 * rng.normal(size=(6, num_classes)), rng.integers(0, num_classes, 6)


def gradient(loss, logits):
    return np.asarray(jax.grad(lambda z: jnp.mean(loss(z)))(jnp.asarray(logits)))


def torch_gradient(loss, logits):
    z = torch.tensor(logits, requires_grad=True)
    loss(z).backward()
    return z.grad.numpy()


@pytest.mark.parametrize(
    ("config", "golden"),
    [
        ({"name": "cross_entropy"}, 6.272548207116658),
        ({"name": "cross_entropy", "label_smoothing": 0.1}, 6.264626001257547),
        ({"name": "label_smoothing"}, 6.264545978976141),
        ({"name": "tfkd_regularization", "alpha": 0.1, "temperature": 20, "multiplier": 100}, 5.804114252915681),
        ({"name": "tfkd_regularization", "alpha": 0.95, "temperature": 40}, 0.3287151097980149),
    ],
)
def test_the_mean_over_the_batch_is_the_reference_codes_loss(config, golden):
    logits, label = reference_batch()
    section = CLASSIFY_LOSSES[config["name"]](**config)
    with jax.enable_x64(True):
        values = losses.per_example(section, jnp.asarray(logits), jnp.asarray(label))
        assert values.shape == (8,)
        assert values.dtype == jnp.float64
        assert float(values.mean()) == pytest.approx(golden, rel=TIGHT)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_and_its_gradient_equal_torchs(smoothing):
    logits, label = random_batch()
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(label), label_smoothing=smoothing, reduction="none"
    )
    with jax.enable_x64(True):
        loss = lambda z: cross_entropy(z, jnp.asarray(label), label_smoothing=smoothing)  # noqa: E731
        np.testing.assert_allclose(loss(jnp.asarray(logits)), expected.numpy(), rtol=TIGHT)
        torch_loss = lambda z: torch.nn.functional.cross_entropy(z, torch.tensor(label), label_smoothing=smoothing)  # noqa: E731
        np.testing.assert_allclose(gradient(loss, logits), torch_gradient(torch_loss, logits), rtol=TIGHT, atol=1e-15)


def test_label_smoothing_is_torchs_with_alpha_over_the_other_classes():
    logits, label = random_batch()
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(label), label_smoothing=0.3 * 7 / 6, reduction="none"
    )
    with jax.enable_x64(True):
        values = label_smoothing(jnp.asarray(logits), jnp.asarray(label), alpha=0.3)
        np.testing.assert_allclose(values, expected.numpy(), rtol=TIGHT)


@pytest.mark.parametrize(("temperature", "num_classes"), [(20.0, 100), (2.0, 7), (0.01, 2)])
@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_tfkd_regularization_is_a_kl_from_the_softened_hand_made_teacher(temperature, num_classes, reduction):
    logits, label = random_batch(num_classes)

    def reference(z):
        teacher = torch.full(z.shape, 0.01 / (num_classes - 1), dtype=torch.float64)
        teacher[torch.arange(6), torch.tensor(label)] = 0.99
        log_teacher = torch.log_softmax(teacher / temperature, -1)
        kl = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)(torch.log_softmax(z, -1), log_teacher)
        kl = kl / num_classes if reduction == "mean" else kl  # torch's own "mean" warns that it will change its meaning
        return 0.6 * torch.nn.functional.cross_entropy(z, torch.tensor(label)) + 0.4 * 3 * kl

    settings = {"alpha": 0.4, "temperature": temperature, "multiplier": 3.0, "reduction": reduction}
    with jax.enable_x64(True):
        loss = lambda z: tfkd_regularization(z, jnp.asarray(label), **settings)  # noqa: E731
        assert float(loss(jnp.asarray(logits)).mean()) == pytest.approx(
            reference(torch.tensor(logits)).item(), rel=TIGHT
        )
        np.testing.assert_allclose(gradient(loss, logits), torch_gradient(reference, logits), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize(
    ("alpha", "temperature", "multiplier", "tolerance"),
    # the published settings; with a uniform teacher in place of the nearly uniform one, gradients differ by this much
    [(0.1, 20.0, 100.0, 1.7e-4), (0.1, 40.0, 50.0, 1.7e-4), (0.95, 40.0, 1.0, 1.7e-4), (0.95, 10.0, 1.0, 3.4e-4)],
)
def test_tfkd_regularization_has_the_gradient_of_a_scaled_smoothed_cross_entropy(
    alpha, temperature, multiplier, tolerance
):
    logits, label = reference_batch()
    config = TfkdRegularization(name="tfkd_regularization", alpha=alpha, temperature=temperature, multiplier=multiplier)
    weight = alpha * multiplier / 100
    scale = 1 - alpha + weight
    log_uniform_excess = (
        np.log(np.exp(0.99 / temperature) + 99 * np.exp(0.01 / 99 / temperature)) - 0.01 / 99 / temperature
    )
    exact = weight / scale * 100 * np.exp(-log_uniform_excess)
    with jax.enable_x64(True):
        ours = gradient(lambda z: losses.per_example(config, z, jnp.asarray(label)), logits)
        for smoothing, limit in ((weight / scale, tolerance), (exact, 1e-11)):
            smoothed = gradient(
                lambda z, s=float(smoothing): scale * cross_entropy(z, jnp.asarray(label), label_smoothing=s), logits
            )
            assert np.linalg.norm(ours - smoothed) / np.linalg.norm(ours) < limit


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_logits_are_upcast_first(dtype):
    logits, label = random_batch()
    half = jnp.asarray(logits, dtype)
    values = cross_entropy(half, jnp.asarray(label))
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, cross_entropy(half.astype(jnp.float32), jnp.asarray(label)))


def test_logits_of_any_size_give_finite_losses_and_gradients():
    logits = jnp.asarray([[3e4, -3e4, 0.0], [-3e4, 3e4, 3e4]])
    label = jnp.asarray([1, 1])
    for loss in (cross_entropy, label_smoothing):
        assert np.isfinite(loss(logits, label)).all()
        assert np.isfinite(gradient(lambda z, loss=loss: loss(z, label), logits)).all()
    # the exact values: 6e4, and log 2 for two equal largest logits
    np.testing.assert_allclose(cross_entropy(logits, label), [6e4, np.log(2)], rtol=1e-6)


def test_a_class_masked_out_by_minus_infinity_is_ignored():
    label = jnp.asarray([0])
    masked = cross_entropy(jnp.asarray([[1.0, 2.0, -jnp.inf]]), label)
    np.testing.assert_allclose(masked, cross_entropy(jnp.asarray([[1.0, 2.0]]), label), rtol=1e-6)


def test_a_label_that_is_no_class_gives_nan():
    assert jnp.isnan(cross_entropy(jnp.zeros((1, 3)), jnp.asarray([3])))[0]
