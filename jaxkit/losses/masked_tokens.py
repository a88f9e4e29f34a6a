"""Training on masked tokens: which are masked, what is asked of each, and what the answer costs.

A loss is a weighted sum and the weight it was summed with, apart, so that a mean over a whole batch is the same whether
it was taken in one, over accumulated parts or over devices: add both up, then divide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxkit.errors import ConfigError

Kind = Literal["mask", "random_replace"]
LEAST_UNMASKED_WEIGHT = 0.3


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How tokens are masked.

    Args:
        min_rate: the least share of tokens that is masked, before rounding.
        ratios: the shares to choose from, in place of the schedule's; None: the schedule's. For validation.
        rectangle_probability: of a batch to be masked in rectangles, a contiguous one in each image, and not at random.
        noise: masked tokens become the ``mask`` token, or ``random_replace``: tokens at random.
        predict_all: the loss is of all tokens, those not masked weighing less: :func:`mask_tokens`. With
            ``random_replace`` it always is.

    Raises:
        ConfigError: for options that are unknown or out of range.
    """

    min_rate: float = 0.0
    ratios: tuple[float, ...] | None = None
    rectangle_probability: float = 0.0
    noise: Kind = "mask"
    predict_all: bool = False

    def __post_init__(self):
        for name, value in (("min_rate", self.min_rate), ("rectangle_probability", self.rectangle_probability)):
            if not 0 <= value <= 1:
                raise ConfigError(f"masking.{name}: must be 0 to 1, got {value!r}")
        if self.ratios is not None and not (self.ratios and all(0 < ratio <= 1 for ratio in self.ratios)):
            raise ConfigError(f"masking.ratios: must be numbers above 0, and 1 at most, got {self.ratios!r}")
        if self.noise not in get_args(Kind):
            raise ConfigError(f"masking.noise: {self.noise!r} is unknown; one of {', '.join(get_args(Kind))}")


class MaskedTokens(NamedTuple):
    """What a step trains on: the network's input, which of it was masked, and each token's weight in the loss."""

    inputs: Int[Array, "b h w"]
    mask: Bool[Array, "b h w"]
    weight: Float[Array, "b h w"]
    rate: Float[Array, " b"]


class TokenLoss(NamedTuple):
    """A loss summed over tokens, and the sum of their weights."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    @property
    def mean(self) -> Float[Array, ""]:
        """The loss per token; 0 where none has a weight."""
        return self.total / jnp.where(self.weight > 0, self.weight, 1.0)


def mask_tokens(
    key: PRNGKeyArray,
    tokens: Int[Array, "b h w"],
    schedule: Callable[[Float[Array, " b"]], Float[Array, " b"]],
    masking: Masking,
    *,
    codebook_size: int,
    mask_token: int,
) -> MaskedTokens:
    """Masks tokens to train on; labels are ``tokens``, all of them.

    A token weighs 1 if masked and 0 if not; with ``predict_all`` or ``random_replace`` one not masked weighs
    ``1 - 0.7 (1 - r)``, with ``r`` the image's mask rate.

    Source: MaskGIT, section 3.1; open-muse's training script.

    Args:
        key: decides all: rates, positions, random tokens.
        tokens: of the images.
        schedule: share of masked tokens of a time in [0, 1], such as
            :class:`~jaxkit.sampling.schedules.MaskSchedule`; times are drawn uniformly.
        masking: how.
        codebook_size: random tokens are below it.
        mask_token: of the network.
    """
    b, h, w = tokens.shape
    key_rate, key_shape, key_random, key_rectangle, key_token = jax.random.split(key, 5)
    rate = mask_rates(key_rate, b, schedule, masking)
    counts = mask_counts(rate, h * w)
    mask = random_masks(key_random, counts, h, w)
    if masking.rectangle_probability > 0:
        rectangles = jax.random.uniform(key_shape) < masking.rectangle_probability
        mask = jnp.where(rectangles, rectangle_masks(key_rectangle, counts, h, w), mask)
    if masking.noise == "random_replace":
        noise = jax.random.randint(key_token, tokens.shape, 0, codebook_size, tokens.dtype)
    else:
        noise = mask_token
    weight = mask.astype(jnp.float32)
    if masking.predict_all or masking.noise == "random_replace":
        weight = 1 - (1 - weight) * (1 - LEAST_UNMASKED_WEIGHT) * (1 - rearrange(rate, "b -> b 1 1"))
    return MaskedTokens(jnp.where(mask, noise, tokens), mask, weight, rate)


def mask_rates(
    key: PRNGKeyArray, batch: int, schedule: Callable[[Float[Array, " b"]], Float[Array, " b"]], masking: Masking
) -> Float[Array, " b"]:
    """Draws the share of tokens to mask in each image: by the schedule, or one of the ratios that are given."""
    if masking.ratios is not None:
        return jax.random.choice(key, jnp.asarray(masking.ratios, jnp.float32), (batch,))
    return jnp.maximum(schedule(jax.random.uniform(key, (batch,))), masking.min_rate)


def mask_counts(rate: Float[Array, " b"], size: int) -> Int[Array, " b"]:
    """Turns shares of ``size`` tokens into counts: rounded, half to even, and 1 at least."""
    return jnp.clip(jnp.round(size * rate), 1, size).astype(jnp.int32)


def random_masks(key: PRNGKeyArray, counts: Int[Array, " b"], height: int, width: int) -> Bool[Array, "b h w"]:
    """Marks exactly ``counts`` positions of each image, any equally likely."""
    order = jnp.argsort(jax.random.uniform(key, (len(counts), height * width)), -1)
    return rearrange(order < counts[:, None], "b (h w) -> b h w", h=height)


def rectangle_masks(key: PRNGKeyArray, counts: Int[Array, " b"], height: int, width: int) -> Bool[Array, "b h w"]:
    """Marks a rectangle of ``counts`` positions or slightly more in each image, of random shape, at a random place.

    Its height is drawn from all with which it fits, its width is the least that holds ``counts``.
    """
    key_height, key_top, key_left = jax.random.split(key, 3)
    ceil_ratio = lambda a, b: (a + b - 1) // b  # noqa: E731
    least, most = ceil_ratio(counts, width), jnp.minimum(height, counts)
    rows = jax.random.randint(key_height, counts.shape, least, most + 1)
    columns = ceil_ratio(counts, rows)
    top = jax.random.randint(key_top, counts.shape, 0, height - rows + 1)
    left = jax.random.randint(key_left, counts.shape, 0, width - columns + 1)
    y, x = _from(top, height), _from(left, width)
    inside_rows, inside_columns = (y >= 0) & (y < rows[:, None]), (x >= 0) & (x < columns[:, None])
    return rearrange(inside_rows, "b h -> b h 1") & rearrange(inside_columns, "b w -> b 1 w")


def token_cross_entropy(
    logits: Float[Array, "b h w k"], tokens: Int[Array, "b h w"], *, label_smoothing: float = 0.0
) -> Float[Array, "b h w"]:
    """Takes each token's ``-(1 - ε) log p_token - ε mean_k log p_k`` in float32: torch's label smoothing."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    loss = -jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    if label_smoothing == 0.0:  # a token masked out by a logit of -inf would give 0 * inf below
        return loss
    return (1 - label_smoothing) * loss - label_smoothing * jnp.mean(log_p, -1)


def soft_token_cross_entropy(logits: Float[Array, "b h w v"], soft: Float[Array, "b h w k"]) -> Float[Array, "b h w"]:
    """Takes each token's ``-Σ_k q_k log p_k``: ``q`` is the tokenizer's soft code, ``p`` of the first ``k`` logits.

    Source: Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022, section 3.2.3.
    """
    log_p = jax.nn.log_softmax(logits[..., : soft.shape[-1]].astype(jnp.float32))
    return -jnp.sum(soft.astype(jnp.float32) * log_p, -1)


def weigh_tokens(loss: Float[Array, "b h w"], weight: Float[Array, "b h w"]) -> TokenLoss:
    """Sums the loss of tokens by their weights; tokens of weight 0 cost nothing, whatever their loss."""
    return TokenLoss(jnp.sum(jnp.where(weight > 0, weight * loss, 0.0)), jnp.sum(weight))


def drop_conditions(
    key: PRNGKeyArray,
    conditions: Any,
    empty: Any,
    probability: float,
    *,
    parity: Literal["open-muse"] | None = None,
) -> Any:
    """Replaces all conditions of some samples by the empty ones, so that guidance knows what no condition gives.

    Source: Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, algorithm 1.

    Args:
        key: decides which samples.
        conditions: any tree of arrays ``[b ...]``: encoder states, pooled states, class labels; None where unused.
        empty: the same tree of arrays that broadcast to them, such as ``[1 ...]``.
        probability: of a sample to lose its conditions.
        parity: None; ``open-muse``: of a sample to *keep* them, the inverted sense of its training script.

    Raises:
        ConfigError: for a probability outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ConfigError(f"cond_dropout_prob: must be 0 to 1, got {probability!r}")
    leaves = jax.tree.leaves(conditions)
    if not leaves:
        return conditions
    chosen = jax.random.uniform(key, (len(leaves[0]),)) < probability
    drop = ~chosen if parity == "open-muse" else chosen
    # by sample, never by value: an exact 0 within a condition is no sign that it was dropped
    select = lambda condition, none: jnp.where(  # noqa: E731
        drop.reshape(-1, *[1] * (condition.ndim - 1)), none, condition
    )
    return jax.tree.map(select, conditions, empty)


def _from(start: Int[Array, " b"], size: int) -> Int[Array, "b n"]:
    """How far each of ``size`` positions lies behind the start of each image's interval."""
    return jnp.arange(size)[None] - start[:, None]
