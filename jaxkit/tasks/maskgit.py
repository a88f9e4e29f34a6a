"""Masked generative transformers: tokens of an image are masked, and predicted from the rest.

Source: Chang et al., "MaskGIT: Masked Generative Image Transformer", CVPR 2022, section 3.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxkit import pictures
from jaxkit.losses import masked_tokens
from jaxkit.metrics.tokens import masked_accuracy, masked_cross_entropy
from jaxkit.models.tokenizers.tokenizer import in_chunks
from jaxkit.sampling.editing import composite, token_mask
from jaxkit.sampling.masked import sample_tokens
from jaxkit.sampling.schedules import mask_schedule
from jaxkit.schema.maskgit import MaskGit
from jaxkit.tasks import image_tokens, mask_analysis
from jaxkit.tasks.masked_network import logits_of, network, sampler
from jaxkit.tasks.sample_scores import judge
from jaxkit.tasks.task import Context, Pictures, Task, Variables

# Samples of one call of the compiled sampler when they are scored.
SCORED_AT_ONCE = 100
# The share of a token's pixels from which on it is painted anew: any of them.
LEAST_HIDDEN = 1e-6


def make(config: MaskGit, context: Context) -> Task:
    """Makes the task that minimises the cross-entropy of masked tokens.

    Batches hold ``image [b h w c]`` in [0, 1] and ``label [b]``. Frozen: the ``tokenizer``, and the ``classifier`` that
    scores samples. Loss and metrics are means over the masked tokens of the whole batch. Evaluation: ``loss`` and
    ``token_accuracy``, of each image's masked tokens. Scores: ``fid`` and ``fid_train_vs_test`` in features of the
    classifier, and ``class_conditional_accuracy``.
    """
    tokenizer = image_tokens.build(config.tokenizer.model, context, frozen=True)
    codebook_size = image_tokens.codebook_size(config.tokenizer.model)
    grid = image_tokens.grid(tokenizer, context.image_shape)
    net = network(config, context, codebook_size, grid)
    guided = config.sampler.guidance is not None
    options = config.masking.model_dump(exclude={"schedule", "eval_ratios"})
    masking = masked_tokens.Masking(**options)
    masking_eval = masked_tokens.Masking(**options, ratios=config.masking.eval_ratios)
    schedule = mask_schedule(config.masking.schedule.name, config.masking.schedule.constants)
    codes = {"codebook_size": codebook_size, "mask_token": net.mask_token}
    decoding = sampler(config.sampler)
    judges = config.score and judge(config.score, context)

    def init(key, batch):
        key_tokenizer, key_network, key_judge = jax.random.split(key, 3)
        images = batch["image"]
        frozen = {"tokenizer": image_tokens.trained(config.tokenizer, context, key_tokenizer, images)}
        if judges:
            frozen["classifier"] = judges.init(key_judge, images)
        params = net.init(key_network, jnp.zeros((1, *grid), jnp.int32), first(net.conditions(batch)))
        return Variables(params, {}, frozen)

    def code(frozen, images):
        def encode(x):
            return tokenizer.apply(frozen["tokenizer"], x, method="get_code")

        return in_chunks(encode, images, config.encode_chunk) if config.encode_chunk else encode(images)

    def soft(frozen, images, key):
        drawn = key if config.soft_code.stochastic else None
        return tokenizer.apply(frozen["tokenizer"], images, config.soft_code.temperature, drawn, method="get_soft_code")

    def loss(variables, batch, key):
        key_code, key_mask, key_drop, key_net = jax.random.split(key, 4)
        if config.soft_code:
            targets, tokens = soft(variables.frozen, batch["image"], key_code)
        else:
            tokens = code(variables.frozen, batch["image"])
        seen = masked_tokens.mask_tokens(key_mask, tokens, schedule, masking, **codes)
        conditions = net.dropped(key_drop, net.conditions(batch))
        logits = net.apply(variables.params, seen.inputs, conditions, key_net)[..., :codebook_size]
        if config.soft_code:
            costs = masked_tokens.soft_token_cross_entropy(logits, targets)
        else:
            costs = masked_tokens.token_cross_entropy(logits, tokens, label_smoothing=config.label_smoothing)
        total, weight = masked_tokens.weigh_tokens(costs, seen.weight)
        right = jnp.sum(seen.weight * (logits.argmax(-1) == tokens))
        # sums, divided by the weight of the whole batch
        metrics = {"weight": weight, "token_accuracy": right, "mask_rate": weight * seen.mask.mean()}
        return total, (variables.state, metrics)

    def evaluate(variables, batch, key):
        tokens = code(variables.frozen, batch["image"])
        seen = masked_tokens.mask_tokens(key, tokens, schedule, masking_eval, **codes)
        logits = net.apply(variables.params, seen.inputs, net.conditions(batch))[..., :codebook_size]
        return {
            "loss": masked_cross_entropy(logits, tokens, seen.mask),
            "token_accuracy": masked_accuracy(logits, tokens, seen.mask),
        }

    def filled(variables, key, tokens, conditions):
        """The images of tokens, of which the masked ones are decoded."""
        logits = logits_of(net, variables.params, conditions, guided)
        found = sample_tokens(key, logits, tokens, decoding, **codes)
        return jnp.clip(tokenizer.apply(variables.frozen["tokenizer"], found, method="decode_code"), 0, 1)

    def draw(variables, key, batch):
        if "image" not in batch:
            n = len(jax.tree.leaves(batch)[0])
            return filled(variables, key, jnp.full((n, *grid), net.mask_token), net.conditions(batch))
        hidden = token_mask(batch["mask"], tokenizer.reduction, threshold=LEAST_HIDDEN)
        tokens = jnp.where(hidden, net.mask_token, code(variables.frozen, batch["image"]))
        painted = filled(variables, key, tokens, net.conditions(batch))
        return composite(batch["image"], painted, batch["mask"])

    def sample(variables, key, n):
        return draw(variables, key, {"label": jnp.arange(n) % context.num_classes})

    def score(variables, train, test, key):
        samples = jax.jit(partial(sample, n=SCORED_AT_ONCE))
        classes = jnp.arange(SCORED_AT_ONCE) % context.num_classes if config.condition.name == "class" else None
        drawn = (
            (samples(variables, jax.random.fold_in(key, i)), classes)
            for i in range(-(-config.score.samples // SCORED_AT_ONCE))
        )
        real = ((batch["image"] for batch in split()) for split in (train, test))
        return judges.score(variables.frozen["classifier"], drawn, *real)

    def hide(key, tokens, mask):
        replaced = config.masking.noise == "random_replace"
        noise = jax.random.randint(key, tokens.shape, 0, codebook_size) if replaced else net.mask_token
        return jnp.where(mask, noise, tokens)

    def trace(variables, batch, key):
        """Images: real ones, what the tokenizer makes of them, their left halves, and these filled up. An analysis."""
        images, conditions = batch["image"], net.conditions(batch)
        key_fill, key_analysis = jax.random.split(key)
        tokens = code(variables.frozen, images)
        half = jnp.where(jnp.arange(grid[1]) < grid[1] // 2, tokens, net.mask_token)
        again = jnp.clip(tokenizer.apply(variables.frozen["tokenizer"], tokens, method="decode_code"), 0, 1)
        hidden = jnp.where(jnp.arange(images.shape[2])[:, None] < images.shape[2] // 2, images, 0.5)
        shown = jnp.concatenate([images, again, hidden, filled(variables, key_fill, half, conditions)])

        def predict(seen):
            return net.apply(variables.params, seen, conditions)[..., :codebook_size]

        return shown, mask_analysis.analyse(key_analysis, predict, tokens, hide)

    def draw_traced(traced):
        shown, analysis = traced
        return {"inpainting": pictures.grid(shown, len(shown) // 4), "predictions": mask_analysis.draw(analysis)}

    shown = Pictures(trace, draw_traced)
    return Task(init, loss, evaluate, sample, pictures=shown, draw=draw, score=score if judges else None)


def first(tree):
    """The first example of a batch of conditions."""
    return jax.tree.map(lambda leaf: leaf[:1], tree)
