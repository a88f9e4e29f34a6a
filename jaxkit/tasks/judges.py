"""Frozen classifiers whose features and classes other images are judged by."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import repeat
from jaxtyping import Array, Float, PyTree

from jaxkit.errors import ConfigError
from jaxkit.models import IMAGE_SIDES
from jaxkit.schema.model import Judge
from jaxkit.tasks.classifier import build, shapes
from jaxkit.tasks.task import Context

CHANNELS = 3


class FrozenClassifier(NamedTuple):
    """A network that is looked through, as functions."""

    init: Callable[..., PyTree]
    """``key, images -> variables``, read from a run or a file."""
    apply: Callable[..., tuple[Array, dict[str, Array]]]
    """``variables, images [b h w c] in [0, 1] -> logits, features by name``."""
    num_classes: int


def frozen_classifier(source: Judge, context: Context) -> FrozenClassifier:
    """Makes the classifier that a section names: of a run over such images, or published weights in a file.

    The latter see images resized (bilinear, antialiased) to the side their network was made for, in three channels,
    normalised as the section says.

    Raises:
        ConfigError: from ``init``, for a file of other classes or another network than the section names.
    """
    published = source.model.pretrained is not None
    network = build(source.model, context._replace(num_classes=source.model.num_classes) if published else context)

    def seen(images: Float[Array, "b h w c"]) -> Float[Array, "b y x k"]:
        if not published:
            return images
        side = IMAGE_SIDES[source.model.name]
        images = jax.image.resize(images, (len(images), side, side, images.shape[-1]), "bilinear")
        if images.shape[-1] == 1:
            images = repeat(images, "b h w 1 -> b h w c", c=CHANNELS)
        if source.normalize is None:
            return images
        return (images - jnp.array(source.normalize.mean)) / jnp.array(source.normalize.std)

    def init(key, images):
        like = shapes(network, key, jnp.zeros(jax.eval_shape(seen, images).shape))
        if not published:
            found = context.load_weights(source, like)
            return {"params": found["params"], **found["state"]}
        if context.read_weights is None:
            raise ConfigError("classifier.model.pretrained: nothing that reads weight files was handed to this run")
        variables = {"params": like["params"], **like["state"]}
        found, lines = context.read_weights(source.model.pretrained, source.model.name, variables)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(found)):
            raise ConfigError(f"classifier.model: {lines[0]}; a judge needs all, so give its own num_classes")
        return found

    return FrozenClassifier(init, lambda variables, images: network.apply(variables, seen(images)), network.num_classes)
