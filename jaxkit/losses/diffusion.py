"""Training of diffusion: the noise of each example, and what a wrong prediction costs."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from jaxkit.errors import ConfigError


class Draw(NamedTuple):
    """What a step of training draws for each example."""

    noise: Float[Array, "b h w c"]
    timesteps: Int[Array, " b"]


def draw_noise(keys: UInt32[Array, "b 2"], shape: tuple[int, ...], num_train_timesteps: int) -> Draw:
    """Draws normal noise and a uniform time step for each example, by its own key alone.

    Neither the batch's size, nor its order, nor the devices it is spread over change what an example gets.

    Args:
        keys: one an example.
        shape: of the latents of one.
        num_train_timesteps: time steps are below it.
    """

    def one(key: UInt32[Array, "2"]) -> tuple[Array, Array]:
        key_noise, key_time = jax.random.split(key)
        return jax.random.normal(key_noise, shape), jax.random.randint(key_time, (), 0, num_train_timesteps)

    return Draw(*jax.vmap(one)(keys))


def divergence_from_normal(mean: Float[Array, "b h w c"], logvar: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Takes ``KL(N(mean, exp(logvar)) ‖ N(0, 1)) = (mean² + exp(logvar) - 1 - logvar) / 2``, a mean over latents.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix B.
    """
    divergence = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar)
    return divergence.mean((1, 2, 3))


def min_snr_weights(
    snr: Float[Array, " b"], prediction_type: Literal["epsilon", "v_prediction", "sample"], gamma: float = 5.0
) -> Float[Array, " b"]:
    """Weighs the loss of each example as if it were of ``x_0`` by ``min(SNR, γ)``.

    ``min(SNR, γ)`` of ``x_0``, over ``SNR`` of ``ε``, over ``SNR + 1`` of ``v``. Where the SNR is 0, ``ε`` weighs 1.

    Source: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", ICCV 2023, section 3.4.

    Raises:
        ConfigError: for a gamma that is not above 0.
    """
    if not gamma > 0:
        raise ConfigError(f"snr_gamma: must be above 0, got {gamma!r}; 5 is the paper's")
    clipped = jnp.minimum(snr, gamma)
    match prediction_type:
        case "epsilon":
            return gamma / jnp.maximum(snr, gamma)
        case "v_prediction":
            return clipped / (snr + 1)
    return clipped


def denoising_loss(
    prediction: Float[Array, "b h w c"],
    target: Float[Array, "b h w c"],
    *,
    weight: Float[Array, " b"] | None = None,
    mask: Float[Array, "b h w"] | None = None,
) -> Float[Array, " b"]:
    """Takes each example's mean squared error, in float32: ``w Σ m (p - y)² / (c Σ m)``.

    Args:
        prediction: of the network.
        target: what was asked of it.
        weight: of each example, such as :func:`min_snr_weights`; None: 1.
        mask: how much each position counts, 0 or more; None: all alike. An example whose mask is 0 costs nothing.
    """
    error = jnp.mean(jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)), -1)
    if mask is None:
        loss = jnp.mean(error, (1, 2))
    else:
        # where it is 0 the error may be anything, infinite too
        total, area = jnp.sum(jnp.where(mask > 0, mask * error, 0.0), (1, 2)), jnp.sum(mask, (1, 2))
        loss = total / jnp.where(area > 0, area, 1.0)
    return loss if weight is None else weight * loss
