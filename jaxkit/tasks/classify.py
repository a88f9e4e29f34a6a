"""Image classification: labels teach a network."""

from jaxkit import losses
from jaxkit.losses.classification import cross_entropy
from jaxkit.models import AUXILIARY
from jaxkit.schema.classify import Classify
from jaxkit.tasks.classifier import build, in_top, initial_variables, logits_of, notes, train_forward, warm_start
from jaxkit.tasks.task import Context, Task, Variables


def make(config: Classify, context: Context) -> Task:
    """Makes the task that minimises ``config.loss`` of one network over labelled images.

    Auxiliary heads add ``aux_weight`` times the same loss of their logits each (Szegedy et al., 2015, section 5).
    Batches hold ``image [b h w c]`` and ``label [b]``. Evaluation: ``top1``, ``top5`` and ``loss``, the plain
    cross-entropy whatever the training loss is.
    """
    network = build(config.model, context)
    aux_weight = AUXILIARY.get(config.model.name) if config.aux_weight is None else config.aux_weight

    def init(key, batch):
        params, state = initial_variables(network, key, batch["image"])
        return Variables(params, state, frozen={})

    def loss(variables, batch, key):
        logits, features, state = train_forward(network, variables, batch["image"], key)
        value = losses.per_example(config.loss, logits, batch["label"]).mean()
        for name in features:
            if name.startswith("aux"):
                value += aux_weight * losses.per_example(config.loss, features[name], batch["label"]).mean()
        return value, (state, {"top1": in_top(logits, batch["label"], 1).mean()})

    def evaluate(variables, batch, key):
        logits = logits_of(network, variables.params, variables.state, batch["image"])
        return {
            "top1": in_top(logits, batch["label"], 1),
            "top5": in_top(logits, batch["label"], 5),
            "loss": cross_entropy(logits, batch["label"]),
        }

    weights = losses.effective_weights(config.loss, network.num_classes)
    return Task(
        init,
        loss,
        evaluate,
        notes=notes(weights, aux_weight),
        warm_start=warm_start(config.model, "task.model", context),
    )
