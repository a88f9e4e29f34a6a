"""How well masked tokens are predicted, by how many of the image were masked.

Each image has one value, the mean over its masked tokens: 0 where nothing is masked, which belongs to no bucket.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

BUCKETS = 10


class ByMaskRatio(NamedTuple):
    """A sum over the images of each bucket of mask ratios, and how many they were; both add up over batches."""

    total: Float[Array, " buckets"]
    count: Float[Array, " buckets"]

    @property
    def mean(self) -> Float[Array, " buckets"]:
        """The mean of each bucket; NaN of an empty one."""
        return self.total / jnp.where(self.count > 0, self.count, jnp.nan)


def mask_ratio_bucket(mask: Bool[Array, "b h w"], buckets: int = BUCKETS) -> Int[Array, " b"]:
    """The bucket ``(i / buckets, (i + 1) / buckets]`` of each image's share of masked tokens; -1 if none is."""
    _, h, w = mask.shape
    masked = jnp.sum(mask, (1, 2))
    return (buckets * masked + h * w - 1) // (h * w) - 1


def by_mask_ratio(values: Float[Array, " b"], mask: Bool[Array, "b h w"], buckets: int = BUCKETS) -> ByMaskRatio:
    """Sums one value an image within each bucket of mask ratios."""
    inside = mask_ratio_bucket(mask, buckets)[:, None] == jnp.arange(buckets)
    return ByMaskRatio(jnp.sum(jnp.where(inside, values[:, None], 0.0), 0), jnp.sum(inside, 0, dtype=jnp.float32))


def masked_accuracy(
    logits: Float[Array, "b h w k"], tokens: Int[Array, "b h w"], mask: Bool[Array, "b h w"]
) -> Float[Array, " b"]:
    """The share of masked tokens whose likeliest prediction is right."""
    return _masked_mean((jnp.argmax(logits, -1) == tokens).astype(jnp.float32), mask)


def masked_cross_entropy(
    logits: Float[Array, "b h w k"], tokens: Int[Array, "b h w"], mask: Bool[Array, "b h w"]
) -> Float[Array, " b"]:
    """The mean ``-log p_token`` of the masked tokens, nats; that of a network that knows nothing is ``log k``."""
    log_p = jnp.take_along_axis(_log_softmax(logits), tokens[..., None], -1)[..., 0]
    return _masked_mean(-log_p, mask)


def pixel_entropy(logits: Float[Array, "b h w k"], mask: Bool[Array, "b h w"]) -> Float[Array, " b"]:
    """The mean entropy of the masked tokens' predictions, nats: how unsure each is."""
    log_p = _log_softmax(logits)
    p = jnp.exp(log_p)
    # a probability that underflows to 0 adds nothing, even where its logarithm is -inf
    return _masked_mean(-jnp.sum(jnp.where(p > 0, p * log_p, 0.0), -1), mask)


def image_entropy(logits: Float[Array, "b h w k"], mask: Bool[Array, "b h w"]) -> Float[Array, " b"]:
    """The entropy of the mean prediction over the masked tokens, nats: how many different tokens are in play."""
    p = jax.nn.softmax(logits.astype(jnp.float32))
    mean = jnp.sum(jnp.where(mask[..., None], p, 0.0), (1, 2)) / jnp.maximum(1, jnp.sum(mask, (1, 2)))[:, None]
    return jnp.sum(jax.scipy.special.entr(mean), -1)


def token_probabilities(
    logits: Float[Array, "b h w k"], mask: Bool[Array, "b h w"], buckets: int = BUCKETS
) -> tuple[Float[Array, "buckets k"], Bool[Array, " buckets"]]:
    """Shows one prediction a bucket: that of the first masked token of the first image whose mask ratio is in it.

    Returns:
        the probabilities, 0 for a bucket without images; which buckets have some.
    """
    inside = mask_ratio_bucket(mask, buckets) == jnp.arange(buckets)[:, None]
    image = jnp.argmax(inside, 1)
    position = jnp.argmax(rearrange(mask, "b h w -> b (h w)"), 1)[image]
    p = jax.nn.softmax(rearrange(logits, "b h w k -> b (h w) k")[image, position].astype(jnp.float32))
    found = jnp.any(inside, 1)
    return jnp.where(found[:, None], p, 0.0), found


def _masked_mean(values: Float[Array, "b h w"], mask: Bool[Array, "b h w"]) -> Float[Array, " b"]:
    return jnp.sum(jnp.where(mask, values, 0.0), (1, 2)) / jnp.maximum(1, jnp.sum(mask, (1, 2)))


def _log_softmax(logits: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
    return jax.nn.log_softmax(logits.astype(jnp.float32))
