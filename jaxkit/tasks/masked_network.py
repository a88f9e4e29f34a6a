"""The network of a ``maskgit`` section with its conditions, as functions; and the sampler of one."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree

from jaxkit.errors import ConfigError
from jaxkit.losses.masked_tokens import drop_conditions
from jaxkit.models.masked import transformer_class
from jaxkit.sampling.guidance import Guidance, adapted_at_once, both_at_once
from jaxkit.sampling.sampler import Sampler
from jaxkit.sampling.schedules import Annealing, constant, linspace, mask_schedule, remaining
from jaxkit.schema import maskgit as schema
from jaxkit.schema.section import Section
from jaxkit.tasks.masked_adapter import adapter
from jaxkit.tasks.task import Context, Variables


class Network(NamedTuple):
    """A transformer over tokens ``[b h w]`` whose conditions are a dict of arrays ``[b ...]``, such as class labels."""

    init: Callable[..., tuple[PyTree, PyTree]]
    """``key, tokens, conditions -> params, frozen``; ``params`` are an adapter's where there is one, and the network's
    own are then the ``network`` in ``frozen``."""
    apply: Callable[..., Array]
    """``variables, tokens, conditions, key=None -> logits [b h w k]``; with a key in training, with dropout."""
    bare: Callable[..., Array]
    """The same of the frozen network without its adapter: ``variables, tokens, conditions -> logits [b h w k]``."""
    conditions: Callable[[dict], PyTree]
    """``batch -> conditions``, of a batch that is encoded."""
    dropped: Callable[..., PyTree]
    """``key, conditions, empty -> conditions``, of which some samples have lost theirs."""
    mask_token: int


# What says how an image was cut, and not what is in it: guidance and dropout leave it.
MICRO = "micro_conds"


class Captioned(nn.Module):
    """A network that learns what the tokens of captions mean; an embedding of each and of its place is its context."""

    network: nn.Module
    vocabulary: int
    width: int

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "b h w"],
        input_ids: Int[Array, "b t"],
        attention_mask: Int[Array, "b t"],
        train: bool = False,
    ) -> Float[Array, "b h w k"]:
        normal = nn.initializers.normal(0.02)
        states = nn.Embed(self.vocabulary, self.width, embedding_init=normal, name="caption_tokens")(input_ids)
        places = self.param("caption_places", normal, (input_ids.shape[1], self.width))
        return self.network(tokens, encoder_hidden_states=states + places, encoder_mask=attention_mask > 0, train=train)


def network(config: schema.MaskGit, context: Context, codebook_size: int, grid: tuple[int, int]) -> Network:
    """Builds the network for tokens below ``codebook_size`` on a grid.

    Raises:
        ConfigError: for a vocabulary that does not hold codes, classes and the mask token, or data without captions.
    """
    kind, dropout = config.condition.name, getattr(config.condition, "dropout", 0.0)
    if kind == "text" and context.captions is None:
        raise ConfigError("task.condition: text needs captions, and the data has none; see data.captions")
    module = build_module(config, context, codebook_size, grid)
    adapted = config.adapter and adapter(config.adapter, module)

    def init(key, tokens, conditions):
        if not adapted:
            return jax.jit(module.init)(key, tokens, **conditions)["params"], {}
        base = _pretrained(config.model, context, jax.eval_shape(module.init, key, tokens, **conditions))
        return adapted.init(key, base), {"network": base}

    def apply(variables, tokens, conditions, key=None):
        options = conditions | {"train": key is not None, "rngs": {} if key is None else {"dropout": key}}
        if adapted:
            return adapted.apply(variables.frozen["network"], variables.params, tokens, **options)
        return module.apply({"params": variables.params}, tokens, **options)

    def bare(variables, tokens, conditions):
        return module.apply({"params": variables.frozen["network"]}, tokens, **conditions)

    def conditions(batch):
        match kind:
            case "none":
                return {}
            case "class":
                return {"labels": batch["label"]}
        if config.condition.encoder is None:
            return {name: batch[name] for name in ("input_ids", "attention_mask")}
        found = {"encoder_hidden_states": batch["encoder_hidden_states"]}
        if config.model.name == "uvit":
            found |= {"cond_embeds": batch["cond_embeds"], MICRO: batch.get(MICRO, _uncut(context, batch))}
        return found | ({"encoder_mask": batch["attention_mask"] > 0} if "attention_mask" in batch else {})

    def dropped(key, given, empty):
        if not dropout:
            return given
        lost = {name: array for name, array in given.items() if name != MICRO}
        return given | drop_conditions(
            key, lost, {name: empty[name] for name in lost}, dropout, parity=config.condition.parity
        )

    mask_token = (module.network if isinstance(module, Captioned) else module).mask_token_id
    return Network(init, apply, bare, conditions, dropped, mask_token)


def build_module(config: schema.MaskGit, context: Context, codebook_size: int, grid: tuple[int, int]) -> nn.Module:
    """Builds the network's module, without its adapter; :class:`Captioned` around it where captions are learned.

    Raises:
        ConfigError: for a vocabulary that does not hold codes, classes and the mask token.
    """
    kind, dropout = config.condition.name, getattr(config.condition, "dropout", 0.0)
    # with dropout one class more: that of those without one
    classes = context.num_classes + (dropout > 0) if kind == "class" else 0
    fields = config.model.model_dump(exclude={"name", "pretrained"})
    needed = codebook_size + classes + 1
    if (fields["vocab_size"] or needed) < needed:
        raise ConfigError(
            f"task.model.vocab_size: {fields['vocab_size']} does not hold {codebook_size} codes, {classes} classes and "
            f"the mask token: {needed} or more do"
        )
    fields |= {"vocab_size": fields["vocab_size"] or needed, "codebook_size": codebook_size, "dtype": context.dtype}
    kind_of = transformer_class(config.model.name)
    if config.model.name == "uvit":
        return kind_of(**fields)
    places = grid[0] * grid[1]
    fields |= {
        "num_classes": classes or None,
        "num_vq_tokens": places,
        "max_position_embeddings": fields["max_position_embeddings"] or places + (classes > 0),
        "add_cross_attention": kind == "text",
        "encoder_hidden_size": fields["encoder_hidden_size"] or fields["hidden_size"],
    }
    module = kind_of(**fields)
    if kind != "text" or config.condition.encoder is not None:
        return module
    return Captioned(module, context.captions.vocabulary, fields["encoder_hidden_size"])


def _pretrained(config: Section, context: Context, like: PyTree) -> PyTree:
    """The parameters of the network that an adapter is trained beside."""
    if context.read_weights is None:
        raise ConfigError("task.model.pretrained: nothing that reads weight files was handed to this run")
    try:
        return context.read_weights(config.pretrained, config.name, like)[0]["params"]
    except ConfigError as error:
        raise ConfigError(f"task.model.pretrained: {error}") from error


def empty_condition(net: Network, config: schema.MaskGit, context: Context, encode: Callable[[dict], dict]) -> PyTree:
    """The conditions ``[1 ...]`` of a sample that has none: the class after the last, or the empty caption."""
    if config.condition.name == "class":
        return net.conditions({"label": jnp.full(1, context.num_classes)})
    found = net.conditions(encode({name: jnp.asarray(array)[None] for name, array in context.captions("").items()}))
    return {name: array for name, array in found.items() if name != MICRO}


def _uncut(context: Context, batch: dict) -> Float[Array, "b 5"]:
    """The micro-conditions of images of which nothing is known, open-muse's: whole, of their own size, score 6."""
    height, width, _ = context.image_shape
    examples = len(jax.tree.leaves(batch)[0])
    return jnp.broadcast_to(jnp.array([width, height, 0.0, 0.0, 6.0]), (examples, 5))


def logits_of(net: Network, variables: Variables, conditions: PyTree, guidance: schema.Guidance | None) -> Callable:
    """Makes the ``logits`` of :func:`jaxkit.sampling.masked.sample_tokens`."""
    if guidance is None:
        return lambda tokens, step: net.apply(variables, tokens, conditions)
    network, empty = partial(net.apply, variables), conditions | variables.frozen["empty"]
    if guidance.adapter is None:
        return both_at_once(network, conditions, empty)
    return adapted_at_once(network, partial(net.bare, variables), conditions, empty, guidance.adapter)


def sampler(config: schema.Sampler) -> Sampler:
    """Builds the sampler of a section."""
    guidance = config.guidance and Guidance(**config.guidance.model_dump(exclude={"adapter"}))
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
