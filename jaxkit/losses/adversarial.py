"""Losses of a discriminator and of what it judges. One value an example, the mean over a discriminator's patches.

Logits are large where an image looks real.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import reduce
from jaxtyping import Array, Float, PyTree


def hinge_discriminator(real: Float[Array, "b ..."], fake: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Parts real from fake logits until they are 2 apart: ``½ (max(0, 1 - real) + max(0, 1 + fake))``.

    The half is taming's. Source: Lim and Ye, "Geometric GAN", 2017, equation 8.
    """
    return 0.5 * (_mean(jax.nn.relu(1 - real)) + _mean(jax.nn.relu(1 + fake)))


def hinge_generator(fake: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Raises the logits of fake images: ``-fake``."""
    return -_mean(fake)


def non_saturating_discriminator(real: Float[Array, "b ..."], fake: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Takes the cross-entropies of real and fake: ``-log σ(real) - log(1 - σ(fake))``.

    Source: Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, equation 1.
    """
    return _mean(jax.nn.softplus(-real)) + _mean(jax.nn.softplus(fake))


def non_saturating_generator(fake: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Takes the cross-entropy of fake images as real ones, ``-log σ(fake)``, whose gradient is largest for the worst.

    Source: Goodfellow et al., NeurIPS 2014, section 3.
    """
    return _mean(jax.nn.softplus(-fake))


def r1_penalty(
    discriminate: Callable[[Float[Array, "b h w c"]], Float[Array, "b ..."]], images: Float[Array, "b h w c"]
) -> Float[Array, " b"]:
    """Takes half the squared gradient of each real image's logits, summed over its patches, by its pixels.

    ``½ ‖∇ Σ D(x)‖²``, to be weighed by γ. ``discriminate`` maps images to logits, each on its own: with batch
    statistics there would be no gradient of one image.

    Source: Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018, equation 9.
    """
    logits, pullback = jax.vjp(discriminate, images)
    (gradient,) = pullback(jnp.ones_like(logits))
    return 0.5 * reduce(jnp.square(gradient), "b h w c -> b", "sum")


def adaptive_weight(
    images_of: Callable[[PyTree], Float[Array, "b h w c"]],
    last_layer: PyTree,
    reconstruction: Callable[[Float[Array, "b h w c"]], Float[Array, ""]],
    adversarial: Callable[[Float[Array, "b h w c"]], Float[Array, ""]],
    *,
    largest: float = 1e4,
    epsilon: float = 1e-4,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Balances two losses where they meet, at the kernel of the decoder's last layer.

    ``λ = ‖∇_L reconstruction‖ / (‖∇_L adversarial‖ + ε)``, at most ``largest``, and without gradient.
    ``images_of(last_layer)`` decodes with that kernel; the two losses map images to their mean. Where each device sees
    a part of the batch the gradients are averaged over the mapped axis ``axis_name`` before their norms are taken.

    Source: Esser et al., "Taming Transformers", CVPR 2021, equation 7; ε and the bound as in its code.
    """
    images, pullback = jax.vjp(images_of, last_layer)
    norms = []
    for loss in (reconstruction, adversarial):
        (gradient,) = pullback(jax.grad(loss)(images))
        if axis_name is not None:
            gradient = jax.lax.pmean(gradient, axis_name)
        norms.append(_norm(gradient))
    return jax.lax.stop_gradient(jnp.minimum(norms[0] / (norms[1] + epsilon), largest))


def _mean(x: Float[Array, "b ..."]) -> Float[Array, " b"]:
    return reduce(x, "b ... -> b", "mean")


def _norm(tree: PyTree) -> Float[Array, ""]:
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))
