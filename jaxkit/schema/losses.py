"""The ``loss`` section: what a classifier or a student is trained on. Fields are the arguments of the loss itself."""

from typing import Literal

from jaxkit.schema.section import Fraction, Positive, Section


class CrossEntropy(Section):
    """Cross-entropy; ``label_smoothing`` spreads that share over all classes, the labelled one included."""

    name: Literal["cross_entropy"]
    label_smoothing: Fraction = 0.0


class LabelSmoothing(Section):
    """Cross-entropy with ``alpha`` spread over the other classes only, as in Teacher-free KD's code."""

    name: Literal["label_smoothing"]
    alpha: Fraction = 0.1


class TfkdRegularization(Section):
    """Teacher-free KD by a hand-made teacher (Tf-KD_reg).

    ``reduction`` is ``mean``, as in the published code: it divides the divergence by the number of classes too, and
    the published ``alpha`` and ``multiplier`` were tuned for that.
    """

    name: Literal["tfkd_regularization"]
    alpha: Fraction
    temperature: Positive
    multiplier: Positive = 1.0
    reduction: Literal["batchmean", "mean"] = "mean"


class KnowledgeDistillation(Section):
    """Knowledge distillation (Hinton et al., 2015); defaults: RepDistiller's and mdistiller's for CIFAR-100.

    ``reduction: mean`` is that of Teacher-free KD's published settings: the divergence weighs ``alpha / classes``.
    """

    name: Literal["kd"]
    alpha: Fraction = 0.9
    temperature: Positive = 4.0
    reduction: Literal["batchmean", "mean"] = "batchmean"


class SelfDistillation(Section):
    """Teacher-free KD by a trained copy of the student (Tf-KD_self).

    ``reduction`` is ``mean``, as in the published code: it divides the divergence by the number of classes too, and
    the published ``multiplier`` is there to make up for that.
    """

    name: Literal["self_distillation"]
    alpha: Fraction
    temperature: Positive
    multiplier: Positive
    reduction: Literal["batchmean", "mean"] = "mean"


CLASSIFY_LOSSES = {
    "cross_entropy": CrossEntropy,
    "label_smoothing": LabelSmoothing,
    "tfkd_regularization": TfkdRegularization,
}
DISTILL_LOSSES = {"kd": KnowledgeDistillation, "self_distillation": SelfDistillation}
