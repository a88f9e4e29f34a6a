from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import experiment, models, parallel
from jaxkit.errors import ConfigError
from jaxkit.schema.distill import Distill
from jaxkit.schema.model import Pretrained
from jaxkit.step import TrainState, train_step
from jaxkit.tasks import distill
from jaxkit.tasks.task import Context, Task, Variables

pytestmark = pytest.mark.level(1)

KEY = jax.random.PRNGKey(0)
CNN = {"name": "cnn_tiny", "dropout_rate": 0.0}
# no layer of it mixes examples
LENET = {"name": "lenet_tiny"}


def section(teachers=1, student=LENET, teacher=CNN, loss=None) -> Distill:
    sources = [{"workdir": f"teacher{i}", "model": teacher} for i in range(teachers)]
    loss = loss or {"name": "kd", "alpha": 1.0, "temperature": 2.0}
    raw = {"name": "distill", "student": student, "teacher": sources, "loss": loss}
    return Distill.model_validate(raw)


def weights(source: Pretrained, like) -> dict:
    """What stands for the weights of a source: drawn from its name, statistics positive."""
    rng = np.random.default_rng(int(source.workdir[-1]))
    draw = lambda low, high: lambda leaf: jnp.asarray(rng.uniform(low, high, leaf.shape), leaf.dtype)  # noqa: E731
    return {
        "params": jax.tree.map(draw(-0.4, 0.6), like["params"]),
        "state": jax.tree.map(draw(0.5, 1.5), like["state"]),
    }


CONTEXT = Context(num_classes=7, load_weights=weights)


def images(count=8, seed=0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.normal(size=(count, 16, 16, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 7, count)),
    }


def logits(model: dict, params, state, batch) -> np.ndarray:
    network = models.build(model["name"], num_classes=7)
    return np.asarray(jax.jit(network.apply)({"params": params, **state}, batch["image"])[0], np.float64)


def softmax(logits) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def made(teachers: int) -> tuple[Task, Variables]:
    task = distill.make(section(teachers), CONTEXT)
    variables = task.init(KEY, images())
    return task, variables._replace(
        params=lively(LENET, variables.params, {}),
        frozen=[{**tree, "params": lively(CNN, tree["params"], tree["state"])} for tree in variables.frozen],
    )


def lively(model: dict, params, state) -> dict:
    """A head of which every class wins some examples: of tiny random networks one class wins them all."""
    found = logits(model, params, state, images(16))
    kernel, bias = params["head"]["kernel"], params["head"]["bias"]
    # logits of mean 0 and standard deviation 2 in each class
    kernel, bias = kernel * 2 / found.std(axis=0), (bias - found.mean(axis=0)) * 2 / found.std(axis=0)
    return {**params, "head": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}


@pytest.fixture(scope="module")
def one() -> tuple[Task, Variables]:
    return made(1)


@pytest.fixture(scope="module")
def two() -> tuple[Task, Variables]:
    return made(2)


def taught(variables: Variables, batch) -> np.ndarray:
    """Mean logits of the teachers, each in evaluation mode."""
    return np.mean([logits(CNN, frozen["params"], frozen["state"], batch) for frozen in variables.frozen], axis=0)


def test_the_frozen_variables_are_what_was_loaded_for_each_teacher_in_order():
    loaded = []

    def load_weights(source, like):
        assert like.keys() == {"params", "state"}
        loaded.append((source.workdir, weights(source, like)))
        return loaded[-1][1]

    variables = distill.make(section(2), CONTEXT._replace(load_weights=load_weights)).init(KEY, images())
    assert [name for name, _ in loaded] == ["teacher0", "teacher1"]
    assert all(frozen is tree for frozen, (_, tree) in zip(variables.frozen, loaded, strict=True))
    assert "batch_stats" in variables.frozen[0]["state"]


@pytest.mark.parametrize("teachers", ["one", "two"])
def test_the_loss_is_that_of_the_mean_of_the_teachers_logits(request, teachers):
    task, variables = request.getfixturevalue(teachers)
    batch = images()
    value, (_, metrics) = jax.jit(task.loss)(variables, batch, KEY)
    teacher, student = taught(variables, batch), logits(LENET, variables.params, {}, batch)
    p, q = softmax(teacher / 2), softmax(student / 2)
    # float32 against float64
    assert float(value) == pytest.approx((4 * (p * np.log(p / q)).sum(axis=1)).mean(), rel=1e-4)
    assert float(metrics["agreement"]) == np.mean(student.argmax(axis=1) == teacher.argmax(axis=1))
    assert float(metrics["top1"]) == np.mean(student.argmax(axis=1) == batch["label"])


@pytest.mark.parametrize("teachers", ["one", "two"])
def test_evaluation_gives_each_examples_scores_and_its_agreement_with_the_teacher(request, teachers):
    task, variables = request.getfixturevalue(teachers)
    batch = images(16)
    found = jax.jit(task.evaluate)(variables, batch, KEY)
    teacher, student = taught(variables, batch), logits(LENET, variables.params, {}, batch)
    label = np.asarray(batch["label"])
    assert found.keys() == {"top1", "top5", "loss", "agreement"}
    agreement = student.argmax(axis=1) == teacher.argmax(axis=1)
    assert np.array_equal(found["agreement"], agreement)
    assert 0 < agreement.sum() < 16
    assert np.array_equal(found["top1"], student.argmax(axis=1) == label)
    assert np.array_equal(found["top5"], (np.argsort(-student, axis=1)[:, :5] == label[:, None]).any(axis=1))
    # float32 against float64: an error of 1e-6 in logits of about 5
    np.testing.assert_allclose(found["loss"], -np.log(softmax(student))[np.arange(16), label], rtol=1e-5, atol=1e-5)


def test_no_gradient_reaches_a_teacher(two):
    task, variables = two
    loss = jax.jit(jax.grad(lambda params, frozen: task.loss(Variables(params, {}, frozen), images(), KEY)[0], (0, 1)))
    student, teachers = loss(variables.params, variables.frozen)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(student))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(teachers))


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_training_leaves_every_byte_of_a_teacher_as_it_was(two, kind):
    task, variables = two
    executor = parallel.executor(kind)
    optimizer = optax.sgd(0.1)
    started = TrainState(jnp.int32(0), variables.params, {}, optimizer.init(variables.params), KEY, jnp.bool(True))
    state, frozen = executor.replicate(started), executor.replicate(variables.frozen)
    pointers = [leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(frozen)]
    options = {"optimizer": optimizer, "rate": lambda step: jnp.float32(0.1), "augment": lambda keys, batch: batch}
    options |= {"executor": executor, "pieces": 1}
    batch = executor.put_batch(jax.tree.map(np.asarray, images(16)))
    step = executor.compile(partial(train_step, task=task, **options), state, frozen, batch)
    for _ in range(3):
        state, _ = step(state, frozen, batch)
    assert bool(state.ok)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), state.params, variables.params)
    assert all(jax.tree.leaves(moved))
    # the same buffers, and in them the same bytes
    assert pointers == [leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(frozen)]
    assert experiment.digest(frozen) == experiment.digest(variables.frozen)


def test_a_teacher_uses_its_running_statistics_and_so_ignores_the_rest_of_the_batch(one):
    task, variables = one
    loss = jax.jit(task.loss)
    whole = float(loss(variables, images(), KEY)[0])
    alone = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], images()) for i in range(8)]
    # batch normalisation in training mode would refuse or zero a single example; float32 in another order
    assert np.mean([float(loss(variables, batch, KEY)[0]) for batch in alone]) == pytest.approx(whole, rel=1e-5)
    shifted = jax.tree.map(lambda leaf: leaf + 1, variables.frozen[0]["state"])
    other = variables._replace(frozen=[{**variables.frozen[0], "state": shifted}])
    assert float(loss(other, images(), KEY)[0]) != pytest.approx(whole, rel=1e-2)


def test_a_teachers_dropout_is_off():
    task = distill.make(section(teacher={"name": "cnn_tiny", "dropout_rate": 0.9}), CONTEXT)
    variables = task.init(KEY, images())
    loss = jax.jit(task.loss)
    assert float(loss(variables, images(), KEY)[0]) == float(loss(variables, images(), jax.random.PRNGKey(1))[0])


def test_the_students_statistics_move_and_the_teachers_do_not():
    task = distill.make(section(student=CNN), CONTEXT)
    variables = task.init(KEY, images())
    _, (state, _) = jax.jit(task.loss)(variables, images(), KEY)
    for path, old in jax.tree_util.tree_leaves_with_path(variables.state):
        new = dict(jax.tree_util.tree_leaves_with_path(state))[path]
        assert not np.array_equal(old, new), path
    assert jax.tree.structure(state) == jax.tree.structure(variables.state)


def test_a_student_or_teacher_with_fewer_classes_than_the_data_is_an_error():
    for fields in ({"student": {**LENET, "num_classes": 6}}, {"teacher": {**CNN, "num_classes": 6}}):
        with pytest.raises(ConfigError, match="has num_classes = 6, but the data has 7"):
            distill.make(section(**fields), CONTEXT)


def test_a_teacher_with_other_classes_than_the_student_is_an_error():
    with pytest.raises(ConfigError, match="the teacher cnn_tiny has 9 classes, the student lenet_tiny has 7"):
        distill.make(section(teacher={**CNN, "num_classes": 9}), CONTEXT)
    both = {"student": {**LENET, "num_classes": 9}, "teacher": {**CNN, "num_classes": 9}}
    distill.make(section(**both), CONTEXT)


def test_the_notes_tell_the_weights_of_labels_and_teacher():
    loss = {"name": "kd", "alpha": 0.9, "temperature": 4.0}
    assert distill.make(section(loss=loss), CONTEXT).notes == ("loss = 0.1 x CE + 0.9 x T²·KL(T=4)",)
    notes = distill.make(section(loss={**loss, "reduction": "mean"}), CONTEXT).notes
    # 0.9 / 7 classes
    assert notes == ("loss = 0.1 x CE + 0.1286 x T²·KL(T=4)",)
    first, warning = distill.make(section(loss={**loss, "alpha": 1.0}), CONTEXT).notes
    assert first == "loss = 0 x CE + 1 x T²·KL(T=4)"
    assert warning.startswith("warning: CE has weight 0 of 1")
