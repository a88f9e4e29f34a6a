"""Losses of a student's logits against a teacher's. One value an example, in float32 at least."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkit.losses.classification import cross_entropy, log_probabilities
from jaxkit.losses.effective import EffectiveWeights, Reduction, Term, divergence_weight, weigh


def knowledge_distillation(
    student: Float[Array, "b c"],
    teacher: Float[Array, "b c"],
    label: Int[Array, " b"],
    *,
    alpha: float = 0.9,
    temperature: float = 4.0,
    reduction: Reduction = "batchmean",
) -> Float[Array, " b"]:
    """Mixes the labels' cross-entropy with the divergence from the teacher's softened output.

    ``(1 - α) CE + α T² KL(p_T ‖ q_T)``, with ``p_T = softmax(teacher / T)`` and ``q_T = softmax(student / T)``;
    ``reduction="mean"`` divides the divergence by the number of classes, as ``torch.nn.KLDivLoss()`` does by default.
    No gradient reaches the teacher.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    return self_distillation(
        student, teacher, label, alpha=alpha, temperature=temperature, multiplier=1.0, reduction=reduction
    )


def self_distillation(
    student: Float[Array, "b c"],
    teacher: Float[Array, "b c"],
    label: Int[Array, " b"],
    *,
    alpha: float,
    temperature: float,
    multiplier: float,
    reduction: Reduction = "mean",
) -> Float[Array, " b"]:
    """Distils from a trained copy of the student (Tf-KD_self): ``(1 - α) CE + α m T² KL(p_T ‖ q_T) / C``.

    Terms as in :func:`knowledge_distillation`; ``reduction="batchmean"`` leaves out the division by C.

    Source: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020, eq. 9.
    """
    weight = alpha * multiplier * divergence_weight(reduction, student.shape[-1])
    divergence = temperature**2 * _divergence(student, teacher, temperature)
    return (1.0 - alpha) * cross_entropy(student, label) + weight * divergence


def knowledge_distillation_weights(
    num_classes: int, *, alpha: float = 0.9, temperature: float = 4.0, reduction: Reduction = "batchmean"
) -> EffectiveWeights:
    """Names the two terms of :func:`knowledge_distillation`."""
    return self_distillation_weights(
        num_classes, alpha=alpha, temperature=temperature, multiplier=1.0, reduction=reduction
    )


def self_distillation_weights(
    num_classes: int, *, alpha: float, temperature: float, multiplier: float, reduction: Reduction = "mean"
) -> EffectiveWeights:
    """Names the two terms of :func:`self_distillation`."""
    weight = alpha * multiplier * divergence_weight(reduction, num_classes)
    return weigh(Term(1.0 - alpha, "CE"), Term(weight, f"T²·KL(T={temperature:g})"))


def _divergence(student: Float[Array, "b c"], teacher: Float[Array, "b c"], temperature: float) -> Float[Array, " b"]:
    log_p = log_probabilities(jax.lax.stop_gradient(teacher), temperature)
    log_q = log_probabilities(student, temperature)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
