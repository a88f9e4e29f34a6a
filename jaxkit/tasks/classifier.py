"""What the tasks over classifiers share: the network of a config, its forward pass in training, its scores."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree, UInt32

from jaxkit import models
from jaxkit.errors import ConfigError
from jaxkit.losses.effective import EffectiveWeights
from jaxkit.schema.model import Model
from jaxkit.schema.section import Section
from jaxkit.tasks.task import Context, Variables


def build(config: Model, context: Context) -> nn.Module:
    """Builds the network of a ``Model`` section for the data and the arithmetic of a run.

    Raises:
        ConfigError: if it has fewer classes than the data, or fewer than two.
    """
    num_classes = config.num_classes or context.num_classes
    if num_classes < context.num_classes:
        raise ConfigError(f"{config.name} has num_classes = {num_classes}, but the data has {context.num_classes}")
    if num_classes < 2:
        raise ConfigError(
            f"{config.name} has num_classes = {num_classes}, the data {context.num_classes}: at least two are needed"
        )
    # Only what is set: not every network has these fields.
    switches = {
        "dropout_rate": config.dropout_rate,
        "compat": config.compat,
        "transform_input": config.transform_input or None,
    }
    return models.build(
        config.name,
        num_classes=num_classes,
        initialization=config.initialization,
        dtype=context.dtype,
        norm=context.norm,
        **{name: value for name, value in switches.items() if value is not None},
    )


def initial_variables(
    network: nn.Module, key: UInt32[Array, "2"], images: Float[Array, "b h w c"]
) -> tuple[PyTree, PyTree]:
    """Initialises a network: its parameters, and its other collections (batch statistics)."""
    # The program runs once: compiling it well takes XLA three times as long as compiling it, to the same bits.
    variables = dict(jax.jit(network.init, compiler_options={"xla_backend_optimization_level": 1})(key, images))
    return variables.pop("params"), variables


def warm_start(config: Section, key: str, context: Context, part: str | None = None) -> Callable | None:
    """Makes the ``warm_start`` of a task whose parameters and state are one network's, or have one's as a ``part``.

    None where the config names no weights to start from. ``key`` is where the network's section stands in a config.
    """
    if config.pretrained is None:
        return None

    def start(variables: Variables) -> tuple[Variables, list[str]]:
        if context.read_weights is None:
            raise ConfigError(f"{key}.pretrained: nothing that reads weight files was handed to this run")
        params, state = variables.params, variables.state
        initial = {"params": params[part], **state[part]} if part else {"params": params, **state}
        try:
            found, notes = context.read_weights(config.pretrained, config.name, initial)
        except ConfigError as error:
            raise ConfigError(f"{key}.pretrained: {error}") from error
        read = found.pop("params")
        if part is None:
            return variables._replace(params=read, state=found), notes
        return variables._replace(params={**params, part: read}, state={**state, part: found}), notes

    return start


def shapes(network: nn.Module, key: UInt32[Array, "2"], images: Float[Array, "b h w c"]) -> dict[str, PyTree]:
    """The shapes of ``params`` and ``state``, the network's other collections; computes nothing."""
    variables = dict(jax.eval_shape(network.init, key, images))
    return {"params": variables.pop("params"), "state": variables}


def train_forward(
    network: nn.Module, variables: Variables, images: Float[Array, "b h w c"], key: UInt32[Array, "2"]
) -> tuple[Float[Array, "b k"], dict[str, Float[Array, "b ..."]], PyTree]:
    """Runs a network in training mode: logits, features, and the collections it moved."""
    (logits, features), state = network.apply(
        {"params": variables.params, **variables.state},
        images,
        train=True,
        mutable=list(variables.state),
        rngs={"dropout": key},
    )
    return logits, features, state


def logits_of(
    network: nn.Module, params: PyTree, state: PyTree, images: Float[Array, "b h w c"]
) -> Float[Array, "b k"]:
    """Runs a network in evaluation mode."""
    logits, _ = network.apply({"params": params, **state}, images)
    return logits


def in_top(logits: Float[Array, "b k"], label: Int[Array, " b"], n: int) -> Float[Array, " b"]:
    """1 where the label is among the ``n`` classes of largest logit, else 0; of equal logits the lower index is first.

    A label whose logit is NaN is not; a NaN elsewhere counts as larger.
    """
    own = jnp.take_along_axis(logits, label[:, None], axis=1)
    ahead = ~(logits <= own) | ((logits == own) & (jnp.arange(logits.shape[1]) < label[:, None]))
    return ((ahead.sum(axis=1) < n) & ~jnp.isnan(own[:, 0])).astype(jnp.float32)


def notes(weights: EffectiveWeights, aux_weight: float | None = None) -> tuple[str, ...]:
    """Lines that say what a loss amounts to, and what is odd about it; ``aux_weight`` is that of auxiliary heads."""
    heads = "" if aux_weight is None else f" + {aux_weight:.4g} x the same of each auxiliary head"
    return (f"loss = {weights}{heads}", *(f"warning: {line}" for line in weights.warnings))
