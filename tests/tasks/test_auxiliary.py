"""The loss of auxiliary heads in training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_config

from jaxkit import models
from jaxkit.config import parse
from jaxkit.errors import ConfigError
from jaxkit.losses.classification import label_smoothing
from jaxkit.schema.classify import Classify
from jaxkit.schema.distill import Distill
from jaxkit.tasks import classify, distill
from jaxkit.tasks.task import Context, Variables

KEY = jax.random.PRNGKey(0)
CONTEXT = Context(num_classes=3, load_weights=None)


def task(name, weight=None, loss="label_smoothing"):
    section = {"name": "classify", "model": {"name": name, "dropout_rate": 0.0}, "loss": {"name": loss}}
    return classify.make(Classify.model_validate({**section, "aux_weight": weight}), CONTEXT)


@pytest.mark.slow
def test_training_adds_the_weighted_loss_of_each_head_and_evaluation_does_not():
    rng = np.random.default_rng(0)
    batch = {"image": jnp.asarray(rng.normal(size=(4, 16, 16, 1)), jnp.float32), "label": jnp.array([0, 2, 1, 1])}
    network = models.build("googlenet_tiny", num_classes=3, dropout_rate=0.0)
    variables = dict(jax.jit(network.init)(KEY, batch["image"]))

    # one program for all of it: compiling takes longer than anything else here
    @jax.jit
    def everything(variables):
        (logits, features), _ = network.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        variables = Variables(variables["params"], {"batch_stats": variables["batch_stats"]}, {})
        losses = [task("googlenet_tiny", weight).loss(variables, batch, KEY)[0] for weight in (None, 0.0, 2.0)]
        default = task("googlenet_tiny").loss
        gradient = jax.grad(lambda params: default(variables._replace(params=params), batch, KEY)[0])
        evaluated = task("googlenet_tiny", 2.0, "cross_entropy").evaluate(variables, batch, KEY)["loss"]
        plain = -jax.nn.log_softmax(network.apply({**variables.state, "params": variables.params}, batch["image"])[0])
        heads = (logits, features["aux1"], features["aux2"])
        return heads, losses, gradient(variables.params), evaluated, plain[jnp.arange(4), batch["label"]]

    heads, losses, gradients, evaluated, plain = everything(variables)
    main, first, second = (float(label_smoothing(head, batch["label"]).mean()) for head in heads)
    assert len({main, first, second}) == 3
    # float32 sums in another order
    expected = [main + weight * (first + second) for weight in (0.3, 0.0, 2.0)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert all(np.abs(gradients[name]["head"]["bias"]).max() > 0 for name in ("aux1", "aux2"))
    np.testing.assert_allclose(evaluated, plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "weight", "note"),
    [
        ("googlenet_aux", None, "loss = 1 x CE + 0.3 x the same of each auxiliary head"),
        ("inception_v3_aux", None, "loss = 1 x CE + 0.4 x the same of each auxiliary head"),
        ("inception_v3_aux", 0.25, "loss = 1 x CE + 0.25 x the same of each auxiliary head"),
        ("googlenet", None, "loss = 1 x CE"),
    ],
)
def test_the_note_says_what_the_heads_count(name, weight, note):
    assert task(name, weight, "cross_entropy").notes == (note,)


def test_a_weight_for_heads_that_are_not_there_is_refused():
    with pytest.raises(ConfigError, match="task.aux_weight: cifar_resnet_tiny has no auxiliary heads; the models that"):
        parse(small_config(task__aux_weight=0.3), "small")


def test_a_student_is_warned_of_heads_that_nothing_trains():
    def notes(student):
        teacher = {"checkpoint": "runs/1/checkpoints/1", "model": {"name": "googlenet"}}
        section = {"name": "distill", "student": {"name": student}, "teacher": teacher, "loss": {"name": "kd"}}
        return distill.make(Distill.model_validate(section), CONTEXT).notes

    warning = "warning: nothing trains the auxiliary heads of googlenet_aux"
    assert notes("googlenet_aux") == (*notes("googlenet"), warning)


def test_the_models_with_auxiliary_heads_are_known():
    build = partial(models.build, num_classes=3)
    assert {name for name in models.MODELS if getattr(build(name), "auxiliary", None)} == set(models.AUXILIARY)
