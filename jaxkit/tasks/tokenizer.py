"""Tokenizers of images: an autoencoder whose latents are codes of a codebook, and a judge of its images.

Source: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021, section 3.1.
"""

from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkit.errors import ConfigError
from jaxkit.losses import adversarial
from jaxkit.losses import vector_quantization as vq
from jaxkit.models.discriminator import PatchDiscriminator
from jaxkit.schema.tokenizer import Tokenizer
from jaxkit.tasks.classifier import build as build_classifier
from jaxkit.tasks.classifier import shapes, warm_start
from jaxkit.tasks.image_tokens import build, require_channels
from jaxkit.tasks.task import Context, Task, Variables

JUDGES = {
    "hinge": (adversarial.hinge_discriminator, adversarial.hinge_generator),
    "non_saturating": (adversarial.non_saturating_discriminator, adversarial.non_saturating_generator),
}


def make(config: Tokenizer, context: Context) -> Task:
    """Makes the task that minimises the difference between images and what a tokenizer makes of them.

    Batches hold ``image [b h w c]`` in [0, 1]. Parameters: ``tokenizer``, and ``discriminator`` where there is one;
    neither has a gradient by the other's loss. State: the ``tokenizer``'s other collections, and the number of
    ``steps``. Evaluation: ``mse``, ``l1`` and ``psnr`` (dB) of images clipped to [0, 1].
    """
    model = build(config.model, context)
    judge = config.adversarial and PatchDiscriminator(
        config.adversarial.channels, config.adversarial.layers, dtype=context.dtype
    )
    judging, opinion_of = JUDGES[config.adversarial.loss] if judge else (None, None)
    classifier = config.perceptual and build_classifier(config.perceptual.classifier.model, context)

    def init(key, batch):
        images = batch["image"]
        require_channels(model, images)
        key_model, key_judge = jax.random.split(key)
        collections = dict(jax.jit(model.init)(key_model, images))
        params = {"tokenizer": collections.pop("params")}
        if judge:
            params["discriminator"] = jax.jit(judge.init)(key_judge, images)["params"]
        frozen = {}
        if classifier:
            frozen = context.load_weights(config.perceptual.classifier, shapes(classifier, key, images))
            _require_features(classifier, frozen, images, config.perceptual.features)
        return Variables(params, {"tokenizer": collections, "steps": jnp.int32(0)}, frozen)

    def difference(variables, images, made):
        """What images have lost."""
        total = config.l1 * jnp.abs(made - images).mean() + config.l2 * jnp.square(made - images).mean()
        if classifier:
            weights = {"params": variables.frozen["params"], **variables.frozen["state"]}
            sides = [classifier.apply(weights, side)[1] for side in (images, made)]
            apart = [_apart(*(side[name] for side in sides)) for name in config.perceptual.features]
            total += config.perceptual.weight * sum(apart)
        return total

    def quantization(found):
        """What latents and codes cost that are apart, and codes that are not used."""
        if config.model.codebook_decay is None:
            rates = {"beta": config.commitment, "parity": config.parity}
            total = vq.vector_quantization(found.latents, found.quantized, **rates).mean()
        else:
            total = config.commitment * vq.commitment(found.latents, found.quantized).mean()
        if config.entropy:
            how = {"temperature": config.entropy.temperature, "axis_name": context.mapped_axis}
            total += config.entropy.weight * vq.codebook_entropy(found.affinity, **how).mean()
        return total

    def adversaries(variables, images, found):
        """The loss of the tokenizer by its judge, and the judge's own, with metrics."""
        params = variables.params["discriminator"]

        def opinion(made):
            return opinion_of(judge.apply({"params": jax.lax.stop_gradient(params)}, made)).mean()

        def judged(x):
            return judge.apply({"params": params}, x)

        own = judging(judged(images), judged(jax.lax.stop_gradient(found.images))).mean()
        if config.adversarial.r1:
            own += config.adversarial.r1 * adversarial.r1_penalty(judged, images).mean()
        weight = config.adversarial.weight
        if config.adversarial.adaptive:
            path = ("tokenizer", *model.last_layer)
            weight *= adversarial.adaptive_weight(
                lambda kernel: decoded(variables, _with(variables.params, path, kernel), found.quantized),
                reduce(lambda tree, name: tree[name], path, variables.params),
                lambda made: difference(variables, images, made),
                opinion,
                axis_name=context.mapped_axis,
            )
        on = variables.state["steps"] >= config.adversarial.start
        metrics = {"discriminator": own, "opinion": opinion(found.images), "opinion_weight": weight}
        return on * (weight * metrics["opinion"] + own), metrics

    def decoded(variables, params, z_q):
        whole = {"params": params["tokenizer"], **variables.state["tokenizer"]}
        return model.apply(whole, jax.lax.stop_gradient(z_q), method="reconstruct")

    def loss(variables, batch, key):
        images, collections = batch["image"], variables.state["tokenizer"]
        rngs = dict(zip(("dropout", "codebook"), jax.random.split(key), strict=True))
        weights = {"params": variables.params["tokenizer"], **collections}
        found, moved = model.apply(weights, images, train=True, mutable=list(collections), rngs=rngs)
        total = difference(variables, images, found.images) + quantization(found)
        counts = vq.code_counts(found.tokens, found.affinity.shape[-1])
        metrics = {
            "l1": jnp.abs(found.images - images).mean(),
            "usage": vq.usage(counts),
            "perplexity": vq.perplexity(counts),
        }
        if judge:
            value, more = adversaries(variables, images, found)
            total, metrics = total + value, metrics | more
        return total, ({"tokenizer": moved, "steps": variables.state["steps"] + 1}, metrics)

    def remade(variables, images):
        found = model.apply({"params": variables.params["tokenizer"], **variables.state["tokenizer"]}, images)
        return jnp.clip(found.images, 0, 1)

    def evaluate(variables, batch, key):
        apart = remade(variables, batch["image"]) - batch["image"]
        mse = jnp.square(apart).mean((1, 2, 3))
        psnr = -10 * jnp.log10(jnp.maximum(mse, 1e-10))
        return {"mse": mse, "l1": jnp.abs(apart).mean((1, 2, 3)), "psnr": psnr}

    warm = warm_start(config.model, "task.model", context, part="tokenizer")
    return Task(init, loss, evaluate, warm_start=warm)


def _apart(x: Float[Array, "b *n c"], y: Float[Array, "b *n c"]) -> Float[Array, ""]:
    """The mean squared distance of features, each scaled to length 1, as in LPIPS (Zhang et al., CVPR 2018, eq. 1)."""
    x, y = (side / jnp.sqrt(jnp.square(side).sum(-1, keepdims=True) + 1e-10) for side in (x, y))
    return jnp.square(x - y).sum(-1).mean()


def _with(tree: dict, path: tuple[str, ...], leaf: Array) -> dict:
    """The tree with another leaf at ``path``."""
    name, *rest = path
    return {**tree, name: _with(tree[name], tuple(rest), leaf) if rest else leaf}


def _require_features(classifier, frozen, images, names) -> None:
    _, features = jax.eval_shape(classifier.apply, {"params": frozen["params"], **frozen["state"]}, images)
    stray = [name for name in names if name not in features]
    if stray:
        raise ConfigError(
            f"task.perceptual.features: the classifier has no {', '.join(stray)}; it has {', '.join(features)}"
        )
