import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit import losses
from jaxkit.losses.distillation import knowledge_distillation, self_distillation
from jaxkit.schema.losses import DISTILL_LOSSES

# float64 throughout: 1e-12 leaves room for a few hundred roundings of 2e-16
TIGHT = 1e-12


def reference_batch():
    """Student, teacher and labels of the figures published with the reference code: 8 examples, 100 classes."""
    i, j = np.arange(8.0)[:, None], np.arange(100.0)[None]
    return 3 * np.sin(7 * i + 0.37 * j), 4 * np.cos(5 * i + 0.23 * j), (13 * np.arange(8) + 5) % 100


@pytest.mark.parametrize(
    ("config", "golden"),
    [
        ({"name": "kd", "alpha": 0.95, "temperature": 20, "reduction": "mean"}, 0.37209233853746554),
        ({"name": "kd", "alpha": 0.6, "temperature": 20, "reduction": "mean"}, 2.545944500645589),
        ({"name": "kd", "alpha": 1.0}, 5.478662381697495),
        ({"name": "self_distillation", "alpha": 0.95, "temperature": 6, "multiplier": 50}, 3.0877176550533574),
    ],
)
def test_the_mean_over_the_batch_is_the_reference_codes_loss(config, golden):
    section = DISTILL_LOSSES[config["name"]](**config)
    with jax.enable_x64(True):
        values = losses.per_example(section, *map(jnp.asarray, reference_batch()))
        assert values.shape == (8,)
        assert float(values.mean()) == pytest.approx(golden, rel=TIGHT)


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_the_loss_and_its_gradient_equal_torchs(reduction, temperature):
    rng = np.random.default_rng(0)
    student, teacher, label = rng.normal(size=(6, 5)) * 3, rng.normal(size=(6, 5)) * 3, rng.integers(0, 5, 6)

    z = torch.tensor(student, requires_grad=True)
    kl = torch.nn.KLDivLoss(reduction="batchmean")(
        torch.log_softmax(z / temperature, -1), torch.softmax(torch.tensor(teacher) / temperature, -1)
    )
    kl = kl / 5 if reduction == "mean" else kl  # torch's own "mean" warns that it will change its meaning
    expected = 0.3 * torch.nn.functional.cross_entropy(z, torch.tensor(label)) + 0.7 * temperature**2 * 2 * kl
    expected.backward()

    def loss(z):
        return self_distillation(
            z,
            jnp.asarray(teacher),
            jnp.asarray(label),
            alpha=0.7,
            temperature=temperature,
            multiplier=2.0,
            reduction=reduction,
        ).mean()

    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(loss)(jnp.asarray(student))
        assert float(value) == pytest.approx(expected.item(), rel=TIGHT)
        np.testing.assert_allclose(gradient, z.grad.numpy(), rtol=TIGHT, atol=1e-15)


def test_no_gradient_reaches_the_teacher():
    student, teacher, label = map(jnp.asarray, reference_batch())
    gradient = jax.grad(lambda t: knowledge_distillation(student, t, label).sum())(teacher)
    assert not np.any(gradient)


def test_a_student_equal_to_its_teacher_has_only_the_cross_entropy_left():
    student, _, label = map(jnp.asarray, reference_batch())
    left = knowledge_distillation(student, student, label, alpha=0.75)
    np.testing.assert_allclose(left, 0.25 * losses.classification.cross_entropy(student, label), rtol=1e-6)


def test_logits_far_apart_give_finite_losses_and_gradients():
    student, teacher = jnp.asarray([[3e4, -3e4, 0.0]]), jnp.asarray([[-3e4, 3e4, 0.0]])
    loss = lambda z: knowledge_distillation(z, teacher, jnp.asarray([0]), temperature=1.0).mean()  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(student)
    # the teacher is sure of a class the student finds exp(-6e4) likely
    assert float(value) == pytest.approx(0.9 * 6e4, rel=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_logits_are_upcast_first(dtype):
    student, teacher, label = map(jnp.asarray, reference_batch())
    half = [x.astype(dtype) for x in (student, teacher)]
    values = knowledge_distillation(*half, label)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, knowledge_distillation(*(x.astype(jnp.float32) for x in half), label))
