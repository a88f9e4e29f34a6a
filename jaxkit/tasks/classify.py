"""Image classification: labels teach a network."""

from jaxkit import losses
from jaxkit.losses.classification import cross_entropy
from jaxkit.schema.classify import Classify
from jaxkit.tasks.classifier import build, in_top, initial_variables, logits_of, notes, train_forward
from jaxkit.tasks.task import Context, Task, Variables


def make(config: Classify, context: Context) -> Task:
    """Makes the task that minimises ``config.loss`` of one network over labelled images.

    Batches hold ``image [b h w c]`` and ``label [b]``. Evaluation: ``top1``, ``top5`` and ``loss``, the plain
    cross-entropy whatever the training loss is.
    """
    network = build(config.model, context)

    def init(key, batch):
        params, state = initial_variables(network, key, batch["image"])
        return Variables(params, state, frozen={})

    def loss(variables, batch, key):
        logits, state = train_forward(network, variables, batch["image"], key)
        value = losses.per_example(config.loss, logits, batch["label"]).mean()
        return value, (state, {"top1": in_top(logits, batch["label"], 1).mean()})

    def evaluate(variables, batch, key):
        logits = logits_of(network, variables.params, variables.state, batch["image"])
        return {
            "top1": in_top(logits, batch["label"], 1),
            "top5": in_top(logits, batch["label"], 5),
            "loss": cross_entropy(logits, batch["label"]),
        }

    return Task(init, loss, evaluate, notes=notes(losses.effective_weights(config.loss, network.num_classes)))
