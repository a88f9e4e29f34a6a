"""Spiking classifiers: what a step of training changes, what evaluation reads, what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_config

from jaxkit.config import parse
from jaxkit.errors import ConfigError
from jaxkit.experiment import run
from jaxkit.schema.spiking import Spiking
from jaxkit.tasks import spiking
from jaxkit.tasks.task import Context

pytestmark = pytest.mark.level(1)

KEY = jax.random.PRNGKey(0)
CONTEXT = Context(num_classes=3, load_weights=None)
DELAY = {"longest": 4.0}
GAUSSIAN = {"longest": 4.0, "interpolation": "gaussian", "window": {"start": 2.0, "end": 0.5, "steps": 2}}
LATENCY = {"name": "latency", "steps": 8}


def task(delay=DELAY, encoding=LATENCY, **network):
    section = {"name": "spiking", "encoding": encoding, "network": {"hidden": [6, 5], "delay": delay, **network}}
    return spiking.make(Spiking.model_validate(section), CONTEXT)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {"image": jnp.asarray(rng.random((6, 4, 4, 1)), jnp.float32), "label": jnp.array([0, 1, 2, 0, 1, 2])}


def gradient(made, variables, batch):
    def loss(params):
        return made.loss(variables._replace(params=params), batch, KEY)[0]

    return jax.jit(jax.grad(loss))(variables.params)


def test_hidden_layers_have_delays_and_the_readout_has_none(batch):
    params = task().init(KEY, batch).params
    assert {name: "delay" in part.get("connection", part) for name, part in params.items()} == {
        "layer1": True,
        "layer2": True,
        "readout": False,
    }
    assert "delay" not in task(delay=None).init(KEY, batch).params["layer1"]["connection"]


def test_weights_and_delays_of_every_layer_receive_gradient(batch):
    made = task(gain=3.0)
    slopes = gradient(made, made.init(KEY, batch), batch)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes))


def test_delays_that_are_not_learned_receive_none(batch):
    made = task({**DELAY, "learned": False}, gain=3.0)
    slopes = gradient(made, made.init(KEY, batch), batch)
    for name in ("layer1", "layer2"):
        assert not slopes[name]["connection"]["delay"].any()
        assert slopes[name]["connection"]["weight"].any()


def test_an_update_leaves_delays_within_their_range(batch):
    made = task()
    params = made.init(KEY, batch).params
    moved = made.project(jax.tree.map(lambda leaf: leaf + 100, params))
    assert float(moved["layer1"]["connection"]["delay"].max()) == 4.0
    np.testing.assert_array_equal(moved["readout"]["weight"], params["readout"]["weight"] + 100)


def test_the_window_narrows_by_the_same_factor_and_then_stays(batch):
    made = task(GAUSSIAN)
    variables = made.init(KEY, batch)
    widths = [float(variables.state["window"])]
    for _ in range(3):
        _, (state, _) = made.loss(variables, batch, KEY)
        variables = variables._replace(state=state)
        widths.append(float(state["window"]))
    np.testing.assert_allclose(widths, [2.0, 1.0, 0.5, 0.5], rtol=1e-6)


def test_evaluation_reads_delays_at_the_nearest_step(batch):
    made = task(GAUSSIAN, gain=3.0)
    variables = made.init(KEY, batch)

    def rounded(path, leaf):
        return jnp.round(leaf) if path[-1].key == "delay" else leaf

    whole = variables._replace(params=jax.tree_util.tree_map_with_path(rounded, variables.params))
    assert not all(
        jnp.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(variables.params), jax.tree.leaves(whole.params), strict=True)
    )
    np.testing.assert_array_equal(
        made.evaluate(variables, batch, KEY)["loss"], made.evaluate(whole, batch, KEY)["loss"]
    )


def test_a_readout_without_memory_does_not_know_when_spikes_came(batch):
    made = task(None, {"name": "frames"}, readout_time_constant=None, time_constant=0.05, gain=3.0)
    variables = made.init(KEY, batch)
    # each frame meets membranes that have forgotten the one before: only their order is another
    turned = {**batch, "image": batch["image"][:, ::-1]}
    # sums in another order
    np.testing.assert_allclose(
        made.evaluate(variables, batch, KEY)["loss"], made.evaluate(variables, turned, KEY)["loss"], rtol=1e-5
    )


def test_a_silent_network_does_not_know_every_label(batch):
    made = task(encoding={"name": "latency", "steps": 8})
    dark = {**batch, "image": jnp.zeros_like(batch["image"])}
    found = made.evaluate(made.init(KEY, dark), dark, KEY)
    assert not found["rate"].any()
    # of equal logits the first class is named
    np.testing.assert_array_equal(found["top1"], batch["label"] == 0)


def test_every_encoding_and_execution_trains(batch):
    encodings = [{"name": "frames"}, LATENCY, {"name": "poisson", "steps": 5, "frequency": 300.0}]
    encodings.append({"name": "current", "steps": 5})
    for encoding, execution in zip(encodings, ["auto", "grouped", "future", "convolution"], strict=True):
        made = task(DELAY, encoding, execution=execution, dropout_rate=0.5)
        loss, (_, metrics) = jax.jit(made.loss)(made.init(KEY, batch), batch, KEY)
        assert np.isfinite(loss)
        assert set(metrics) == {"top1", "rate"}


def test_pictures_show_spikes_membranes_delays_and_receptive_fields(batch):
    made = task()
    shown = jax.device_get(made.pictures.trace(made.init(KEY, batch), batch, KEY))
    drawn = made.pictures.draw(shown)
    assert set(drawn) == {"raster", "membranes", "delays_layer1", "delays_layer2", "receptive_fields"}
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in drawn.values())
    assert shown["fields"].shape == (6, 4, 4)


def test_batch_normalisation_moves_its_statistics_in_training_alone(batch):
    made = task(batch_norm=True)
    variables = made.init(KEY, batch)
    _, (state, _) = made.loss(variables, batch, KEY)
    moved = state["collections"]["batch_stats"]["layer1"]["norm"]
    assert moved["mean"].shape == (6,)
    assert moved["mean"].any()
    states = variables.state, state
    before, after = (made.pictures.trace(variables._replace(state=one), batch, KEY)["voltage"] for one in states)
    assert (before != after).any()
    assert set(variables.params["layer1"]) == {"connection", "norm"}
    assert float(made.project(variables.params)["layer1"]["norm"]["scale"].sum()) == 6.0


@pytest.mark.parametrize(
    ("delay", "message"),
    [
        ({"longest": 4.0, "interpolation": "gaussian"}, "delay.window"),
        ({"longest": 4.0, "window": GAUSSIAN["window"]}, "delay.window"),
        ({"longest": 4.0, "interpolation": "nearest"}, "has no gradient by a delay"),
        ({"longest": 4.0, "learned": False, "straight_through": True}, "is about learning"),
        ({"longest": -1.0}, "longest"),
    ],
)
def test_a_delay_section_that_makes_no_sense_is_refused(delay, message):
    raw = small_config(
        task={"name": "spiking", "encoding": LATENCY, "network": {"hidden": [4], "delay": delay}},
    )
    with pytest.raises(ConfigError, match=message):
        parse(raw, "config.yaml")


@pytest.mark.parametrize(
    ("task", "path"),
    [
        ({"name": "spiking", "network": {"hidden": [4]}}, "task.network.step_time"),
        ({"name": "spiking_stdp"}, "task.step_time"),
    ],
)
def test_recorded_frames_are_as_long_as_the_steps_that_they_are_taken_for(task, path):
    raw = small_config(task={**task, "encoding": {"name": "frames"}})
    raw["data"] = {"name": "nmnist", "root": "events", "step_time": 10.0, "duration": 100.0, "batch_size": 8}
    with pytest.raises(ConfigError, match=rf"{path}: is 1.0 ms, and data.step_time, .* 10.0 ms"):
        parse(raw, "config.yaml")
    raw["data"]["step_time"] = 1.0
    parse(raw, "config.yaml")


def test_spikes_more_frequent_than_steps_are_refused_as_a_config():
    with pytest.raises(ConfigError, match="task.encoding: frequency 1000 Hz cannot be reached"):
        task(encoding={"name": "poisson", "steps": 8, "frequency": 1000.0})


def config(batch_norm=False, **changes):
    network = {"hidden": [8], "delay": GAUSSIAN, "batch_norm": batch_norm}
    raw = small_config(task={"name": "spiking", "encoding": LATENCY, "network": network}, **changes)
    raw["data"] = {"name": "digits", "batch_size": 64}
    # not Adam, which makes full steps of gradients that are nothing but rounding
    raw["optimizer"] = {"name": "sgd", "learning_rate": 0.1, "rate_scale": {"delay": 10.0}}
    raw["train"].update(steps=4, eval_every=4, checkpoint_every=4)
    return parse(raw, "config.yaml")


def test_a_run_draws_its_pictures_and_keeps_its_window(tmp_path):
    results = run(config(), tmp_path / "run")
    assert set(results["last"]) >= {"top1", "top5", "loss", "rate"}
    drawn = {path.name for path in (tmp_path / "run" / "pictures").iterdir()}
    assert drawn == {f"{name}_00000004.png" for name in ("raster", "membranes", "delays_layer1", "receptive_fields")}
    assert results["train"]["recompilations"] == 0


def test_eight_devices_learn_the_same_under_pmap_and_jit(tmp_path):
    metrics = {}
    for parallel in ("jit", "pmap"):
        made = config(train__parallel=parallel, batch_norm=True)
        metrics[parallel] = run(made, tmp_path / parallel)["last"]
    # float32 sums in another order
    assert metrics["jit"] == pytest.approx(metrics["pmap"], rel=1e-4)


def test_a_section_makes_equal_networks_of_equal_hash():
    section = Spiking.model_validate({"name": "spiking", "encoding": LATENCY, "network": {"hidden": [4]}})
    first, second = (spiking.network(section, CONTEXT, None) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
