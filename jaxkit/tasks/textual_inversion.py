"""Textual inversion: vectors of a new word are trained so that a frozen Stable Diffusion draws what it stands for.

Source: Gal et al., "An Image is Worth One Word", ICLR 2023; for Stable Diffusion as in diffusers' textual_inversion.py.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxkit.inversion.templates import filled
from jaxkit.losses.diffusion import draw_noise
from jaxkit.models.diffusion import backend
from jaxkit.schema.textual_inversion import TextualInversion
from jaxkit.tasks import concepts
from jaxkit.tasks.inversion_parts import Parts
from jaxkit.tasks.latents import drawn_latents, loss_of_draw, sampled_images, solver_of
from jaxkit.tasks.task import Context, Task, Variables

_LEAST_SAMPLES = 4


def make(config: TextualInversion, context: Context) -> Task:
    """Makes the task that minimises the squared error of the frozen UNet's prediction, by the new words' vectors.

    Batches hold ``picture [b c]``: the number of a picture of each concept. Parameters: ``rows``, of each text encoder
    ``[c n d]`` float32. Frozen: ``unet``, ``vae``, the ``text`` encoders, and the ``cache``, worked out of them: the
    moments of all pictures' latents, so that no step encodes one. The loss is a mean over pictures and a sum over
    concepts, which learn independently of each other. Evaluation: ``loss``, by noise and time steps that stay the same.
    """
    parts = Parts(config, context)
    models, schedule = parts.models, parts.schedule
    solver_of(config.sampler, schedule)  # what does not go together is said before anything is trained
    count = len(config.words)

    def init(key, batch):
        return Variables({"rows": parts.initial_rows(key)}, {}, parts.frozen(key))

    def told(rows, frozen, ids):
        flat = [rearrange(part, "c n d -> (c n) d") for part in rows]
        states = [models.text[i](frozen["text"][i], ids[i], flat[i]) for i in range(len(flat))]
        return backend.condition(states, parts.time_ids(len(ids[0])))

    def costs(variables, picture, keys, timesteps=None):
        """Of pictures ``[b c]``, one of each concept, and keys ``[b 2]``: ``[b c]``."""
        cache = variables.frozen["cache"]
        seen = concepts.drawn(cache, picture, keys, config.flip, config.templates == "captions")
        moments = (cache[name][seen.place] for name in ("mean", "logvar"))
        latents = drawn_latents(seen.key_latents, *moments, models.scaling_factor)
        draw = draw_noise(seen.key_noise, latents.shape[1:], schedule.num_train_timesteps)
        draw = draw if timesteps is None else draw._replace(timesteps=jnp.repeat(timesteps, count))
        conditions = told(variables.params["rows"], variables.frozen, seen.ids)
        how = {"snr_gamma": config.snr_gamma, "mask": cache["mask"][seen.place] if "mask" in cache else None}
        found = loss_of_draw(models, schedule, variables.frozen["unet"], latents, conditions, draw, **how)
        return found.reshape(-1, count)

    def loss(variables, batch, key):
        found = costs(variables, batch["picture"], batch["key"])
        each = {f"loss_{word.placeholder_token}": found[:, i].mean() for i, word in enumerate(config.words)}
        return found.mean(0).sum(), (variables.state, each if count > 1 else {})

    def evaluate(variables, batch, key):
        examples, draws, total = len(batch["picture"]), config.eval_draws, schedule.num_train_timesteps
        keys = jax.random.split(key, (draws, examples))

        def one(i, keys):
            # a time step of each of as many equal parts of the time
            timesteps = (i * total + concepts.below(keys, total)) // draws
            return costs(variables, batch["picture"], keys, timesteps)

        found = jax.lax.map(lambda at: one(*at), (jnp.arange(draws), keys))
        return {"loss": found.mean(0).sum(1)}

    def draw(variables, key, batch):
        frozen, n = variables.frozen, len(batch["input_ids_0"])
        asked = [batch[name] for name in sorted(batch) if name.startswith("input_ids")]
        away = [jnp.asarray(ids)[None] for ids in parts.prompt_ids(config.sampler.negative_prompt).values()]
        rows = variables.params["rows"]
        context, added = told(rows, frozen, [jnp.repeat(ids, n, 0) for ids in away])
        if parts.zeros_for_empty and not config.sampler.negative_prompt:
            context, added = jnp.zeros_like(context), added._replace(text_embeds=jnp.zeros_like(added.text_embeds))
        conditions = told(rows, frozen, asked), (context, added)
        return sampled_images(key, models, schedule, config.sampler, frozen, *conditions, parts.shape)

    def asked(texts, n):
        read = [parts.prompt_ids(texts[i % len(texts)]) for i in range(n)]
        return {name: jnp.stack([one[name] for one in read]) for name in read[0]}

    def sample(variables, key, n):
        return draw(variables, key, asked(parts.validation_prompts, n))

    def score(variables, train, test, key):
        def images(variables, i):
            prompt = filled(config.score.prompt, config.words[i].placeholder_token)
            return draw(variables, key, asked([prompt], config.score.samples))

        compiled = jax.jit(images, static_argnums=1)
        cache = variables.frozen["cache"]
        kinds = {"": variables.params["rows"], "_before": cache["before"], "_random": cache["random"]}
        return {
            f"concept_accuracy{name}": parts.accuracy(variables._replace(params={"rows": rows}), compiled)
            for name, rows in kinds.items()
        }

    drawn = config.validation_images
    if drawn is None:
        drawn = max(_LEAST_SAMPLES, len(parts.validation_prompts))
    return Task(
        init,
        loss,
        evaluate,
        sample if drawn else None,
        samples=drawn,
        draw=draw,
        score=score if config.score else None,
        project=parts.project,
        notes=parts.notes,
        read_prompt=parts.read_prompt,
        prompts=parts.validation_prompts,
        words=tuple(word.placeholder_token for word in config.words),
        files=parts.files,
        example_keys=True,
    )
