"""The losses by the name of their config section: what to compute for each example, and what that amounts to."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from jaxkit.losses import classification, distillation
from jaxkit.losses.effective import EffectiveWeights
from jaxkit.schema.section import Section


class Loss(NamedTuple):
    """A loss and its description; both take the fields of its section as keyword arguments."""

    per_example: Callable[..., Array]
    weights: Callable[..., EffectiveWeights]


LOSSES = {
    "cross_entropy": Loss(classification.cross_entropy, classification.cross_entropy_weights),
    "label_smoothing": Loss(classification.label_smoothing, classification.label_smoothing_weights),
    "tfkd_regularization": Loss(classification.tfkd_regularization, classification.tfkd_regularization_weights),
    "kd": Loss(distillation.knowledge_distillation, distillation.knowledge_distillation_weights),
    "self_distillation": Loss(distillation.self_distillation, distillation.self_distillation_weights),
}


def per_example(config: Section, *arrays: Array) -> Float[Array, " b"]:
    """Takes the loss ``config`` names of ``logits, label``, or of ``student, teacher, label`` where it distils."""
    return LOSSES[config.name].per_example(*arrays, **config.model_dump(exclude={"name"}))


def effective_weights(config: Section, num_classes: int) -> EffectiveWeights:
    """Describes the loss ``config`` names, such as ``0.1 x CE + 0.9 x T²·KL(T=4)``, with its warnings."""
    return LOSSES[config.name].weights(num_classes, **config.model_dump(exclude={"name"}))
