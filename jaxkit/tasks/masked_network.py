"""The network of a ``maskgit`` section with its conditions, as functions; and the sampler of one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxkit.errors import ConfigError
from jaxkit.losses.masked_tokens import drop_conditions
from jaxkit.models.masked import transformer_class
from jaxkit.sampling.guidance import Guidance, both_at_once
from jaxkit.sampling.sampler import Sampler
from jaxkit.sampling.schedules import Annealing, constant, linspace, mask_schedule, remaining
from jaxkit.schema import maskgit as schema
from jaxkit.tasks.task import Context


class Network(NamedTuple):
    """A transformer over tokens ``[b h w]`` whose conditions are a tree of arrays ``[b ...]``, such as class labels."""

    init: Callable[..., PyTree]
    """``key, tokens, conditions -> params``"""
    apply: Callable[..., Array]
    """``params, tokens, conditions, key=None -> logits [b h w k]``; with a key in training, with dropout."""
    conditions: Callable[[dict], PyTree]
    """``batch -> conditions``"""
    dropped: Callable[..., PyTree]
    """``key, conditions -> conditions``, of which some samples have lost theirs."""
    empty: PyTree
    """The conditions of a sample that has none, ``[1 ...]``."""
    mask_token: int


def network(config: schema.MaskGit, context: Context, codebook_size: int, grid: tuple[int, int]) -> Network:
    """Builds the network for tokens below ``codebook_size`` on a grid.

    Raises:
        ConfigError: for a vocabulary that does not hold codes, classes and the mask token.
    """
    classes = context.num_classes if config.condition.name == "class" else 0
    dropout = getattr(config.condition, "dropout", 0.0)
    # the class of those without one
    classes += dropout > 0
    fields = config.model.model_dump(exclude={"name", "pretrained"})
    needed = codebook_size + classes + 1
    if (fields["vocab_size"] or needed) < needed:
        raise ConfigError(
            f"task.model.vocab_size: {fields['vocab_size']} does not hold {codebook_size} codes, {classes} classes and "
            f"the mask token: {needed} or more do"
        )
    fields["vocab_size"] = fields["vocab_size"] or needed
    module = transformer_class(config.model.name)(
        **fields,
        codebook_size=codebook_size,
        num_classes=classes or None,
        num_vq_tokens=grid[0] * grid[1],
        max_position_embeddings=grid[0] * grid[1] + (classes > 0),
        dtype=context.dtype,
    )
    empty = {"labels": jnp.full(1, classes - 1)} if dropout else {}

    def init(key, tokens, conditions):
        return jax.jit(module.init)(key, tokens, **conditions)["params"]

    def apply(params, tokens, conditions, key=None):
        rngs = {} if key is None else {"dropout": key}
        return module.apply({"params": params}, tokens, **conditions, train=key is not None, rngs=rngs)

    def conditions(batch):
        return {"labels": batch["label"]} if classes else {}

    def dropped(key, given):
        if not dropout:
            return given
        return drop_conditions(key, given, empty, dropout, parity=config.condition.parity)

    return Network(init, apply, conditions, dropped, empty, module.mask_token_id)


def logits_of(net: Network, params: PyTree, conditions: PyTree, guided: bool) -> Callable:
    """Makes the ``logits`` of :func:`jaxkit.sampling.masked.sample_tokens`."""
    if guided:
        return both_at_once(lambda tokens, given: net.apply(params, tokens, given), conditions, net.empty)
    return lambda tokens, step: net.apply(params, tokens, conditions)


def sampler(config: schema.Sampler) -> Sampler:
    """Builds the sampler of a section."""
    guidance = config.guidance and Guidance(**config.guidance.model_dump())
    return Sampler(
        method=config.method,
        steps=config.steps,
        schedule=mask_schedule(config.schedule.name, config.schedule.constants),
        token_temperature=_annealing(config.token_temperature, constant),
        choice_temperature=_annealing(config.choice_temperature, remaining),
        guidance=guidance,
        top_k=config.top_k,
        top_p=config.top_p,
        rolled=config.rolled,
    )


def _annealing(temperature: float | tuple[float, float] | None, of_one: Callable) -> Annealing | None:
    if temperature is None:
        return None
    return linspace(*temperature) if isinstance(temperature, tuple) else of_one(temperature)
