"""What frozen networks make of a batch: tokens of its images, states of its captions."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.errors import ScopeParamNotFoundError
from jaxtyping import PyTree

from jaxkit.errors import ConfigError
from jaxkit.models.text import text_encoder
from jaxkit.models.tokenizers.tokenizer import in_chunks
from jaxkit.parts import asked_for
from jaxkit.schema.text import TextEncoder
from jaxkit.schema.tokenizer import TokenizerSource
from jaxkit.tasks import image_tokens
from jaxkit.tasks.task import Context


class Encoding(NamedTuple):
    """The frozen part of a network over tokens, as functions."""

    init: Callable[..., PyTree]
    """``key, batch -> frozen``: of batches that hold tokens or states the encoders are left out."""
    encode: Callable[[PyTree, dict], dict]
    """``frozen, batch -> batch``: ``image`` becomes ``tokens [b h w]``, ``input_ids [b t]`` become
    ``encoder_hidden_states [b t d]`` and maybe ``cond_embeds [b d]``. What is encoded already stays as it is."""


def encoding(source: TokenizerSource, text: TextEncoder | None, context: Context, chunk: int | None = None) -> Encoding:
    """Makes the encoding of a tokenizer and a text encoder; without one ``input_ids`` stay as they are.

    ``frozen`` holds ``tokenizer``, of which without images only what decodes, and ``text_encoder``. ``chunk`` is how
    many images the tokenizer takes at once. ``attention_mask`` stays where it is to be heeded: beside ``input_ids``,
    and with ``mask_padding``.

    Raises:
        ConfigError: on tokens of another grid than the tokenizer's, and on images where there is no encoder.
    """
    tokenizer = image_tokens.build(source.model, context, frozen=True)
    grid = image_tokens.grid(tokenizer, context.image_shape)

    @cache
    def encoder():
        # of states encoded before, the folder need not be there
        return text_encoder(text.kind, text.folder, penultimate=text.penultimate, dtype=context.dtype)

    def init(key, batch):
        images = batch.get("image", jnp.zeros((1, *context.image_shape)))
        frozen = {"tokenizer": image_tokens.trained(source, context, key, images)}
        if "image" not in batch:
            if batch["tokens"].shape[1:] != grid:
                raise ConfigError(f"the data has tokens {batch['tokens'].shape[1:]}, but task.tokenizer makes {grid}")
            used = jax.eval_shape(
                lambda key: tokenizer.init(key, jnp.zeros((1, *grid), int), method="decode_code"), key
            )
            frozen["tokenizer"] = asked_for(frozen["tokenizer"], used)
        if text and "input_ids" in batch:
            frozen["text_encoder"] = encoder()[1]()
        return frozen

    def code(frozen, images):
        def get_code(x):
            return tokenizer.apply(frozen["tokenizer"], x, method="get_code")

        try:
            return in_chunks(get_code, images, chunk) if chunk else get_code(images)
        except ScopeParamNotFoundError as error:
            raise ConfigError(
                "images cannot be encoded: this run reads tokens, and has only what decodes them"
            ) from error

    def encode(frozen, batch):
        batch = dict(batch)
        if "image" in batch:
            batch["tokens"] = code(frozen, batch.pop("image"))
        if text and "input_ids" in batch:
            ids, mask = batch.pop("input_ids"), batch.pop("attention_mask")
            states, pooled = encoder()[0](frozen["text_encoder"], ids, mask if text.mask_padding else None)
            batch["encoder_hidden_states"] = states
            batch |= {"cond_embeds": pooled} if pooled is not None else {}
            batch |= {"attention_mask": mask} if text.mask_padding else {}
        return batch

    return Encoding(init, encode)
