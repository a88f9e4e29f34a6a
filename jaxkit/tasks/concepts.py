"""What textual inversion works out once, of its pictures and texts: moments of latents, masks, ids."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jaxtyping import Array, Float, Int, PyTree, UInt8, UInt32

from jaxkit.errors import ConfigError
from jaxkit.inversion.templates import OBJECT, STYLE, STYLE_ORIGINAL, filled
from jaxkit.inversion.words import Words
from jaxkit.schema.textual_inversion import TextualInversion
from jaxkit.tasks.latents import of_unit

TEMPLATES = {"object": OBJECT, "style": STYLE, "style_original": STYLE_ORIGINAL}
# pictures that the autoencoder encodes at once, or as many of their pixels where they are larger than 512 x 512
_CHUNK = 8
_CHUNK_PIXELS = _CHUNK * 512**2


class Drawn(NamedTuple):
    """What is drawn for each example of each concept, in one row: all concepts of the first example, of the next..."""

    place: tuple[Int[Array, " n"], Int[Array, " n"], Int[Array, " n"]]
    """Concept, mirror and picture: where its moments lie."""
    ids: list[Int[Array, "n t"]]
    """Of each text encoder."""
    key_latents: UInt32[Array, "n 2"]
    key_noise: UInt32[Array, "n 2"]


def drawn(
    cache: Mapping[str, PyTree], picture: Int[Array, "b c"], keys: UInt32[Array, "b 2"], flip: float, captions: bool
) -> Drawn:
    """Draws mirror and text of pictures, one of each concept, by each example's own key.

    Args:
        cache: with the ``ids [c p t]`` of each text encoder.
        picture: the number of a picture of each concept.
        keys: of the examples.
        flip: probability of the mirror image.
        captions: whether a picture's text is its own.
    """
    count = picture.shape[1]
    concept = jnp.arange(picture.size) % count
    each = jax.vmap(lambda key: jax.random.split(key, 4 * count))(keys)
    key_mirror, key_text, *others = rearrange(each, "b (c k) two -> k (b c) two", c=count)
    picture = picture.reshape(-1)
    mirror = jax.vmap(lambda key: jax.random.bernoulli(key, flip))(key_mirror).astype(jnp.int32)
    text = picture if captions else below(key_text, cache["ids"][0].shape[1])
    return Drawn((concept, mirror, picture), [ids[concept, text] for ids in cache["ids"]], *others)


def below(keys: UInt32[Array, "b 2"], bound: int) -> Int[Array, " b"]:
    """Draws a number of 0 or more, below the bound, by each key."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, bound))(keys)


def moments(encode: Callable, vae: PyTree, pictures: Sequence[UInt8[np.ndarray, "_ r r 3"]], mirrored: bool) -> dict:
    """Encodes all pictures once, and their mirror images: ``mean`` and ``logvar [c f n h w d]``, float32.

    The axes are concept, mirror (one or two) and picture; concepts with less pictures are filled up with their first.

    Args:
        encode: of :class:`jaxkit.models.diffusion.backend.Models`.
        vae: its variables.
        pictures: of each concept.
        mirrored: whether the mirror images are needed.
    """
    compiled = jax.jit(lambda vae, images: encode(vae, of_unit(images.astype(jnp.float32) / 255)))
    whole = [array[:, :, ::step] for array in _alike(pictures) for step in ((1, -1) if mirrored else (1,))]
    images = np.concatenate(whole)
    size = min(_CHUNK, max(1, _CHUNK_PIXELS // images[0, ..., 0].size))
    chunks = [images[first : first + size] for first in range(0, len(images), size)]
    missing = size - len(chunks[-1])
    chunks[-1] = np.concatenate([chunks[-1], np.repeat(chunks[-1][:1], missing, axis=0)])
    found = [jax.device_get(compiled(vae, chunk)) for chunk in chunks]
    axes = {"c": len(pictures), "f": 2 if mirrored else 1}
    parts = (np.concatenate(part)[: len(images)] for part in zip(*found, strict=True))
    names = ("mean", "logvar")
    return {
        name: jnp.asarray(rearrange(part, "(c f n) h w d -> c f n h w d", **axes))
        for name, part in zip(names, parts, strict=True)
    }


def masks(
    given: Sequence[Float[np.ndarray, "_ r r"] | None], counts: Sequence[int], side: int, reduction: int, mirrored: bool
) -> Float[Array, "c f n h w"] | None:
    """How much each latent counts, the mean over its pixels; None where no concept has masks.

    Raises ConfigError for a picture of which nothing counts.
    """
    if all(mask is None for mask in given):
        return None
    whole = [
        np.ones((n, side, side), np.float32) if mask is None else mask for mask, n in zip(given, counts, strict=True)
    ]
    found = np.stack(
        [reduce(mask, "n (h i) (w j) -> n h w", "mean", i=reduction, j=reduction) for mask in _alike(whole)]
    )
    if not found.any((2, 3)).all():
        raise ConfigError("data.masks: hide all of a picture; leave it out")
    return jnp.asarray(np.stack([found, found[..., ::-1]], 1) if mirrored else found[:, None])


def texts(config: TextualInversion, captions: Sequence[tuple[str, ...] | None]) -> list[list[str]]:
    """The texts of each concept, with its word in them: one for each picture if they are captions, else the templates.

    Raises ConfigError for captions that are not there, and for texts without a place for the word.
    """
    words = [word.placeholder_token for word in config.words]
    if config.templates == "captions":
        if None in captions:
            raise ConfigError("task.templates: captions are asked for, but the data has none; set data.captions: true")
        most = max(map(len, captions))
        whole = [(*own, *(own[:1] * (most - len(own)))) for own in captions]
    else:
        whole = [
            TEMPLATES.get(config.templates, config.templates) if isinstance(config.templates, str) else config.templates
        ]
        whole = whole * len(words)
    return [[filled(text, word) for text in own] for own, word in zip(whole, words, strict=True)]


def ids(words: Words, found: Sequence[Sequence[str]]) -> Int[Array, "c p t"]:
    """The ids of all texts. Raises ConfigError for one in which the word is cut off."""
    for own, placeholder in zip(found, words.vectors, strict=True):
        words.require_room(own, placeholder)
    return jnp.asarray(np.stack([[words(text) for text in own] for own in found]))


def _alike(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """As many in each as in the longest, the first again and again."""
    most = max(map(len, arrays))
    return [np.concatenate([array, np.repeat(array[:1], most - len(array), axis=0)]) for array in arrays]
