"""What the tasks over latents share: images to latents and back, the loss of a denoiser, and its samples."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32

from jaxkit.losses.diffusion import Draw, denoising_loss, min_snr_weights
from jaxkit.models.diffusion.autoencoder import AutoencoderKL
from jaxkit.models.diffusion.backend import Models
from jaxkit.models.diffusion.config import from_config
from jaxkit.sampling.diffusion.noise import NoiseSchedule
from jaxkit.sampling.diffusion.solvers import Solver
from jaxkit.sampling.diffusion.text_to_image import guided, sample_latents
from jaxkit.schema import diffusion as schema
from jaxkit.tasks.task import Context

# places of latents that are sampled at once: 4 images of 512 x 512 pixels by an autoencoder that reduces them by 8
AT_ONCE = 4 * 64**2


def config_of(section: schema.AutoencoderKL) -> dict:
    """The config.json of an autoencoder, as diffusers writes it."""
    fields = section.model_dump(exclude={"name", "pretrained"}, mode="json")
    levels = len(section.block_out_channels)
    return fields | {
        "_class_name": "AutoencoderKL",
        "out_channels": section.in_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def autoencoder_kl(section: schema.AutoencoderKL, context: Context) -> AutoencoderKL:
    """Builds the autoencoder of a ``model`` section."""
    return from_config(config_of(section), dtype=context.dtype)


def of_unit(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Takes images in [0, 1] to the [-1, 1] of autoencoders."""
    return 2 * images - 1


def in_unit(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Takes images of an autoencoder to [0, 1], clipped."""
    return jnp.clip((images + 1) / 2, 0, 1)


def drawn_latents(
    keys: UInt32[Array, "b 2"], mean: Float[Array, "b h w c"], logvar: Float[Array, "b h w c"], scaling_factor: float
) -> Float[Array, "b h w c"]:
    """Draws each example's latents by its own key, scaled for diffusion."""
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
    return (mean + jnp.exp(0.5 * logvar) * noise) * scaling_factor


def loss_of_draw(
    models: Models,
    schedule: NoiseSchedule,
    unet: PyTree,
    latents: Float[Array, "b h w c"],
    conditions: tuple,
    draw: Draw,
    *,
    snr_gamma: float | None = None,
    mask: Float[Array, "b h w"] | None = None,
) -> Float[Array, " b"]:
    """What a UNet's prediction costs each example, float32.

    Args:
        models: of the UNet.
        schedule: of the noise.
        unet: its variables.
        latents: clean, scaled.
        conditions: of :func:`jaxkit.models.diffusion.backend.condition`.
        draw: noise and time step of each example.
        snr_gamma: of :func:`jaxkit.losses.diffusion.min_snr_weights`; None: time steps weigh alike.
        mask: how much each place counts; None: all alike.
    """
    noisy = schedule.add_noise(latents, draw.noise, draw.timesteps)
    prediction = models.unet(unet, noisy, draw.timesteps, *conditions)
    target = schedule.target(latents, draw.noise, draw.timesteps)
    weight = None
    if snr_gamma is not None:
        weight = min_snr_weights(schedule.snr(draw.timesteps), schedule.prediction_type, snr_gamma)
    return denoising_loss(prediction, target, weight=weight, mask=mask)


def solver_of(sampler: schema.Sampler, schedule: NoiseSchedule) -> Solver:
    """The solver of a ``sampler`` section. Raises ConfigError if it cannot follow the schedule."""
    solver = Solver(method=sampler.method, steps=sampler.steps, eta=sampler.eta, karras=sampler.karras)
    solver.plan(schedule)
    return solver


def sampled_images(
    key: PRNGKeyArray,
    models: Models,
    schedule: NoiseSchedule,
    sampler: schema.Sampler,
    weights: PyTree,
    conditions: tuple,
    empty: tuple,
    shape: tuple[int, int, int],
) -> Float[Array, "n y x c"]:
    """Samples images in [0, 1], one for each of the ``conditions``; of large ones a few at once, the others after them.

    Args:
        key: of the noise.
        models: UNet and decoder.
        schedule: that the UNet was trained with.
        sampler: how.
        weights: the variables of ``unet`` and ``vae``.
        conditions: of :func:`jaxkit.models.diffusion.backend.condition`, for each image.
        empty: the same of the empty text, for one image or for each.
        shape: of one image's latents.
    """
    key_start, key_steps = jax.random.split(key)
    n, solver = len(conditions[0]), solver_of(sampler, schedule)
    start = jax.random.normal(key_start, (n, *shape))

    def network(x, timesteps, given):
        return models.unet(weights["unet"], x, timesteps, *given)

    def images(key, start, conditions, empty):
        if sampler.guidance_scale == 1:
            predict = lambda x, timesteps: network(x, timesteps, conditions)  # noqa: E731
        else:
            predict = guided(network, conditions, empty, sampler.guidance_scale, sampler.guidance_rescale)
        latents = sample_latents(key, predict, start, schedule, solver)
        return in_unit(models.decode(weights["vae"], latents / models.scaling_factor))

    most = max(1, AT_ONCE // (shape[0] * shape[1]))
    size = max(count for count in range(1, min(n, most) + 1) if n % count == 0)
    if size == n:
        return images(key_steps, start, conditions, empty)
    empty = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape[1:])), empty)
    # at once those far from each other, so that every device has some of them at any time
    each = jax.tree.map(lambda leaf: rearrange(leaf, "(i p) ... -> p i ...", i=size), (start, conditions, empty))
    keys = jax.random.split(key_steps, n // size)
    return rearrange(jax.lax.map(lambda part: images(part[0], *part[1]), (keys, each)), "p i y x c -> (i p) y x c")
