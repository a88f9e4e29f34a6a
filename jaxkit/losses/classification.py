"""Losses of logits against labels. One value an example, in float32 at least."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkit.losses.effective import EffectiveWeights, Reduction, Term, divergence_weight, weigh

VIRTUAL_TEACHER_ACCURACY = 0.99


def log_probabilities(logits: Float[Array, "b c"], temperature: float = 1.0) -> Float[Array, "b c"]:
    """Takes ``log softmax(logits / temperature)`` in float32, or in float64 where the logits are."""
    return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature)


def cross_entropy(
    logits: Float[Array, "b c"], label: Int[Array, " b"], *, label_smoothing: float = 0.0
) -> Float[Array, " b"]:
    """Takes the cross-entropy of the labels, each mixed with ``label_smoothing`` of a uniform distribution.

    ``-Σ_c q_c log p_c``, with ``q = 1 - ε + ε/C`` on the label and ``ε/C`` on the ``C - 1`` others: the definition of
    torch and optax. A label of ``C`` or more gives NaN.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7.
    """
    off = label_smoothing / logits.shape[-1]
    return _two_level_cross_entropy(logits, label, 1.0 - label_smoothing + off, off)


def cross_entropy_weights(num_classes: int, *, label_smoothing: float = 0.0) -> EffectiveWeights:
    """Names the one term of :func:`cross_entropy`."""
    return weigh(_smoothed(1.0, label_smoothing))


def label_smoothing(logits: Float[Array, "b c"], label: Int[Array, " b"], *, alpha: float = 0.1) -> Float[Array, " b"]:
    """Takes the cross-entropy of ``1 - α`` on the label and ``α / (C - 1)`` on each other class.

    That is :func:`cross_entropy` with a ``label_smoothing`` of ``α C / (C - 1)``.

    Source: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020, its code.
    """
    return _two_level_cross_entropy(logits, label, 1.0 - alpha, alpha / (logits.shape[-1] - 1))


def label_smoothing_weights(num_classes: int, *, alpha: float = 0.1) -> EffectiveWeights:
    """Says which label smoothing of torch and optax this is."""
    return weigh(_smoothed(1.0, alpha * num_classes / (num_classes - 1)))


def tfkd_regularization(
    logits: Float[Array, "b c"],
    label: Int[Array, " b"],
    *,
    alpha: float,
    temperature: float,
    multiplier: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Array, " b"]:
    """Distils from a hand-made teacher that is 99 % sure of the label (Tf-KD_reg).

    ``(1 - α) CE + α m KL(u_T ‖ p) / C``, with ``u`` 0.99 on the label and ``0.01 / (C - 1)`` elsewhere,
    ``u_T = softmax(u / T)`` and ``p`` at temperature 1; ``reduction="batchmean"`` leaves out the division by C.
    ``u_T`` is a softmax of probabilities, hence nearly uniform: see :func:`tfkd_regularization_weights`.

    Source: Yuan et al., CVPR 2020, eq. 10, as in its code (the equation has ``p`` at temperature T).
    """
    num_classes = logits.shape[-1]
    log_on, log_off = _virtual_teacher(num_classes, temperature)
    on, off = math.exp(log_on), math.exp(log_off)
    negative_entropy = on * log_on + (num_classes - 1) * off * log_off
    divergence = negative_entropy + _two_level_cross_entropy(logits, label, on, off)
    weight = alpha * multiplier * divergence_weight(reduction, num_classes)
    return (1.0 - alpha) * cross_entropy(logits, label) + weight * divergence


def tfkd_regularization_weights(
    num_classes: int, *, alpha: float, temperature: float, multiplier: float = 1.0, reduction: Reduction = "mean"
) -> EffectiveWeights:
    """Finds the scaled, smoothed cross-entropy that has the gradient of :func:`tfkd_regularization`.

    ``s CE(label smoothing ε)``, with ``w`` the divergence's weight, ``s = 1 - α + w`` and ``ε = w C v / s``, where
    ``v`` is what the hand-made teacher gives a class other than the label (``C v`` is close to 1).
    """
    weight = alpha * multiplier * divergence_weight(reduction, num_classes)
    scale = 1.0 - alpha + weight
    spread = num_classes * math.exp(_virtual_teacher(num_classes, temperature)[1])
    return weigh(
        Term(1.0 - alpha, "CE"),
        Term(weight, "KL from the hand-made teacher"),
        same_as=_smoothed(scale, weight * spread / scale),
    )


def _smoothed(weight: float, smoothing: float) -> Term:
    return Term(weight, f"CE(label smoothing {smoothing:.4g})" if smoothing else "CE")


def _virtual_teacher(num_classes: int, temperature: float) -> tuple[float, float]:
    """Log-probabilities of ``softmax(u / T)``: on the label, and on each other class."""
    rest = (1.0 - VIRTUAL_TEACHER_ACCURACY) / (num_classes - 1)
    gap = (VIRTUAL_TEACHER_ACCURACY - rest) / temperature
    log_on = -math.log1p((num_classes - 1) * math.exp(-gap))
    return log_on, log_on - gap


def _two_level_cross_entropy(
    logits: Float[Array, "b c"], label: Int[Array, " b"], on: float, off: float
) -> Float[Array, " b"]:
    """Cross-entropy against ``on`` for the label and ``off`` for each other class."""
    log_p = log_probabilities(logits)
    log_p_label = jnp.take_along_axis(log_p, label[:, None], axis=-1)[:, 0]
    if off == 0.0:  # a class masked out by a logit of -inf would give 0 * inf below
        return -on * log_p_label
    return -(on - off) * log_p_label - off * jnp.sum(log_p, axis=-1)
