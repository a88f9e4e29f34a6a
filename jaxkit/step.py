"""One step of training, the same for every task, and the state that it changes."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree, UInt32

from jaxkit.optimizer import accumulate, averaged_params, gradient_norms, loss_scale, weighed
from jaxkit.tasks.task import Variables


class TrainState(NamedTuple):
    """All that a step changes. ``ok`` falls at the first loss or gradient that is not finite; then nothing moves."""

    step: Int[Array, ""]
    params: PyTree
    state: PyTree
    opt_state: PyTree
    key: UInt32[Array, "2"]
    ok: Bool[Array, ""]


def train_step(
    state: TrainState, frozen: PyTree, batch: PyTree, *, task, optimizer, rate, augment, executor, pieces, each=False
):
    """Updates the parameters once, from one batch of raw examples; returns the new state and scalars to log."""
    key_augment, key_loss = jax.random.split(jax.random.fold_in(state.key, state.step))
    keys = executor.example_keys(key_augment, examples_in(batch))
    batch = augment(keys, batch) | ({"key": keys} if task.example_keys else {})
    scale = loss_scale(state.opt_state)
    update = accumulate(task.update or gradient_of(task.loss, scale), pieces)

    variables = Variables(state.params, state.state, frozen)
    (loss, (moved, metrics)), grads = executor.mean(update(variables, batch, executor.layer_key(key_loss)))
    loss, metrics, grads = weighed(loss, metrics, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = task.project(optax.apply_updates(state.params, updates))

    norms = gradient_norms(grads, scale, each)
    # A loss scaled for float16 overflows its gradients now and then; the optimizer skips those updates itself.
    ok = state.ok & jnp.isfinite(loss) & (jnp.isfinite(norms["grad_norm"]) | (scale > 1))
    new = TrainState(state.step + 1, params, moved, opt_state, state.key, ok)
    new = jax.tree.map(partial(jnp.where, ok), new, state)._replace(ok=ok)
    return new, {**metrics, **norms, "loss": loss, "learning_rate": rate(state.step), "ok": ok}


def gradient_of(loss: Callable, scale: float | Array) -> Callable:
    """Makes ``variables, batch, key -> (loss, (state, metrics)), gradients`` of a task's loss.

    The gradients, not the loss, are multiplied by ``scale``.
    """

    def scaled(params, variables, batch, key):
        value, aux = loss(variables._replace(params=params), batch, key)
        return value * scale, (value, aux)

    def update(variables, batch, key):
        (_, result), gradients = jax.value_and_grad(scaled, has_aux=True)(variables.params, variables, batch, key)
        return result, gradients

    return update


def examples_in(batch: PyTree) -> int:
    """The length of the leading axis."""
    return len(jax.tree.leaves(batch)[0])


def saved_items(state: TrainState) -> dict[str, PyTree]:
    """The items of a checkpoint: ``params``, ``state``, ``optimizer``, and ``averaged`` parameters if there are any.

    What evaluates or teaches is thus read without knowing the optimizer.
    """
    averaged = averaged_params(state.opt_state, state.params)
    items = {
        "params": state.params,
        "state": state.state,
        "optimizer": {"opt_state": state.opt_state, "step": state.step, "key": state.key},
    }
    return items if averaged is state.params else {**items, "averaged": averaged}


def restored_state(items: dict[str, PyTree], like: TrainState) -> TrainState:
    """Puts the items of a checkpoint back together; ``like`` lends what is not saved."""
    return like._replace(params=items["params"], state=items["state"], **items["optimizer"])
