import inspect
import json
import re
import signal
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_config, thinned
from runs import arrays, identical, learned
from sklearn.datasets import load_digits

import jaxkit.step
import jaxkit.train
from jaxkit import checkpoint, experiment, models, tracking
from jaxkit.config import parse
from jaxkit.errors import ConfigError
from jaxkit.stop import Interrupted, NonFinite
from jaxkit.tasks import TASKS, classify
from jaxkit.tracking import read_metrics

pytestmark = pytest.mark.level(1)


def run(folder: Path, **changes):
    return experiment.run(parse(small_config(**changes), "small"), folder)


def test_the_step_is_short_and_the_loop_names_no_task_model_or_data():
    body = inspect.getsource(jaxkit.step.train_step).splitlines()
    assert len([line for line in body if line.strip()]) <= 20
    source = inspect.getsource(jaxkit.train) + inspect.getsource(jaxkit.step)
    for name in (*TASKS, *models.MODELS, "teacher", "student", "digits", "image", "label"):
        assert not re.search(rf"\b{name}\b", source), name


def test_nothing_is_compiled_after_the_first_step(tmp_path):
    results = run(tmp_path, train__eval_every=4, train__checkpoint_every=7, train__log_every=3)
    assert results["train"]["recompilations"] == 0


def test_the_norm_of_each_gradient_is_logged_and_all_make_up_the_whole(tmp_path):
    quick = {"task__model__name": "cnn_tiny", "train__steps": 2, "train__log_every": 1}
    run(tmp_path, train__log_gradients=True, **quick)
    (first, *_) = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    each = {name: value for name, value in first.items() if name.startswith("grad_norm/")}
    assert {f"grad_norm/{name}" for name in ("head/kernel", "head/bias")} < set(each)
    assert sum(norm**2 for norm in each.values()) ** 0.5 == pytest.approx(first["grad_norm"], rel=1e-5)


def test_a_compilation_after_the_first_step_is_counted(tmp_path, monkeypatch):
    trained = jaxkit.train.Trainer._finish_step

    def finish_and_compile(self, stop):
        jax.jit(lambda x: x + self.step)(jnp.ones(self.step))
        trained(self, stop)

    monkeypatch.setattr(jaxkit.train.Trainer, "_finish_step", finish_and_compile)
    assert run(tmp_path, train__steps=5)["train"]["recompilations"] >= 4


def test_training_is_a_function_of_the_seed_alone(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, train__seed=seed, train__steps=6, train__eval_every=6, train__checkpoint_every=6)
    a, b, c = (learned(tmp_path / name, 6) for name in "abc")
    assert identical(a, b)
    assert not identical(a, c)


def test_how_often_a_run_logs_evaluates_and_saves_changes_no_parameter(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", train__log_every=3, train__eval_every=6, train__checkpoint_every=20, data__threads=1)
    a, b = learned(tmp_path / "a", 20), learned(tmp_path / "b", 20)
    assert identical(a, b)


def test_evaluation_counts_every_test_image_once(tmp_path):
    # 599 images in batches of 200, 64 and 599: the padding of the last batch must not count
    quick = {"train__steps": 2, "train__eval_every": 2}
    found = [run(tmp_path / str(size), data__eval_batch_size=size, **quick)["last"] for size in (200, 64, 599)]
    for metrics in found[1:]:
        assert metrics["top1"] == found[0]["top1"]
        # a mean of float32 values summed in another order
        assert metrics["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)
    assert found[0]["top1"] * 599 == pytest.approx(round(found[0]["top1"] * 599), abs=1e-9)


def test_accumulating_pieces_gives_the_update_of_the_whole_batch(tmp_path):
    images, labels = load_digits(return_X_y=True)
    large = np.kron(images.reshape(-1, 8, 8, 1), np.full((1, 2, 2, 1), 15.0)).astype(np.uint8)
    parts = {"train_images": large[:600], "train_labels": labels[:600]}
    np.savez(tmp_path / "a.npz", **parts, test_images=large[600:800], test_labels=labels[600:800])
    tree = {}
    for pieces in (1, 4):
        folder = tmp_path / str(pieces)
        data = {"name": "arrays", "path": str(tmp_path / "a.npz"), "batch_size": 64, "augment": {"rotation": 10.0}}
        # LeNet has no batch statistics, which differ between pieces by definition
        quick = {"train__steps": 8, "train__eval_every": 8}
        run(folder, data=data, task__model__name="lenet_tiny", optimizer__accumulate=pieces, **quick)
        tree[pieces] = learned(folder, 8)
    for path, whole in tree[1].items():
        # float32 sums in another order, over 8 steps
        np.testing.assert_allclose(tree[4][path], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", thinned(["bf16", "fp16"], ["fp16"]))
def test_mixed_precision_learns_and_keeps_parameters_in_float32(tmp_path, precision):
    changes = {"train__steps": 60, "train__eval_every": 60, "data__augment": "none"}
    results = run(tmp_path, train__precision=precision, **changes)
    # float32 reaches FLOAT32 in these 60 steps
    assert results["last"]["top1"] > 0.8
    assert {leaf.dtype for path, leaf in learned(tmp_path, 60).items() if path.startswith("params")} == {
        np.dtype("float32")
    }


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_state_before_it(tmp_path, monkeypatch):
    folder, good = tmp_path / "nan", tmp_path / "good"
    make = classify.make

    def poisoned(config, context):
        task = make(config, context)

        def loss(variables, batch, key):
            value, aux = task.loss(variables, batch, key)
            # the examples of the update after 13: nothing else tells a loss which step it is in
            return jnp.where(jnp.all(batch["label"] == bad), jnp.nan, value), aux

        return task._replace(loss=loss)

    run(good, train__steps=13, train__eval_every=13)
    source = experiment.open_source(parse(small_config(), "small").data)
    feed = experiment.open_feed(
        source, parse(small_config(), "small").data, eval_batch_size=200, seed=0, process_index=0, process_count=1
    )
    bad = next(feed.batches(13))["label"]
    monkeypatch.setattr(classify, "make", poisoned)
    with pytest.raises(NonFinite, match="step 14 has loss nan") as caught:
        run(folder, train__log_every=10)
    assert caught.value.exit_code == 1
    assert checkpoint.saved_steps(folder / "checkpoints")[-1] == 13
    assert identical(arrays(folder, 13), arrays(good, 13))
    report = json.loads((folder / "nonfinite.json").read_text())
    assert report["step"] == 14
    assert report["loss"] == "nan"
    assert report["param_norms"]
    with np.load(folder / "nonfinite_batch.npz") as batch:
        assert np.array_equal(batch["label"], bad)
    # the log has the steps before the failure and none after it
    assert max(record["step"] for record in read_metrics(folder / "metrics.jsonl")) == 10


@pytest.mark.slow
def test_a_learning_rate_that_overflows_is_reported_with_its_norms(tmp_path):
    with pytest.raises(NonFinite, match="Lower optimizer.learning_rate"):
        run(tmp_path, optimizer__learning_rate=1e30, train__log_every=1)
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert report["learning_rate"] == pytest.approx(1e30)
    logged = read_metrics(tmp_path / "metrics.jsonl")
    kept = checkpoint.saved_steps(tmp_path / "checkpoints")[-1]
    # the step blamed is the first that failed, though more had been started when it was found
    assert kept == report["step"] - 1
    assert arrays(tmp_path, kept)["optimizer/step"] == kept
    assert all(record["step"] <= kept for record in logged)


@pytest.mark.parametrize("size", [4, 60])
def test_a_batch_that_the_devices_cannot_share_names_the_nearest_size_that_they_can(tmp_path, size):
    with pytest.raises(ConfigError, match=f"nearest size that can is {8 if size == 4 else 64}"):
        run(tmp_path, data__batch_size=size)


def toy(update: bool):
    """Moves one parameter towards the mean brightness of the images, and draws it as a picture."""

    def make(config, context):
        def init(key, batch):
            return experiment_variables({"level": jnp.zeros(())}, {"seen": jnp.int32(0)})

        def loss(variables, batch, key):
            error = variables.params["level"] - batch["image"].mean()
            return error**2, ({"seen": variables.state["seen"] + 1}, {"error": error})

        def rule(variables, batch, key):
            value, (state, metrics) = loss(variables, batch, key)
            return (value, (state, metrics)), {"level": jnp.sign(metrics["error"])}

        def evaluate(variables, batch, key):
            return {
                name: jnp.full(batch["label"].shape, variables.params["level"]) for name in ("top1", "top5", "loss")
            }

        def sample(variables, key, n):
            return jnp.broadcast_to(variables.params["level"], (n, 4, 4, 1))

        return jaxkit.tasks.task.Task(init, loss, evaluate, sample, rule if update else None)

    experiment_variables = partial(jaxkit.tasks.task.Variables, frozen={})
    return make


def test_a_task_with_its_own_learning_rule_and_samples_needs_no_change_to_the_loop(tmp_path, monkeypatch):
    changes = {"optimizer__learning_rate": 0.01, "optimizer__momentum": 0.0}
    monkeypatch.setattr(classify, "make", toy(update=True))
    run(tmp_path / "rule", **changes)
    found = learned(tmp_path / "rule", 20)
    # twenty steps of the sign of the error: 0.01 each
    assert found["params/level"] == pytest.approx(0.2)
    assert found["state/seen"] == 20
    assert sorted(path.name for path in (tmp_path / "rule" / "samples").iterdir()) == ["00000010.png", "00000020.png"]
    monkeypatch.setattr(classify, "make", toy(update=False))
    run(tmp_path / "gradient", **changes)
    assert 0 < learned(tmp_path / "gradient", 20)["params/level"] < 0.2


def test_a_local_learning_rule_is_refused_under_a_loss_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(classify, "make", toy(update=True))
    with pytest.raises(ConfigError, match="fp16"):
        run(tmp_path, train__precision="fp16")


def test_a_signal_in_the_last_evaluation_saves_and_the_next_run_makes_up_for_it(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    evaluated = jaxkit.train.evaluate

    def interrupted(*arguments):
        stopped = arguments[-1]
        signal.raise_signal(signal.SIGTERM)
        assert stopped()
        return evaluated(*arguments)

    monkeypatch.setattr(jaxkit.train, "evaluate", interrupted)
    with pytest.raises(Interrupted) as caught:
        run(tmp_path / "cut", train__eval_every=20)
    assert caught.value.exit_code == 143
    assert not (tmp_path / "cut" / "results.json").exists()
    monkeypatch.undo()
    results = run(tmp_path / "cut", train__eval_every=20)
    assert results["last"] == json.loads((tmp_path / "whole" / "results.json").read_text())["last"]
    assert checkpoint.best_step(tmp_path / "cut" / "checkpoints", "top1", "max") == 20


def test_forcing_a_run_that_cannot_begin_leaves_the_old_one(tmp_path, monkeypatch):
    run(tmp_path, train__steps=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refused(*_):
        raise ConfigError("no key")

    monkeypatch.setattr(tracking, "_wandb_run", refused)
    untraceable = {"data__batch_size": 8, "task__model__name": "cnn_tiny", "train__sync_batch_norm": False}
    for changes in (untraceable, {"tracking__wandb": {"project": "x"}, "train__seed": 1}):
        with pytest.raises(ConfigError):
            experiment.run(parse(small_config(**changes), "small"), tmp_path, force=True)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
