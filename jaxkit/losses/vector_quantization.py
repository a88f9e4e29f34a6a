"""Losses of a tokenizer's latents against its codebook, and how much of the codebook is in use."""

from typing import Literal

import jax
import jax.numpy as jnp
from einops import reduce
from jaxtyping import Array, Float, Float32, Int

# Google's, under both logarithms: an average of softmaxes at a low temperature has zeros, whose gradient would be NaN.
_LOG_FLOOR = 1e-5


def vector_quantization(
    latents: Float[Array, "b h w d"],
    quantized: Float[Array, "b h w d"],
    *,
    beta: float = 0.25,
    parity: Literal["paper", "open-muse"] = "paper",
) -> Float[Array, " b"]:
    """Draws codes to the latents, and latents to their codes.

    ``mean (z_q - sg z)² + β mean (z - sg z_q)²``. ``parity="open-muse"`` has β on the first, the codebook's term, as
    taming-transformers, open-muse and diffusers do by mistake: the encoder is then tied to the codes ``1 / β`` times
    as hard.

    Source: van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, equation 3.
    """
    codebook = _mean_square(quantized - jax.lax.stop_gradient(latents))
    weights = {"paper": (1.0, beta), "open-muse": (beta, 1.0)}[parity]
    return weights[0] * codebook + weights[1] * commitment(latents, quantized)


def commitment(latents: Float[Array, "b h w d"], quantized: Float[Array, "b h w d"]) -> Float[Array, " b"]:
    """Draws latents to their codes, ``mean (z - sg z_q)²``: all there is where the codebook is a moving average."""
    return _mean_square(latents - jax.lax.stop_gradient(quantized))


def codebook_entropy(
    affinity: Float[Array, "b h w k"], *, temperature: float = 0.01, axis_name: str | None = None
) -> Float[Array, " b"]:
    """Makes each latent sure of its code, and the batch use all codes: own entropy less that of the average.

    ``mean H(p) - H(mean p)`` with ``p = softmax(affinity / temperature)``, between ``-log k`` and 0; the first mean is
    over an example's positions, the second over the whole batch (over the mapped axis ``axis_name`` too). ``affinity``
    is the negative squared distance to each code, up to a number of each position. Google weighs it by 0.1.

    Source: Chang et al., "MaskGIT", CVPR 2022, its code; after Jansen et al., "Coincidence, Categorization, and
    Consolidation", ICASSP 2020, equation 3.
    """
    logits = affinity / temperature
    p = jax.nn.softmax(logits)
    own = -jnp.sum(p * jax.nn.log_softmax(logits), axis=-1)
    average = reduce(p, "b h w k -> k", "mean")
    if axis_name is not None:
        average = jax.lax.pmean(average, axis_name)
    of_batch = -jnp.sum(average * jnp.log(average + _LOG_FLOOR))
    return reduce(own, "b h w -> b", "mean") - of_batch


def code_counts(tokens: Int[Array, "b h w"], num_embeddings: int) -> Float32[Array, " k"]:
    """Counts each code; counts of several batches or devices may be added."""
    return jnp.zeros(num_embeddings, jnp.float32).at[tokens.reshape(-1)].add(1)


def usage(counts: Float[Array, " k"]) -> Float[Array, ""]:
    """Takes the share of codes that were used at all."""
    return jnp.mean(counts > 0)


def perplexity(counts: Float[Array, " k"]) -> Float[Array, ""]:
    """Takes ``exp H`` of the codes' frequencies: how many equally frequent codes would carry as much.

    Between 1 and the number of codes.
    """
    frequencies = counts / jnp.maximum(counts.sum(), 1)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(frequencies)))


def _mean_square(x: Float[Array, "b h w d"]) -> Float[Array, " b"]:
    return reduce(jnp.square(x), "b h w d -> b", "mean")
