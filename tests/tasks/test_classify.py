from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit import models, parallel
from jaxkit.errors import ConfigError
from jaxkit.evaluation import eval_step
from jaxkit.schema.classify import Classify
from jaxkit.tasks import classify
from jaxkit.tasks.classifier import in_top
from jaxkit.tasks.task import Context, Variables

pytestmark = pytest.mark.level(1)

CONTEXT = Context(num_classes=7, load_weights=lambda source, like: pytest.fail("a classifier loads no weights"))
KEY = jax.random.PRNGKey(0)


def section(loss=None, **model) -> Classify:
    loss = {} if loss is None else {"loss": loss}
    model = {"name": "cnn_tiny", "dropout_rate": 0.0, **model}
    return Classify.model_validate({"name": "classify", "model": model, **loss})


def images(count=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.normal(size=(count, 8, 8, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 7, count)),
    }


def moved(variables: Variables, seed=0) -> Variables:
    """The same parameters, with running statistics that are nobody's batch."""
    rng = np.random.default_rng(seed)
    draw = partial(jax.tree.map, lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype))
    return variables._replace(state=draw(variables.state))


@pytest.fixture(scope="module")
def started() -> Variables:
    return classify.make(section(), CONTEXT).init(KEY, images())


def cross_entropy(logits, label, smoothing=0.0) -> np.ndarray:
    """``-Σ q log p`` in float64, with ``smoothing`` of q spread over all classes."""
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    q = (1 - smoothing) * np.eye(logits.shape[1])[np.asarray(label)] + smoothing / logits.shape[1]
    return -(q * log_p).sum(axis=1)


def test_it_starts_from_the_networks_own_variables_and_freezes_nothing(started):
    expected = jax.jit(models.build("cnn_tiny", num_classes=7).init)(KEY, images()["image"])
    assert started.frozen == {}
    assert started.state.keys() == {"batch_stats"}
    found = {"params": started.params, **started.state}
    # the same draws in two programs: 2 b u - b, below 1, is rounded once or twice
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=6e-8), found, dict(expected))
    assert started.params["head"]["kernel"].shape[-1] == 7


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_mean_over_the_batch_of_the_network_in_training_mode(started, smoothing):
    variables, batch = moved(started), images()
    task = classify.make(section(loss={"name": "cross_entropy", "label_smoothing": smoothing}), CONTEXT)
    value, (state, metrics) = jax.jit(task.loss)(variables, batch, KEY)
    network = models.build("cnn_tiny", num_classes=7, dropout_rate=0.0)
    forward = jax.jit(partial(network.apply, train=True, mutable=["batch_stats"]))
    (logits, _), expected = forward({"params": variables.params, **variables.state}, batch["image"])
    # float32 against float64
    assert float(value) == pytest.approx(cross_entropy(logits, batch["label"], smoothing).mean(), rel=1e-5)
    assert float(metrics["top1"]) == np.mean(np.argmax(logits, axis=1) == batch["label"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), state, dict(expected))
    old = jax.tree.leaves(variables.state)
    assert all(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), old, strict=True))


def test_every_parameter_gets_a_gradient(started):
    task = classify.make(section(), CONTEXT)
    gradients = jax.jit(jax.grad(lambda params: task.loss(started._replace(params=params), images(), KEY)[0]))
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradients(started.params))[0]:
        assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing"])
def test_evaluation_gives_top1_top5_and_plain_cross_entropy_of_each_example_in_evaluation_mode(started, loss):
    variables, batch = moved(started), images(16)
    found = jax.jit(classify.make(section(loss={"name": loss}), CONTEXT).evaluate)(variables, batch, KEY)
    network = models.build("cnn_tiny", num_classes=7, dropout_rate=0.0)
    logits, _ = jax.jit(network.apply)({"params": variables.params, **variables.state}, batch["image"])
    label = np.asarray(batch["label"])
    assert found.keys() == {"top1", "top5", "loss"}
    assert {value.shape for value in found.values()} == {(16,)}
    # float32 against float64
    np.testing.assert_allclose(found["loss"], cross_entropy(logits, label), rtol=1e-5)
    assert np.array_equal(found["top1"], np.argmax(logits, axis=1) == label)
    five = torch.topk(torch.from_numpy(np.array(logits)), 5).indices.numpy()
    assert np.array_equal(found["top5"], (five == label[:, None]).any(axis=1))


def test_an_example_is_evaluated_the_same_whatever_batch_it_is_in(started):
    evaluate = jax.jit(classify.make(section(), CONTEXT).evaluate)
    variables, batch = moved(started), images(8)
    whole = evaluate(variables, batch, KEY)
    for i in (0, 5):
        alone = evaluate(variables, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch), KEY)
        for name, value in alone.items():
            # float32 products in another order
            np.testing.assert_allclose(value[0], whole[name][i], rtol=1e-5)


@pytest.mark.parametrize("n", [1, 5])
def test_in_top_agrees_with_torch(n):
    rng = np.random.default_rng(n)
    logits = rng.normal(size=(500, 20)).astype(np.float32)
    label = rng.integers(0, 20, 500)
    expected = (torch.topk(torch.from_numpy(logits), n).indices.numpy() == label[:, None]).any(axis=1)
    found = in_top(jnp.asarray(logits), jnp.asarray(label), n)
    assert found.dtype == jnp.float32
    assert np.array_equal(found, expected)
    assert 0 < expected.mean() < 1


def test_of_equal_logits_the_lower_class_comes_first():
    logits = jnp.zeros((4, 4))
    assert in_top(logits, jnp.arange(4), 1).tolist() == [1, 0, 0, 0]
    assert in_top(logits, jnp.arange(4), 2).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("classes", [3, 8])
def test_a_label_whose_logit_is_nan_is_in_no_top(classes):
    logits = jnp.full((1, classes), jnp.nan)
    assert in_top(logits, jnp.array([0]), 1).tolist() == [0]
    assert in_top(logits, jnp.array([0]), 5).tolist() == [0]
    assert in_top(jnp.zeros((1, classes)).at[0, 0].set(jnp.nan), jnp.array([0]), 5).tolist() == [0]


def test_a_nan_elsewhere_counts_as_larger():
    logits = jnp.array([[9.0, jnp.nan, 1.0]])
    assert in_top(logits, jnp.array([0]), 1).tolist() == [0]
    assert in_top(logits, jnp.array([0]), 2).tolist() == [1]


def test_with_fewer_classes_than_five_every_label_is_in_the_top_five():
    assert in_top(jnp.array([[3.0, 2.0, 1.0]]), jnp.array([2]), 5).tolist() == [1]


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_padding_counts_in_no_metric_whatever_it_holds(started, kind):
    variables, executor = moved(started), parallel.executor(kind)
    task = classify.make(section(), CONTEXT)
    batch = images(16)
    real = np.arange(16) < 11
    alone = jax.tree.map(np.asarray, task.evaluate(variables, jax.tree.map(lambda leaf: leaf[:11], batch), KEY))
    batch["image"] = jnp.where(real[:, None, None, None], batch["image"], jnp.nan)
    batch["label"] = jnp.where(real, batch["label"], 10**6)
    placed = executor.put_batch(jax.tree.map(np.asarray, {**batch, "mask": real.astype(np.float32)}))
    state = executor.replicate((variables.params, variables.state, KEY, np.uint32(0)))
    step = partial(eval_step, task=task, preprocess=lambda batch: batch, executor=executor)
    sums = executor.compile(step, state, {}, placed, donate=False)(state, {}, placed)
    assert float(sums["examples"]) == 11
    for name, values in alone.items():
        # sums of float32 in another order
        assert float(sums[name]) == pytest.approx(values.sum(), rel=1e-5)


def test_dropout_draws_from_the_key_in_training_and_not_at_all_in_evaluation(started):
    task = classify.make(section(dropout_rate=0.5), CONTEXT)
    variables = moved(started)
    loss = jax.jit(task.loss)
    losses = [float(loss(variables, images(), jax.random.PRNGKey(seed))[0]) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    found = [task.evaluate(variables, images(), jax.random.PRNGKey(seed))["loss"] for seed in (1, 2)]
    assert np.array_equal(*found)


def test_a_network_without_batch_statistics_has_no_state():
    batch = {"image": jnp.ones((2, 16, 16, 1)), "label": jnp.array([0, 1])}
    task = classify.make(section(name="lenet_tiny", dropout_rate=None), CONTEXT)
    variables = task.init(KEY, batch)
    assert variables.state == {}
    value, (state, _) = jax.jit(task.loss)(variables, batch, KEY)
    assert state == {}
    assert np.isfinite(value)


def test_more_classes_than_the_data_has_are_kept_and_fewer_are_an_error():
    batch = images()
    assert classify.make(section(num_classes=9), CONTEXT).init(KEY, batch).params["head"]["bias"].shape == (9,)
    with pytest.raises(ConfigError, match="cnn_tiny has num_classes = 6, but the data has 7"):
        classify.make(section(num_classes=6), CONTEXT)


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "cross_entropy"},
        {"name": "label_smoothing"},
        {"name": "tfkd_regularization", "alpha": 0.5, "temperature": 2.0},
    ],
    ids=lambda loss: loss["name"],
)
def test_a_single_class_is_refused_whatever_the_loss(loss):
    with pytest.raises(ConfigError, match="cnn_tiny has num_classes = 1, .* at least two are needed"):
        classify.make(section(loss=loss), CONTEXT._replace(num_classes=1))


def test_bfloat16_is_that_of_the_layers_only(started):
    task = classify.make(section(), CONTEXT._replace(dtype=jnp.bfloat16))
    variables = task.init(KEY, images())
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    value, (state, _) = jax.jit(task.loss)(variables, images(), KEY)
    assert value.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    exact = float(jax.jit(classify.make(section(), CONTEXT).loss)(variables, images(), KEY)[0])
    # bfloat16 has 8 bits of mantissa
    assert exact != float(value) == pytest.approx(exact, rel=0.05)


def test_the_notes_tell_what_the_loss_amounts_to_and_warn_where_it_is_odd():
    assert classify.make(section(), CONTEXT).notes == ("loss = 1 x CE",)
    # 0.1 of the other 6 of 7 classes only is 0.1 * 7 / 6 of all
    notes = classify.make(section(loss={"name": "label_smoothing", "alpha": 0.1}), CONTEXT).notes
    assert notes == ("loss = 1 x CE(label smoothing 0.1167)",)
    odd = {"name": "tfkd_regularization", "alpha": 0.95, "temperature": 20.0}
    first, *warnings = classify.make(section(loss=odd), CONTEXT).notes
    assert first.startswith("loss = 0.1857 x CE(label smoothing")
    assert warnings
    assert all(line.startswith("warning: ") for line in warnings)
