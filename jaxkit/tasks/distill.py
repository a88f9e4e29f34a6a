"""Knowledge distillation: frozen teachers and labels teach a student."""

import jax
import jax.numpy as jnp

from jaxkit import losses
from jaxkit.errors import ConfigError
from jaxkit.losses.classification import cross_entropy
from jaxkit.models import AUXILIARY
from jaxkit.schema.distill import Distill
from jaxkit.tasks.classifier import (
    build,
    in_top,
    initial_variables,
    logits_of,
    notes,
    shapes,
    train_forward,
    warm_start,
)
from jaxkit.tasks.task import Context, Task, Variables


def make(config: Distill, context: Context) -> Task:
    """Makes the task that minimises ``config.loss`` of a student over labelled images.

    Teachers run in evaluation mode; the logits of several are averaged, the geometric mean of their predictions
    (Hinton et al., 2015). Batches hold ``image [b h w c]`` and ``label [b]``. Evaluation: ``top1``, ``top5``,
    ``loss`` (plain cross-entropy), ``agreement`` (student and teacher choose the same class).

    Raises:
        ConfigError: if a network has fewer classes than the data, or a teacher other classes than the student.
    """
    student = build(config.student, context)
    teachers = [build(teacher.model, context) for teacher in config.teacher]
    for teacher, source in zip(teachers, config.teacher, strict=True):
        if teacher.num_classes != student.num_classes:
            raise ConfigError(
                f"the teacher {source.model.name} has {teacher.num_classes} classes, "
                f"the student {config.student.name} has {student.num_classes}"
            )

    def init(key, batch):
        params, state = initial_variables(student, key, batch["image"])
        pairs = zip(config.teacher, teachers, strict=True)
        frozen = [context.load_weights(source, shapes(teacher, key, batch["image"])) for source, teacher in pairs]
        return Variables(params, state, frozen)

    def taught(variables, images):
        """Logits of the teachers, averaged."""
        pairs = zip(teachers, variables.frozen, strict=True)
        logits = [logits_of(teacher, frozen["params"], frozen["state"], images) for teacher, frozen in pairs]
        return jax.lax.stop_gradient(jnp.mean(jnp.stack(logits), axis=0))

    def loss(variables, batch, key):
        teacher = taught(variables, batch["image"])
        logits, _, state = train_forward(student, variables, batch["image"], key)
        value = losses.per_example(config.loss, logits, teacher, batch["label"]).mean()
        agreement = in_top(logits, teacher.argmax(axis=1), 1).mean()
        return value, (state, {"top1": in_top(logits, batch["label"], 1).mean(), "agreement": agreement})

    def evaluate(variables, batch, key):
        teacher = taught(variables, batch["image"])
        logits = logits_of(student, variables.params, variables.state, batch["image"])
        return {
            "top1": in_top(logits, batch["label"], 1),
            "top5": in_top(logits, batch["label"], 5),
            "loss": cross_entropy(logits, batch["label"]),
            "agreement": in_top(logits, teacher.argmax(axis=1), 1),
        }

    weights = losses.effective_weights(config.loss, student.num_classes)
    auxiliary = config.student.name in AUXILIARY
    untrained = (f"warning: nothing trains the auxiliary heads of {config.student.name}",) if auxiliary else ()
    return Task(
        init,
        loss,
        evaluate,
        notes=(*notes(weights), *untrained),
        warm_start=warm_start(config.student, "task.student", context),
    )
