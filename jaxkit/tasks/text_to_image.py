"""Latent diffusion from texts: a UNet takes noise out of an autoencoder's latents, told by a text encoder.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022.
"""

import jax
import jax.numpy as jnp

from jaxkit.losses.diffusion import draw_noise
from jaxkit.models.diffusion import backend
from jaxkit.models.diffusion.config import example
from jaxkit.sampling.diffusion.noise import NoiseSchedule
from jaxkit.schema.text_to_image import TextToImage
from jaxkit.tasks.diffusion_configs import configs, latent_shape, module_of
from jaxkit.tasks.latents import (
    drawn_latents,
    loss_of_draw,
    of_unit,
    sampled_images,
    solver_of,
)
from jaxkit.tasks.sample_scores import judge
from jaxkit.tasks.task import Context, Task, Variables


def make(config: TextToImage, context: Context) -> Task:
    """Makes the task that minimises the squared error of the UNet's prediction.

    Batches hold ``image [b h w c]`` in [0, 1] and ``input_ids [b t]``, and ``label [b]`` where samples are scored.
    Parameters: ``unet`` and ``text_encoder``. Frozen: the ``vae``, and the ``classifier`` that scores samples.
    Evaluation: ``loss``, by noise and time steps that stay the same, and ``latent_deviation``, which is to be near 1:
    far below it noise hides all but the coarsest (see the autoencoder's ``scaling_factor``).
    """
    parts = configs(config, context.image_shape, context.captions)
    # what does not go together is said before anything is trained
    modules = {name: module_of(name, parts[name]) for name in ("unet", "text_encoder", "vae")}
    models = backend.build(
        "native", [parts["text_encoder"]], parts["unet"], parts["vae"], dtype=context.dtype, remat=config.remat
    )
    schedule = NoiseSchedule.from_config(parts["scheduler"])
    solver_of(config.sampler, schedule)
    judges = config.score and judge(config.score, context)
    shape = latent_shape(config, context.image_shape)
    empty = jnp.asarray(context.captions("")["input_ids"])[None]

    def init(key, batch):
        keys = dict(zip((*modules, "classifier"), jax.random.split(key, 4), strict=True))
        like = jax.eval_shape(modules["vae"].init, keys["vae"], *example(modules["vae"]))
        frozen = {"vae": {"params": context.load_weights(config.autoencoder, {**like, "state": {}})["params"]}}
        if judges:
            frozen["classifier"] = judges.init(keys["classifier"], jnp.zeros((1, *context.image_shape)))
        trained = ("unet", "text_encoder")
        params = {name: jax.jit(modules[name].init)(keys[name], *example(modules[name]))["params"] for name in trained}
        return Variables(params, {}, frozen)

    def conditions(params, ids):
        return backend.condition([models.text[0]({"params": params["text_encoder"]}, ids, None)])

    def costs(variables, batch, keys, ids):
        key_latents, key_noise = keys
        mean, logvar = models.encode(variables.frozen["vae"], of_unit(batch["image"]))
        latents = drawn_latents(key_latents, mean, logvar, models.scaling_factor)
        draw = draw_noise(key_noise, shape, schedule.num_train_timesteps)
        told = conditions(variables.params, ids)
        unet = {"params": variables.params["unet"]}
        return loss_of_draw(models, schedule, unet, latents, told, draw, snr_gamma=config.snr_gamma)

    def loss(variables, batch, key):
        key_latents, key_noise, key_drop = _thrice(batch["key"])
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, config.dropout))(key_drop)
        ids = jnp.where(drop[:, None], empty, batch["input_ids"])
        return costs(variables, batch, (key_latents, key_noise), ids).mean(), (variables.state, {})

    def evaluate(variables, batch, key):
        key_latents, key_noise, _ = _thrice(jax.random.split(key, len(batch["image"])))
        mean, _ = models.encode(variables.frozen["vae"], of_unit(batch["image"]))
        deviation = models.scaling_factor * jnp.sqrt(jnp.square(mean).mean((1, 2, 3)))
        loss = costs(variables, batch, (key_latents, key_noise), batch["input_ids"])
        return {"loss": loss, "latent_deviation": deviation}

    def draw(variables, key, batch):
        weights = {"unet": {"params": variables.params["unet"]}, "vae": variables.frozen["vae"]}
        away = jnp.asarray(context.captions(config.sampler.negative_prompt)["input_ids"])[None]
        told, untold = (conditions(variables.params, ids) for ids in (batch["input_ids"], away))
        return sampled_images(key, models, schedule, config.sampler, weights, told, untold, shape)

    def sample(variables, key, n):
        asked = [context.captions(prompt)["input_ids"] for prompt in config.prompts]
        return draw(variables, key, {"input_ids": jnp.stack([asked[i % len(asked)] for i in range(n)])})

    def samples(variables, test, key):
        drawn, left, number = jax.jit(draw), config.score.samples, 0
        while left > 0:
            for batch in test():
                asked = {"input_ids": batch["input_ids"]}
                yield drawn(variables, jax.random.fold_in(key, number), asked), batch["label"]
                left, number = left - len(batch["label"]), number + 1
                if left <= 0:
                    return

    def score(variables, train, test, key):
        real = ((batch["image"] for batch in split()) for split in (train, test))
        return judges.score(variables.frozen["classifier"], samples(variables, test, key), *real)

    return Task(
        init,
        loss,
        evaluate,
        sample,
        draw=draw,
        score=score if judges else None,
        read_prompt=context.captions,
        prompts=config.prompts,
        example_keys=True,
    )


def _thrice(keys):
    """Three keys of each example's one."""
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
