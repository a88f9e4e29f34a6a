"""From the ``optimizer`` section to one optax chain with the arithmetic of ``torch.optim``."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, Float, Int, PyTree

from jaxkit.adam8bit import scale_by_adam_8bit
from jaxkit.errors import ConfigError
from jaxkit.schedules import make_schedule
from jaxkit.schema.optimizer import Adam, AdamW, AdamW8bit, Lion, Optimizer, Sgd

# torch.amp.GradScaler's defaults
INITIAL_SCALE = 2.0**16
STEPS_BEFORE_DOUBLING = 2000


def make_optimizer(
    config: Optimizer, steps: int, steps_per_epoch: float | int, precision: Literal["no", "bf16", "fp16"] = "no"
) -> optax.GradientTransformation:
    """Chains clipping, weight decay, the update rule, the schedule and the parameters' average, in torch's order.

    Under ``fp16`` clipping, decay and rule sit inside :func:`scaled`: gradients of ``loss * loss_scale(state)`` go in.
    ``init`` and ``update`` work under jit with a donated state.

    Raises:
        ConfigError: for a schedule that does not fit ``steps``; from ``init``, for a pattern of ``no_decay`` or
            ``rate_scale`` that matches no parameter.
    """
    rule = [optax.identity()]
    if config.clip_norm is not None:
        rule.append(clip_norm(config.clip_norm))
    if config.clip_value is not None:
        rule.append(optax.clip(config.clip_value))
    rule = optax.chain(*rule, *_update_rule(config))
    chain = [scaled(rule) if precision == "fp16" else rule]
    # outside the loss scale: these count skipped updates too, as a torch loop does
    chain.append(optax.scale_by_learning_rate(make_schedule(config, steps, steps_per_epoch)))
    if config.rate_scale:
        chain.append(scale_rates(config.rate_scale))
    if config.ema is not None:
        chain.append(average(config.ema.decay, config.ema.warmup))
    return optax.chain(*chain)


def _update_rule(config: Optimizer) -> list[optax.GradientTransformation]:
    decay = []
    if config.weight_decay:
        decay = [optax.add_decayed_weights(config.weight_decay, partial(decay_mask, patterns=config.no_decay))]
    match config:
        case Sgd(momentum=momentum, nesterov=nesterov):
            return decay + ([optax.trace(momentum, nesterov)] if momentum else [])
        case Adam(b1=b1, b2=b2, eps=eps):
            return [*decay, scale_by_adam(b1, b2, eps)]
        case AdamW(b1=b1, b2=b2, eps=eps):
            return [scale_by_adam(b1, b2, eps), *decay]
        case AdamW8bit(b1=b1, b2=b2, eps=eps):
            return [scale_by_adam_8bit(b1, b2, eps), *decay]
        case Lion(b1=b1, b2=b2):
            return [optax.scale_by_lion(b1, b2), *decay]


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Makes Adam's direction ``m̂ / (sqrt(v̂) + eps)`` from optax's moments, as exactly as torch does.

    optax takes ``1 - b2^t`` in float32, where 0.999 leaves it five digits; ``expm1`` keeps seven.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1.
    """
    moments = optax.scale_by_adam(b1, b2, eps)

    def update(gradients, state, params=None):
        _, state = moments.update(gradients, state, params)
        correct1, correct2 = (-jnp.expm1(state.count * math.log(b)) if b else 1.0 for b in (b1, b2))
        directions = jax.tree.map(
            lambda m, v: (m / correct1 / (jnp.sqrt(v / correct2) + eps)).astype(m.dtype), state.mu, state.nu
        )
        return directions, state

    return optax.GradientTransformation(moments.init, update)


def decay_mask(params: PyTree, patterns: tuple[str, ...]) -> PyTree[bool]:
    """Marks the parameters to decay: those whose path, as in ``norm1/scale``, no pattern is found in.

    Raises:
        ConfigError: naming every pattern that is found in no path.
    """
    found = _found_in_paths(params, patterns, "no_decay")
    return jax.tree.map(lambda patterns: not patterns, found, is_leaf=lambda x: isinstance(x, tuple))


def scale_rates(factors: dict[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of parameters by the factors of all patterns that are found in their paths.

    Raises:
        ConfigError: from ``init``, naming every pattern that is found in no path.
    """

    def scales(params):
        found = _found_in_paths(params, tuple(factors), "rate_scale")
        return jax.tree.map(
            lambda patterns: math.prod(factors[p] for p in patterns), found, is_leaf=lambda x: isinstance(x, tuple)
        )

    def init(params):
        scales(params)
        return optax.EmptyState()

    def update(updates, state, params):
        return jax.tree.map(lambda update, scale: update * scale, updates, scales(params)), state

    return optax.GradientTransformation(init, update)


def _found_in_paths(params: PyTree, patterns: tuple[str, ...], option: str) -> PyTree:
    """The patterns found in the path of each parameter."""
    named = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )
    paths = jax.tree.leaves(named)
    idle = [pattern for pattern in patterns if not any(re.search(pattern, path) for path in paths)]
    if idle:
        raise ConfigError(f"optimizer.{option}: no parameter matches {idle}; the parameters are {', '.join(paths)}")
    return jax.tree.map(lambda path: tuple(pattern for pattern in patterns if re.search(pattern, path)), named)


def clip_norm(largest: float) -> optax.GradientTransformation:
    """Scales gradients by ``min(1, largest / (norm + 1e-6))``, as ``torch.nn.utils.clip_grad_norm_`` does."""

    def clip(gradients, params):
        factor = jnp.minimum(1.0, largest / (optax.tree.norm(gradients) + 1e-6))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients)

    return optax.stateless(clip)


class AverageState(NamedTuple):
    """Updates so far, and the average of the parameters in float32."""

    count: Int[Array, ""]
    average: PyTree


def average(decay: float, warmup: bool) -> optax.GradientTransformation:
    """Keeps ``a <- a + (1 - decay) (params - a)`` of the updated parameters; the last link of a chain.

    With ``warmup`` the decay of update t = 0, 1, ... is ``min(decay, (1 + t) / (10 + t))``, except that the first
    update copies the parameters: step for step the ``EMAModel`` of diffusers.
    """

    def init(params):
        # copies, since params and the optimizer's state are donated together
        start = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        return AverageState(jnp.zeros((), jnp.int32), start)

    def update(updates, state, params):
        t = state.count
        kept = jnp.where(t == 0, 0.0, jnp.minimum(decay, (1 + t) / (10 + t))) if warmup else decay
        params = optax.apply_updates(params, updates)
        moved = jax.tree.map(lambda a, p: (a + (1 - kept) * (p - a)).astype(jnp.float32), state.average, params)
        return updates, AverageState(t + 1, moved)

    return optax.GradientTransformation(init, update)


def averaged_params(state: PyTree, params: PyTree) -> PyTree:
    """The average kept in an optimizer's ``state``, in the dtypes of ``params``; ``params`` where it keeps none."""
    kept = _find(state, AverageState)
    return params if kept is None else jax.tree.map(lambda a, p: a.astype(p.dtype), kept.average, params)


class ScaleState(NamedTuple):
    """The factor on the loss, updates since it changed, and the state of the scaled optimizer."""

    scale: Float[Array, ""]
    finite_steps: Int[Array, ""]
    inner: PyTree


def scaled(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Unscales the gradients of a scaled loss for ``inner``, and skips updates whose gradients overflowed.

    Such an update is zero, leaves the state of ``inner`` as it was and halves the scale; 2000 finite updates in a row
    double it. The rule of ``torch.amp.GradScaler``.
    """

    def init(params):
        return ScaleState(jnp.float32(INITIAL_SCALE), jnp.zeros((), jnp.int32), inner.init(params))

    def update(gradients, state, params):
        gradients = jax.tree.map(lambda g: g / state.scale.astype(g.dtype), gradients)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradients)]))
        updates, moved = inner.update(gradients, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), updates)
        moved = jax.tree.map(partial(jnp.where, finite), moved, state.inner)

        due = state.finite_steps + 1 == STEPS_BEFORE_DOUBLING
        doubled = jnp.where(jnp.isfinite(2 * state.scale), 2 * state.scale, state.scale)
        scale = jnp.where(finite, jnp.where(due, doubled, state.scale), state.scale / 2)
        return updates, ScaleState(scale, jnp.where(finite & ~due, state.finite_steps + 1, 0), moved)

    return optax.GradientTransformation(init, update)


def loss_scale(state: PyTree) -> Float[Array, ""] | float:
    """The factor to put on the loss before its gradient is taken: 1.0 unless the optimizer is :func:`scaled`."""
    kept = _find(state, ScaleState)
    return 1.0 if kept is None else kept.scale


def _find(state: PyTree, kind: type):
    """The only part of an optimizer's state that is of ``kind``, if there is one."""
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, kind))
    return next((part for part in parts if isinstance(part, kind)), None)


def accumulate(update: Callable, pieces: int) -> Callable:
    """Makes ``update`` work through a batch in ``pieces``, one after the other, in a fraction of the memory.

    ``update`` and the result are ``variables, batch, key -> ((loss, (state, metrics)), gradients)``. Loss, metrics and
    gradients are the means over the pieces, equal to those of the whole batch where the loss is a mean over examples;
    ``variables.state`` passes from piece to piece. Piece i has the examples i, i + pieces, ...: a batch sharded over
    devices stays sharded.

    Raises:
        ValueError: when traced with a batch that cannot be cut into equal pieces.
    """
    if pieces == 1:
        return update

    def accumulated(variables, batch, key):
        uneven = [leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.shape[0] % pieces]
        if uneven:
            raise ValueError(f"a batch of {uneven[0]} examples cannot be cut into {pieces} equal pieces")

        def work(carry, numbered):
            state, sums = carry
            number, piece = numbered
            (loss, (state, metrics)), gradients = update(
                variables._replace(state=state), piece, jax.random.fold_in(key, number)
            )
            return (state, jax.tree.map(jnp.add, sums, gradients)), (loss, metrics)

        cut = jax.tree.map(lambda leaf: rearrange(leaf, "(m a) ... -> a m ...", a=pieces), batch)
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), variables.params)
        (state, sums), seen = jax.lax.scan(work, (variables.state, zeros), (jnp.arange(pieces), cut))
        loss, metrics = jax.tree.map(lambda values: jnp.mean(values, axis=0), seen)
        return (loss, (state, metrics)), jax.tree.map(lambda total: total / pieces, sums)

    return accumulated


def weighed(loss: Array, metrics: dict[str, Array], grads: PyTree) -> tuple[Array, dict[str, Array], PyTree]:
    """Divides the sums of a task that gives a ``weight`` by it; others are means already."""
    if "weight" not in metrics:
        return loss, metrics, grads
    sums = loss, {name: value for name, value in metrics.items() if name != "weight"}, grads
    return jax.tree.map(lambda total: total / metrics["weight"], sums)


def gradient_norms(
    gradients: PyTree, scale: float | Float[Array, ""], each: bool = False
) -> dict[str, Float[Array, ""]]:
    """The norm of all gradients divided by ``scale``, and of ``each``, as ``grad_norm/<path of the parameter>``."""
    leaves = jax.tree_util.tree_flatten_with_path(gradients)[0] if each else []
    found = {
        f"grad_norm/{jax.tree_util.keystr(path, simple=True, separator='/')}": jnp.linalg.norm(leaf.reshape(-1)) / scale
        for path, leaf in leaves
    }
    return {"grad_norm": optax.tree.norm(gradients) / scale, **found}
