"""Learning by spike timing: what moves, what never does, and that labels move no weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_config

from jaxkit.config import parse
from jaxkit.errors import ConfigError
from jaxkit.experiment import run
from jaxkit.schema.spiking_stdp import SpikingStdp
from jaxkit.tasks import spiking_stdp
from jaxkit.tasks.task import Context

pytestmark = pytest.mark.level(1)

KEY = jax.random.PRNGKey(0)
SECTION = {
    "name": "spiking_stdp",
    "encoding": {"name": "poisson", "steps": 40, "frequency": 300.0},
    "excitatory": {"neurons": 5, "drive": 400.0, "spike_increment": 1.0},
    "inhibitory": {"drive": 2500.0, "strength": 6000.0},
    "stdp": {"lr_post": 0.1, "lr_pre": -0.01, "total_weight": 4.0},
}


def task(changes=None, **context):
    section = SpikingStdp.model_validate({**SECTION, **(changes or {})})
    return spiking_stdp.make(section, Context(3, None, **context))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {"image": jnp.asarray(rng.random((8, 4, 4, 1)), jnp.float32), "label": jnp.arange(8) % 3}


@pytest.fixture(scope="module")
def learnt(batch):
    made = task()
    variables = made.init(KEY, batch)
    return made, variables, jax.jit(made.update)(variables, batch, KEY)


def test_only_the_weights_from_the_input_learn(learnt):
    _, variables, (_, direction) = learnt
    assert set(variables.params) == set(direction) == {"feedfwd_connection"}
    assert set(variables.frozen) == {"lateral_connection", "feedback_connection"}
    assert jnp.abs(direction["feedfwd_connection"]["weight"]).max() > 1e-4


def test_labels_change_no_weight_and_no_threshold(learnt, batch):
    made, variables, ((_, (state, _)), direction) = learnt
    other = {**batch, "label": (batch["label"] + 1) % 3}
    (_, (other_state, _)), other_direction = jax.jit(made.update)(variables, other, KEY)
    jax.tree.map(np.testing.assert_array_equal, direction, other_direction)
    np.testing.assert_array_equal(state["threshold"], other_state["threshold"])
    assert not np.array_equal(state["rates"], other_state["rates"])


def test_weights_begin_every_batch_with_the_same_total_and_stay_within_their_bounds(learnt):
    _, variables, (_, direction) = learnt
    weight = variables.params["feedfwd_connection"]["weight"]
    # 16 float32 roundings
    np.testing.assert_allclose(weight.sum(1), 4.0, rtol=1e-5)
    moved = weight - direction["feedfwd_connection"]["weight"]
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1


def test_thresholds_rise_in_training_and_not_in_evaluation(learnt, batch):
    made, variables, ((_, (state, _)), _) = learnt
    assert not variables.state["threshold"].any()
    assert (state["threshold"] > 0).any()
    first = made.evaluate(variables._replace(state=state), batch, KEY)
    again = made.evaluate(variables._replace(state=state), batch, KEY)
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_the_rate_of_an_image_is_that_of_its_own_spikes(learnt, batch):
    made, variables, ((_, (state, _)), _) = learnt
    dark = {**batch, "image": batch["image"].at[0].set(0.0)}
    rate = made.evaluate(variables._replace(state=state), dark, KEY)["rate"]
    assert rate.shape == (8,)
    assert rate[0] == 0
    assert rate.max() > 0


def test_the_rows_of_a_frame_are_its_steps_and_its_pixels_the_input(batch):
    made = task({"encoding": {"name": "frames"}})
    image = jax.random.uniform(KEY, (8, 30, 6, 1))
    frames = {**batch, "image": image}
    variables = made.init(KEY, frames)
    assert variables.params["feedfwd_connection"]["weight"].shape == (5, 6)
    rate = made.evaluate(variables, frames, KEY)["rate"]
    # whoever fired stays refractory for 5 steps of 30
    assert 0 < rate.max() <= 1 / 5
    drawn = made.pictures.draw(jax.device_get(made.pictures.trace(variables, frames, KEY)))
    assert set(drawn) == {"raster"}


def test_a_brighter_current_drives_more_spikes(batch):
    made = task({"encoding": {"name": "current", "steps": 30}})
    variables = made.init(KEY, batch)
    dim, bright = (
        made.evaluate(variables, {**batch, "image": batch["image"] * factor}, KEY)["rate"].sum() for factor in (0.3, 1)
    )
    assert dim < bright


def test_bfloat16_is_the_arithmetic_of_currents_and_not_of_what_is_kept(learnt, batch):
    _, variables, _ = learnt
    made = task(dtype=jnp.bfloat16)
    # spikes are of the currents' type
    shown = jax.eval_shape(made.pictures.trace, variables, batch, KEY)
    assert shown["spikes"]["excitatory"].dtype == jnp.bfloat16
    (_, (state, metrics)), direction = jax.jit(made.update)(variables, batch, KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves((state, metrics, direction))} == {jnp.dtype("float32")}
    assert metrics["rate"] > 0


@pytest.mark.parametrize(
    ("neurons", "path"),
    [
        ({"excitatory": {"rest_v": -50.0}}, "excitatory.rest_v"),
        ({"inhibitory": {"reset_v": -40.0}}, "inhibitory.reset_v"),
    ],
)
def test_neurons_rest_below_their_threshold(neurons, path):
    raw = small_config(task={**SECTION, **neurons})
    with pytest.raises(ConfigError, match=rf"task.{path}: must be below thresh"):
        parse(raw, "config.yaml")


def test_eight_devices_learn_together_what_one_does(batch):
    current = {"encoding": {"name": "current", "steps": 30}}
    # whether batch statistics are shared, by axis_name, is nothing to it
    made, alone = task(current, mapped_axis="batch"), task(current)
    variables = made.init(KEY, batch)
    (_, (state, metrics)), direction = jax.jit(alone.update)(variables, batch, KEY)

    shared = jax.tree.map(lambda leaf: leaf.reshape(8, 1, *leaf.shape[1:]), batch)
    result = jax.pmap(made.update, axis_name="batch", in_axes=(None, 0, None))(variables, shared, KEY)
    (_, (many_state, many_metrics)), many_direction = jax.tree.map(lambda leaf: leaf[0], result)
    assert float(metrics["rate"]) > 0
    # float32 sums in another order, over 30 steps that build on each other
    close = {"rtol": 1e-4, "atol": 1e-6}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **close), (many_state, many_direction), (state, direction)
    )
    np.testing.assert_allclose(many_metrics["top1"], metrics["top1"])


def test_pictures_show_spikes_and_what_neurons_learnt(learnt, batch):
    made, variables, ((_, (state, _)), _) = learnt
    drawn = made.pictures.draw(jax.device_get(made.pictures.trace(variables._replace(state=state), batch, KEY)))
    assert set(drawn) == {"raster", "receptive_fields"}


def test_a_run_ends_with_names_for_its_neurons(tmp_path):
    raw = small_config(task={**SECTION, "stdp": {"total_weight": 16.0}})
    raw["data"] = {"name": "digits", "batch_size": 64}
    raw["optimizer"] = {"name": "sgd", "learning_rate": 1.0}
    raw["train"].update(steps=4, eval_every=4, checkpoint_every=4)
    results = run(parse(raw, "config.yaml"), tmp_path / "run")
    assert set(results["last"]) >= {"top1", "rate"}
    assert (tmp_path / "run" / "pictures" / "receptive_fields_00000004.png").is_file()
