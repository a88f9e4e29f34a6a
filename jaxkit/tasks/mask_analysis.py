"""How well masked tokens are predicted, by the share of an image that is masked: numbers and a picture of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, UInt8, UInt32

from jaxkit.losses.masked_tokens import mask_counts, random_masks
from jaxkit.metrics.tokens import image_entropy, masked_accuracy, masked_cross_entropy, pixel_entropy

Key = PRNGKeyArray | UInt32[Array, "2"]
RATES = tuple((bucket + 0.5) / 10 for bucket in range(10))


class Analysis(NamedTuple):
    """The mean over images at each of ``RATES``; nats."""

    cross_entropy: Float[Array, " 10"]
    accuracy: Float[Array, " 10"]
    pixel_entropy: Float[Array, " 10"]
    """Of each masked token's prediction."""
    image_entropy: Float[Array, " 10"]
    """Of the mean prediction of an image's masked tokens."""
    probabilities: Float[Array, "10 k"]
    """One masked token's, sorted."""


def masked_scores(
    key: Key,
    logits: Callable[[Int[Array, "b h w"]], Float[Array, "b h w k"]],
    tokens: Int[Array, "b h w"],
    hide: Callable[..., Int[Array, "b h w"]],
    rates: tuple[float, ...],
) -> tuple[Float[Array, "r b"], Float[Array, "r b"]]:
    """Masks the same images at every rate, at random places; a call of ``logits`` each.

    ``hide``: ``key, tokens, mask -> tokens``, of which those in the mask are not to be seen.

    Returns:
        cross-entropy, in nats, and accuracy of each image's masked tokens.
    """

    def scores(found, mask):
        return masked_cross_entropy(found, tokens, mask), masked_accuracy(found, tokens, mask)

    return _at_each_rate(scores, key, logits, tokens, hide, rates)


def analyse(
    key: Key,
    logits: Callable[[Int[Array, "b h w"]], Float[Array, "b h w k"]],
    tokens: Int[Array, "b h w"],
    hide: Callable[..., Int[Array, "b h w"]],
) -> Analysis:
    """Masks the same images at each of ``RATES``, as :func:`masked_scores` does, and describes the predictions."""

    def described(found, mask):
        first = jnp.argmax(mask[0])
        one = jax.nn.softmax(found[0].reshape(-1, found.shape[-1])[first])
        scores = (masked_cross_entropy(found, tokens, mask), masked_accuracy(found, tokens, mask))
        entropies = (pixel_entropy(found, mask), image_entropy(found, mask))
        return Analysis(*(values.mean() for values in (*scores, *entropies)), jnp.sort(one)[::-1])

    return _at_each_rate(described, key, logits, tokens, hide, RATES)


def _at_each_rate(
    say: Callable, key: Key, logits: Callable, tokens, hide: Callable, rates: tuple[float, ...]
) -> PyTree:
    """What ``say(logits, mask)`` has to say at each rate."""

    def at(numbered):
        number, rate = numbered
        counts = mask_counts(jnp.broadcast_to(rate, len(tokens)), tokens[0].size)
        key_mask, key_hide = jax.random.split(jax.random.fold_in(key, number))
        mask = random_masks(key_mask, counts, *tokens.shape[1:])
        return say(logits(hide(key_hide, tokens, mask)), mask)

    return jax.lax.map(at, (jnp.arange(len(rates)), jnp.asarray(rates)))


def draw(found: Analysis) -> UInt8[np.ndarray, "y x 3"]:
    """Draws an analysis: entropies beside what knowing nothing costs, accuracy, and the sorted probabilities."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4), layout="constrained", dpi=80)
    left, middle, right = figure.subplots(1, 3)
    for name in ("cross_entropy", "pixel_entropy", "image_entropy"):
        left.plot(RATES, getattr(found, name), marker="o", label=name.replace("_", " "))
    codes = found.probabilities.shape[1]
    left.axhline(np.log(codes), color="grey", linestyle=":", label=f"ln {codes}")
    left.set(xlabel="share of tokens masked", ylabel="nats")
    left.legend()
    middle.plot(RATES, found.accuracy, marker="o")
    middle.set(xlabel="share of tokens masked", ylabel="accuracy of masked tokens")
    for rate, sorted_probabilities in zip(RATES, found.probabilities, strict=True):
        right.plot(np.arange(1, codes + 1), sorted_probabilities, label=f"{rate:.0%} masked")
    right.set(xscale="log", yscale="log", ylim=(1e-6, 1), xlabel="rank", ylabel="probability of a token")
    right.legend(fontsize=7)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
