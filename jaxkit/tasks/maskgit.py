"""Masked generative transformers: tokens of an image are masked, and predicted from the rest.

Source: Chang et al., "MaskGIT: Masked Generative Image Transformer", CVPR 2022, section 3.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxkit.errors import ConfigError
from jaxkit.losses import masked_tokens
from jaxkit.metrics.tokens import masked_accuracy, masked_cross_entropy
from jaxkit.sampling.schedules import MaskSchedule, mask_schedule
from jaxkit.schema.maskgit import MaskGit
from jaxkit.tasks import image_tokens
from jaxkit.tasks.classifier import warm_start
from jaxkit.tasks.inputs import encoding
from jaxkit.tasks.mask_analysis import masked_scores
from jaxkit.tasks.masked_drawing import Batch, Key, Studio
from jaxkit.tasks.masked_network import empty_condition, network, sampler
from jaxkit.tasks.sample_scores import judge
from jaxkit.tasks.task import Context, Pictures, Task, Variables


def make(config: MaskGit, context: Context) -> Task:
    """Makes the task that minimises the cross-entropy of masked tokens.

    Batches hold ``image [b h w c]`` in [0, 1] and ``label [b]``. Frozen: the ``tokenizer``, the ``classifier`` that
    scores samples, and the ``network`` that an adapter is trained beside. Loss and metrics are means over the masked
    tokens of the whole batch. Evaluation: ``loss`` and ``token_accuracy``, of each image's masked tokens, and of such
    at the shares of ``masking.metric_ratios``. Scores: ``fid`` and ``fid_train_vs_test`` in features of the classifier,
    and ``class_conditional_accuracy``.
    """
    tokenizer = image_tokens.build(config.tokenizer.model, context, frozen=True)
    codebook_size = image_tokens.codebook_size(config.tokenizer.model)
    grid = image_tokens.grid(tokenizer, context.image_shape)
    net = network(config, context, codebook_size, grid)
    judges = config.score and judge(config.score, context)
    sampler(config.sampler)  # what does not go together is said before anything is trained
    stage = encoding(config.tokenizer, getattr(config.condition, "encoder", None), context, config.encode_chunk)
    studio = Studio(config, context, tokenizer, stage, net, grid, codebook_size)
    lesson = Lesson(config, studio, mask_schedule(config.masking.schedule.name, config.masking.schedule.constants))

    def init(key, batch):
        key_stage, key_network, key_judge = jax.random.split(key, 3)
        frozen = stage.init(key_stage, batch)
        wanting = [name for name, part in (("score", judges), ("soft_code", config.soft_code)) if part]
        if wanting and "image" not in batch:
            raise ConfigError(f"task.{wanting[0]} needs images, and the data has but tokens: leave it out")
        if judges:
            frozen["classifier"] = judges.init(key_judge, jnp.zeros((1, *context.image_shape)))
        if getattr(config.condition, "dropout", 0.0):
            frozen["empty"] = empty_condition(net, config, context, partial(stage.encode, frozen))
        conditions = net.conditions(stage.encode(frozen, jax.tree.map(lambda leaf: leaf[:1], batch)))
        params, network_frozen = net.init(key_network, jnp.zeros((1, *grid), jnp.int32), conditions)
        return Variables(params, {}, frozen | network_frozen)

    def score(variables, train, test, key):
        samples = studio.to_score(variables, test, key)
        real = ((batch["image"] for batch in split()) for split in (train, test))
        return judges.score(variables.frozen["classifier"], samples, *real)

    return Task(
        init,
        lesson.loss,
        lesson.evaluate,
        studio.sample,
        pictures=Pictures(studio.trace, studio.pictures),
        draw=studio.draw,
        score=score if judges else None,
        warm_start=None if config.adapter else warm_start(config.model, "task.model", context),
        changes_images=True,
    )


@dataclass(frozen=True)
class Lesson:
    """What the network of a ``maskgit`` task is asked, and what its answers cost."""

    config: MaskGit
    studio: Studio
    schedule: MaskSchedule

    def loss(self, variables: Variables, batch: Batch, key: Key) -> tuple[Float[Array, ""], tuple[PyTree, Batch]]:
        """The cost of a batch's masked tokens and metrics, all sums, and ``weight``, that of the whole."""
        config, studio = self.config, self.studio
        key_code, key_mask, key_drop, key_net = jax.random.split(key, 4)
        if config.soft_code:
            batch = dict(batch)
            targets, batch["tokens"] = self._soft_code(variables.frozen, batch.pop("image"), key_code)
        batch = studio.stage.encode(variables.frozen, batch)
        tokens = batch["tokens"]
        seen = self._masked(key_mask, tokens)
        conditions = studio.net.dropped(key_drop, studio.net.conditions(batch), variables.frozen.get("empty"))
        logits = studio.net.apply(variables, seen.inputs, conditions, key_net)[..., : studio.codebook_size]
        if config.soft_code:
            costs = masked_tokens.soft_token_cross_entropy(logits, targets)
        else:
            costs = masked_tokens.token_cross_entropy(logits, tokens, label_smoothing=config.label_smoothing)
        total, weight = masked_tokens.weigh_tokens(costs, seen.weight)
        right = jnp.sum(seen.weight * (logits.argmax(-1) == tokens))
        # sums, divided by the weight of the whole batch
        metrics = {"weight": weight, "token_accuracy": right, "mask_rate": weight * seen.mask.mean()}
        return total, (variables.state, metrics)

    def evaluate(self, variables: Variables, batch: Batch, key: Key) -> dict[str, Float[Array, " b"]]:
        """Cross-entropy and accuracy of each image's masked tokens: by the schedule, and at given shares."""
        studio, masking = self.studio, self.config.masking
        batch = studio.stage.encode(variables.frozen, batch)
        tokens, conditions = batch["tokens"], studio.net.conditions(batch)

        def predicted(inputs):
            return studio.net.apply(variables, inputs, conditions)[..., : studio.codebook_size]

        seen = self._masked(key, tokens, masking.eval_ratios)
        logits = predicted(seen.inputs)
        found = {
            "loss": masked_cross_entropy(logits, tokens, seen.mask),
            "token_accuracy": masked_accuracy(logits, tokens, seen.mask),
        }
        if masking.metric_ratios is None:
            return found
        by_ratio = masked_scores(key, predicted, tokens, studio.hide, masking.metric_ratios)
        return found | {
            f"{name}_ratio_{ratio:g}": values[number]
            for name, values in zip(found, by_ratio, strict=True)
            for number, ratio in enumerate(masking.metric_ratios)
        }

    def _masked(
        self, key: Key, tokens: Int[Array, "b h w"], ratios: tuple[float, ...] | None = None
    ) -> masked_tokens.MaskedTokens:
        options = self.config.masking.model_dump(exclude={"schedule", "eval_ratios", "metric_ratios"})
        masking = masked_tokens.Masking(**options, ratios=ratios)
        codes = {"codebook_size": self.studio.codebook_size, "mask_token": self.studio.net.mask_token}
        return masked_tokens.mask_tokens(key, tokens, self.schedule, masking, **codes)

    def _soft_code(
        self, frozen: PyTree, images: Float[Array, "b y x c"], key: Key
    ) -> tuple[Float[Array, "b h w k"], Int[Array, "b h w"]]:
        how = self.config.soft_code
        drawn = key if how.stochastic else None
        return self.studio.tokenizer.apply(frozen["tokenizer"], images, how.temperature, drawn, method="get_soft_code")
