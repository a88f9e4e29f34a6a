import json
import math
import runpy
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from conftest import ROOT, small_config

from jaxkit import eager
from jaxkit.config import load
from jaxkit.tasks import classify
from jaxkit.tasks.task import Task, Variables


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A network with dropout, two dozen test images: op by op, every operation is a program of its own to compile."""
    raw = small_config(task__model={"name": "cnn_tiny", "dropout_rate": 0.5}, data__augment="none")
    raw["data"] |= {"batch_size": 16, "eval_batch_size": 16, "test_fraction": 0.02}
    path = tmp_path_factory.mktemp("eager") / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return load(path)


@pytest.fixture(scope="module", autouse=True)
def small_programs_are_kept():
    """Op by op there are 450, compiled in 20 s of work: the next run of the tests finds them in its cache."""
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def mean_image(config, context):
    """A task of few operations: the mean of all images, each seen through a mask as dropout's."""

    def init(key, batch):
        return Variables({"image": jnp.full(batch["image"].shape[1:], 0.5)}, {"seen": jnp.zeros(1)}, {})

    def loss(variables, batch, key):
        seen = jnp.where(jax.random.bernoulli(key, 0.5, batch["image"].shape), batch["image"], 0.0)
        # the border has no gradient
        error = (variables.params["image"] - seen)[:, 1:-1, 1:-1]
        return jnp.square(error).mean(), ({"seen": variables.state["seen"] + seen.sum()}, {})

    def evaluate(variables, batch, key):
        error = jnp.square(variables.params["image"] - batch["image"]).mean((1, 2, 3))
        return {"loss": error, "top1": error * 0 + 1}

    return Task(init, loss, evaluate)


@pytest.fixture(scope="module", autouse=True)
def small_task():
    """Stands in for the classifier."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classify, "make", mean_image)
        yield patch


@pytest.fixture(scope="module")
def sound(config):
    return eager.compare(config, steps=2)


@pytest.fixture(scope="module")
def mistaken(config, sound):
    """The same with another key op by op: other dropout masks. What ``sound`` has compiled is used again."""
    op_by_op = eager._op_by_op

    def with_another_key(step, *arguments, **options):
        run = op_by_op(step, *arguments, **options)
        return lambda state, *rest: run(
            state._replace(key=state.key + 1) if hasattr(state, "opt_state") else state, *rest
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "_op_by_op", with_another_key)
        return eager.compare(config, steps=2)


def test_compiled_and_op_by_op_a_training_with_dropout_is_the_same_but_for_rounding(sound):
    assert sound.agrees
    assert all(len(losses) == 2 for losses in sound.losses.values())
    assert sound.metrics["compiled"].keys() == sound.metrics["eager"].keys() == {"loss", "top1"}
    # Tens of roundings of float32.
    assert sound.loss_difference < 2e-6
    assert sound.state_difference < 2e-6
    assert sound.metric_differences["top1"] == 0
    assert sound.ratio > 1
    # the border of 8 x 8
    assert sound.no_gradient == {"image": 28}


@pytest.mark.slow
def test_a_network_is_the_same_too(config, small_task):
    small_task.undo()
    sound = eager.compare(config, steps=2)
    small_task.setattr(classify, "make", mean_image)
    assert sound.agrees
    assert all(len(losses) == 2 for losses in sound.losses.values())
    assert sound.metrics["compiled"].keys() == sound.metrics["eager"].keys() == {"loss", "top1", "top5"}
    # Tens of roundings of float32.
    assert sound.loss_difference < 2e-6
    assert sound.state_difference < 2e-6
    assert sound.metric_differences["top1"] == sound.metric_differences["top5"] == 0
    # A hundred times here; on any machine a call of each operation costs more than one of them all.
    assert sound.ratio > 2
    assert "conv1/bias" in sound.no_gradient


def test_other_dropout_masks_do_not_agree(mistaken):
    assert not mistaken.agrees
    # Rounding makes 1e-7 and 1e-6.
    assert mistaken.loss_difference > 1e-2
    assert mistaken.parameters_difference > 0.1


@pytest.mark.parametrize(
    "apart",
    [
        {"loss_difference": 2e-5},
        {"parameters_difference": 2e-4},
        {"state_difference": 2e-5},
        {"metric_differences": {"loss": 2e-5, "top1": 0.0}},
        {"metric_differences": {"loss": 0.0, "top1": 2e-2}},
        {"loss_difference": math.nan},
        {"state_difference": math.nan},
        {"metric_differences": {"loss": math.nan, "top1": 0.0}},
    ],
)
def test_each_difference_alone_is_judged_and_what_is_no_number_never_agrees(sound, apart):
    assert not replace(sound, **apart).agrees


def test_statistics_that_are_not_the_same_are_measured_in_the_size_of_their_layer():
    theirs = {"norm/mean": np.float64([0, 1e-3]), "norm/var": np.float64([4, 1])}
    ours = {**theirs, "norm/mean": np.float64([0, 2e-3])}
    assert eager._of_layer(theirs, theirs) == 0
    assert eager._of_layer(ours, theirs) == pytest.approx(1e-3 / 4)
    assert math.isnan(eager._of_layer({**theirs, "norm/var": np.float64([math.nan, 1])}, theirs))
    assert eager._of_layer({}, {}) == 0


def test_the_command_prints_and_writes_all_and_ends_with_code_3_where_they_differ(
    sound, mistaken, monkeypatch, tmp_path, capsys
):
    script = ROOT / "scripts" / "profile_model.py"
    for comparison, code in ((sound, 0), (mistaken, 3)):
        out = tmp_path / f"{code}.json"
        flags = ["--compare-eager", "--config", "configs/classify_digits.yaml", "--steps", "2", "--json", str(out)]
        monkeypatch.setattr(eager, "compare", lambda config, steps, result=comparison: result)
        monkeypatch.setattr(sys, "argv", [str(script), *flags])
        monkeypatch.chdir(ROOT)
        assert runpy.run_path(str(script))["main"]() == code

        printed = capsys.readouterr().out
        for line in (
            "loss 2",
            "top1",
            "op by op takes",
            "losses differ",
            "statistics differ",
            "loss of the evaluation",
        ):
            assert line in printed
        found = json.loads(out.read_text())
        assert found["agrees"] is (code == 0)
        assert found["losses"] == comparison.losses
        assert found["tolerance"]["losses"] == 1e-5
        assert found["ratio"] == comparison.ratio


def test_what_is_not_finite_is_null_in_json(sound):
    assert json.loads(replace(sound, loss_difference=math.nan).json())["loss_difference"] is None
