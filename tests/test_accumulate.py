from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkit.optimizer import accumulate, weighed

pytestmark = pytest.mark.level(1)


class Variables(NamedTuple):
    params: Any
    state: Any
    frozen: Any


WIDTH = 64


def loss(params, state, frozen, batch, key):
    hidden = jnp.tanh(batch["x"] @ params["w1"] + frozen)
    per_example = ((hidden @ params["w2"])[:, 0] - batch["y"]) ** 2 * batch["weight"]
    state = {"seen": state["seen"] + batch["x"].shape[0], "largest": jnp.max(batch["y"])}
    return jnp.mean(per_example), (state, {"noise": jax.random.normal(key), "size": jnp.mean(hidden**2)})


def update(variables, batch, key):
    return jax.value_and_grad(loss, has_aux=True)(variables.params, variables.state, variables.frozen, batch, key)


def problem(size=48):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    variables = Variables(
        {"w1": normal(5, WIDTH) / 2, "w2": normal(WIDTH, 1) / 8},
        {"seen": jnp.int32(0), "largest": jnp.float32(0)},
        normal(WIDTH),
    )
    return variables, {"x": normal(size, 5), "y": normal(size), "weight": jnp.abs(normal(size))}, jax.random.key(0)


@pytest.mark.parametrize("pieces", [2, 3, 8])
def test_pieces_give_the_loss_and_gradient_of_the_whole_batch(pieces):
    variables, batch, key = problem()
    with jax.default_matmul_precision("highest"):
        (whole, (_, metrics)), gradients = jax.jit(update)(variables, batch, key)
        (cut, (_, cut_metrics)), cut_gradients = jax.jit(accumulate(update, pieces))(variables, batch, key)
    assert float(cut) == pytest.approx(float(whole), rel=1e-6)
    assert float(cut_metrics["size"]) == pytest.approx(float(metrics["size"]), rel=1e-6)
    # float32 sums of 48 terms in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), cut_gradients, gradients)


def test_state_passes_from_piece_to_piece_and_piece_i_has_every_so_manyth_example():
    variables, batch, key = problem()
    # falling, so that the largest of the last piece is its first example: number 3 of 48
    batch["y"] = jnp.arange(48.0)[::-1]
    (_, (state, _)), _ = accumulate(update, 4)(variables, batch, key)
    assert int(state["seen"]) == 48
    assert float(state["largest"]) == float(batch["y"][3])


def test_every_piece_has_a_key_of_its_own():
    variables, batch, key = problem()
    (_, (_, metrics)), _ = accumulate(update, 4)(variables, batch, key)
    draws = [jax.random.normal(jax.random.fold_in(key, piece)) for piece in range(4)]
    assert len({float(draw) for draw in draws}) == 4
    assert float(metrics["noise"]) == pytest.approx(float(np.mean(draws)), rel=1e-5)


def test_pieces_keep_the_types_of_the_whole_batch():
    variables, batch, key = problem()
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    whole = jax.eval_shape(update, variables, batch, key)
    assert types(jax.eval_shape(accumulate(update, 4), variables, batch, key)) == types(whole)


def test_one_piece_is_the_update_itself():
    assert accumulate(update, 1) is update


def test_pieces_run_in_one_scan_and_need_a_fraction_of_the_memory():
    variables, batch, key = problem(size=4096)
    assert str(jax.make_jaxpr(accumulate(update, 8))(variables, batch, key)).count("scan[") == 1
    temporary = [
        jax.jit(accumulate(update, pieces)).lower(variables, batch, key).compile().memory_analysis().temp_size_in_bytes
        for pieces in (1, 8)
    ]
    # hidden activations dominate: an eighth of them, and the copy of the batch that is cut
    assert temporary[1] < temporary[0] / 3


def test_a_sharded_batch_is_cut_without_moving_examples_between_devices():
    variables, batch, key = problem(size=64)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    replicated = jax.device_put((variables, key), NamedSharding(mesh, P()))
    compiled = jax.jit(accumulate(update, 4)).lower(replicated[0], sharded, replicated[1]).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text
    assert "collective-permute" not in text
    (whole, _), _ = update(variables, batch, key)
    (cut, _), _ = compiled(replicated[0], sharded, replicated[1])
    assert float(cut) == pytest.approx(float(whole), rel=1e-5)


def test_a_batch_that_cannot_be_cut_evenly_is_refused():
    variables, batch, key = problem(size=50)
    with pytest.raises(ValueError, match="a batch of 50 examples cannot be cut into 4 equal pieces"):
        accumulate(update, 4)(variables, batch, key)


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_sums_with_a_weight_give_the_mean_over_all_pieces_however_unequal(pieces):
    variables, batch, key = problem()

    def total(params, state, frozen, batch, key):
        hidden = jnp.tanh(batch["x"] @ params["w1"] + frozen)
        costs = ((hidden @ params["w2"])[:, 0] - batch["y"]) ** 2
        weight = batch["weight"]
        return jnp.sum(weight * costs), (state, {"weight": jnp.sum(weight), "cost": jnp.sum(weight * costs)})

    def summed(variables, batch, key):
        gradient = jax.value_and_grad(total, has_aux=True)
        return gradient(variables.params, variables.state, variables.frozen, batch, key)

    def mean(params):
        value, (_, metrics) = total(params, None, variables.frozen, batch, key)
        return value / metrics["weight"]

    (loss, (_, metrics)), gradients = accumulate(summed, pieces)(variables, batch, key)
    loss, metrics, gradients = weighed(loss, metrics, gradients)
    value, expected = jax.value_and_grad(mean)(variables.params)
    assert set(metrics) == {"cost"}
    assert float(loss) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics["cost"]) == pytest.approx(float(value), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradients, expected)
