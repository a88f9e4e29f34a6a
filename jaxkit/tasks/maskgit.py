"""Masked generative transformers: tokens of an image are masked, and predicted from the rest.

Source: Chang et al., "MaskGIT: Masked Generative Image Transformer", CVPR 2022, section 3.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxkit import pictures
from jaxkit.errors import ConfigError
from jaxkit.losses import masked_tokens
from jaxkit.metrics.tokens import masked_accuracy, masked_cross_entropy
from jaxkit.sampling.editing import composite, token_mask
from jaxkit.sampling.masked import sample_tokens
from jaxkit.sampling.schedules import mask_schedule
from jaxkit.schema.maskgit import MaskGit
from jaxkit.schema.section import Section
from jaxkit.tasks import image_tokens, mask_analysis
from jaxkit.tasks.inputs import encoding
from jaxkit.tasks.masked_network import empty_condition, logits_of, network, sampler
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

    stage = encoding(config.tokenizer, getattr(config.condition, "encoder", None), context, config.encode_chunk)

    def init(key, batch):
        key_stage, key_network, key_judge = jax.random.split(key, 3)
        frozen = stage.init(key_stage, batch)
        if judges and "image" not in batch:
            raise ConfigError("task.score compares with images, and the data has but tokens: leave it out")
        if judges:
            frozen["classifier"] = judges.init(key_judge, jnp.zeros((1, *context.image_shape)))
        if getattr(config.condition, "dropout", 0.0):
            frozen["empty"] = empty_condition(net, config, context, partial(stage.encode, frozen))
        conditions = net.conditions(stage.encode(frozen, jax.tree.map(lambda leaf: leaf[:1], batch)))
        params = net.init(key_network, jnp.zeros((1, *grid), jnp.int32), conditions)
        return Variables(params, {}, frozen)

    def soft(frozen, images, key):
        drawn = key if config.soft_code.stochastic else None
        return tokenizer.apply(frozen["tokenizer"], images, config.soft_code.temperature, drawn, method="get_soft_code")

    def loss(variables, batch, key):
        key_code, key_mask, key_drop, key_net = jax.random.split(key, 4)
        if config.soft_code:
            targets, tokens = soft(variables.frozen, batch["image"], key_code)
        batch = stage.encode(variables.frozen, batch)
        tokens = tokens if config.soft_code else batch["tokens"]
        seen = masked_tokens.mask_tokens(key_mask, tokens, schedule, masking, **codes)
        conditions = net.dropped(key_drop, net.conditions(batch), variables.frozen.get("empty"))
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
        batch = stage.encode(variables.frozen, batch)
        tokens = batch["tokens"]
        seen = masked_tokens.mask_tokens(key, tokens, schedule, masking_eval, **codes)
        logits = net.apply(variables.params, seen.inputs, net.conditions(batch))[..., :codebook_size]
        return {
            "loss": masked_cross_entropy(logits, tokens, seen.mask),
            "token_accuracy": masked_accuracy(logits, tokens, seen.mask),
        }

    def filled(variables, key, tokens, conditions):
        """The images of tokens, of which the masked ones are decoded."""
        logits = logits_of(net, variables.params, conditions, variables.frozen["empty"] if guided else None)
        found = sample_tokens(key, logits, tokens, decoding, **codes)
        return jnp.clip(tokenizer.apply(variables.frozen["tokenizer"], found, method="decode_code"), 0, 1)

    def draw(variables, key, batch):
        encoded = stage.encode(variables.frozen, {name: part for name, part in batch.items() if name != "mask"})
        conditions = net.conditions(encoded)
        if "image" not in batch:
            n = len(jax.tree.leaves(batch)[0])
            return filled(variables, key, jnp.full((n, *grid), net.mask_token), conditions)
        hidden = token_mask(batch["mask"], tokenizer.reduction, threshold=LEAST_HIDDEN)
        painted = filled(variables, key, jnp.where(hidden, net.mask_token, encoded["tokens"]), conditions)
        return composite(batch["image"], painted, batch["mask"])

    def sample(variables, key, n):
        return draw(variables, key, examples(config.condition, context, n))

    def score(variables, train, test, key):
        drawn = jax.jit(draw)

        def samples():
            for i, (batch, classes) in enumerate(asked(config, context, test)):
                yield drawn(variables, jax.random.fold_in(key, i), batch), classes

        real = ((batch["image"] for batch in split()) for split in (train, test))
        return judges.score(variables.frozen["classifier"], samples(), *real)

    def hide(key, tokens, mask):
        replaced = config.masking.noise == "random_replace"
        noise = jax.random.randint(key, tokens.shape, 0, codebook_size) if replaced else net.mask_token
        return jnp.where(mask, noise, tokens)

    def trace(variables, batch, key):
        """Images: real ones, what the tokenizer makes of them, their left halves, and these filled up. An analysis."""
        encoded = stage.encode(variables.frozen, batch)
        tokens, conditions = encoded["tokens"], net.conditions(encoded)
        key_fill, key_analysis = jax.random.split(key)
        half = jnp.where(jnp.arange(grid[1]) < grid[1] // 2, tokens, net.mask_token)
        again = jnp.clip(tokenizer.apply(variables.frozen["tokenizer"], tokens, method="decode_code"), 0, 1)
        images = batch.get("image", again)
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


def examples(condition: Section, context: Context, n: int) -> dict[str, Array]:
    """What ``n`` samples to look at are drawn of: the classes or the prompts in turn."""
    if condition.name != "text":
        return {"label": jnp.arange(n) % context.num_classes}
    found = [context.captions(text) for text in condition.prompts or ("",)]
    return {name: jnp.stack([jnp.asarray(found[i % len(found)][name]) for i in range(n)]) for name in found[0]}


def asked(config: MaskGit, context: Context, test: Callable) -> Iterator[tuple[dict[str, Array], Array | None]]:
    """What samples to be scored are drawn of, and their classes: all in turn, or the captions of the test split."""
    left = config.score.samples
    if config.condition.name != "text":
        classes = {"label": jnp.arange(SCORED_AT_ONCE) % context.num_classes}
        for _ in range(-(-left // SCORED_AT_ONCE)):
            yield classes, classes["label"] if config.condition.name == "class" else None
        return
    while left > 0:
        for batch in test():
            yield {name: part for name, part in batch.items() if name not in ("image", "label")}, batch["label"]
            left -= len(batch["label"])
            if left <= 0:
                return
