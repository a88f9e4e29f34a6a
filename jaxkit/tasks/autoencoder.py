"""The autoencoder of latent diffusion: images to a few numbers a place, near a normal distribution, and back.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, section 3.1.
"""

import jax
import jax.numpy as jnp

from jaxkit import pictures
from jaxkit.errors import ConfigError
from jaxkit.losses.diffusion import divergence_from_normal
from jaxkit.schema.autoencoder import Autoencoder
from jaxkit.tasks.classifier import warm_start
from jaxkit.tasks.latents import autoencoder_kl, in_unit, of_unit
from jaxkit.tasks.task import Context, Pictures, Task, Variables


def make(config: Autoencoder, context: Context) -> Task:
    """Makes the task that minimises ``l1 |x - x'| + l2 (x - x')² + kl KL(z ‖ N(0, 1))``, each a mean.

    Batches hold ``image [b h w c]`` in [0, 1]; differences are of pixels in [-1, 1]. Evaluation is of the mean latents:
    ``mse``, ``psnr`` (dB) of images clipped to [0, 1], and ``latent_deviation``, their root mean square, whose
    reciprocal is the ``scaling_factor`` for diffusion.
    """
    model = autoencoder_kl(config.model, context)

    def init(key, batch):
        images = batch["image"]
        if images.shape[-1] != config.model.in_channels:
            raise ConfigError(
                f"task.model.in_channels: is {config.model.in_channels}, but the images have {images.shape[-1]}"
            )
        return Variables(jax.jit(model.init)(key, images)["params"], {}, {})

    def loss(variables, batch, key):
        weights, images = {"params": variables.params}, of_unit(batch["image"])
        mean, logvar = model.apply(weights, images, method="encode")
        latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        apart = model.apply(weights, latents, method="decode") - images
        l1, l2 = jnp.abs(apart).mean(), jnp.square(apart).mean()
        kl = divergence_from_normal(mean, logvar).mean()
        return config.l1 * l1 + config.l2 * l2 + config.kl * kl, (variables.state, {"l1": l1, "kl": kl})

    def remade(variables, images):
        weights = {"params": variables.params}
        mean, _ = model.apply(weights, of_unit(images), method="encode")
        return in_unit(model.apply(weights, mean, method="decode")), mean

    def evaluate(variables, batch, key):
        images, mean = remade(variables, batch["image"])
        mse = jnp.square(images - batch["image"]).mean((1, 2, 3))
        psnr = -10 * jnp.log10(jnp.maximum(mse, 1e-10))
        return {"mse": mse, "psnr": psnr, "latent_deviation": jnp.sqrt(jnp.square(mean).mean((1, 2, 3)))}

    def trace(variables, batch, key):
        return jnp.concatenate([batch["image"], remade(variables, batch["image"])[0]])

    def draw(images):
        return {"reconstructions": pictures.grid(images, len(images) // 2)}

    warm = warm_start(config.model, "task.model", context)
    return Task(init, loss, evaluate, pictures=Pictures(trace, draw), warm_start=warm)
