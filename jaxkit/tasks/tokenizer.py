"""Tokenizers of images: an autoencoder whose latents are codes of a codebook, and a judge of its images.

Source: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021, section 3.1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxkit import pictures
from jaxkit.losses import vector_quantization as vq
from jaxkit.models.discriminator import PatchDiscriminator
from jaxkit.schema.tokenizer import Tokenizer
from jaxkit.tasks.classifier import warm_start
from jaxkit.tasks.image_tokens import build, require_channels
from jaxkit.tasks.judges import frozen_classifier
from jaxkit.tasks.task import Context, Pictures, Task, Variables
from jaxkit.tasks.tokenizer_losses import TokenizerLosses


def make(config: Tokenizer, context: Context) -> Task:
    """Makes the task that minimises the difference between images and what a tokenizer makes of them.

    Batches hold ``image [b h w c]`` in [0, 1]. Parameters: ``tokenizer``, and ``discriminator`` where there is one;
    neither has a gradient by the other's loss. State: the ``tokenizer``'s other collections, and the number of
    ``pieces`` of batches seen. Evaluation: ``mse``, ``l1`` and ``psnr`` (dB) of images clipped to [0, 1].
    """
    model = build(config.model, context)
    judge = config.adversarial and PatchDiscriminator(
        config.adversarial.channels, config.adversarial.layers, dtype=context.dtype
    )
    classifier = config.perceptual and frozen_classifier(config.perceptual.classifier, context)
    losses = TokenizerLosses(config, context, model, judge, classifier)

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
            frozen["classifier"] = classifier.init(key, images)
            losses.require_features(frozen["classifier"], images)
        return Variables(params, {"tokenizer": collections, "pieces": jnp.int32(0)}, frozen)

    def loss(variables, batch, key):
        images, collections = batch["image"], variables.state["tokenizer"]
        rngs = dict(zip(("dropout", "codebook"), jax.random.split(key), strict=True))
        weights = {"params": variables.params["tokenizer"], **collections}
        found, moved = model.apply(weights, images, train=True, mutable=list(collections), rngs=rngs)
        total = losses.difference(variables, images, found.images) + losses.quantization(found)
        counts = vq.code_counts(found.tokens, found.affinity.shape[-1])
        metrics = {
            "l1": jnp.abs(found.images - images).mean(),
            "usage": vq.usage(counts),
            "perplexity": vq.perplexity(counts),
        }
        if judge:
            value, more = losses.adversaries(variables, images, found)
            total, metrics = total + value, metrics | more
        return total, ({"tokenizer": moved, "pieces": variables.state["pieces"] + 1}, metrics)

    def remade(variables, images):
        found = model.apply({"params": variables.params["tokenizer"], **variables.state["tokenizer"]}, images)
        return jnp.clip(found.images, 0, 1)

    def evaluate(variables, batch, key):
        return fidelity(remade(variables, batch["image"]), batch["image"])

    def trace(variables, batch, key):
        return jnp.concatenate([batch["image"], remade(variables, batch["image"])])

    warm = warm_start(config.model, "task.model", context, part="tokenizer")
    return Task(init, loss, evaluate, pictures=Pictures(trace, _above_each_other), warm_start=warm)


def fidelity(made: Float[Array, "b h w c"], images: Float[Array, "b h w c"]) -> dict[str, Float[Array, " b"]]:
    """How near images in [0, 1] are to what they were made from: ``mse``, ``l1`` and ``psnr``, in dB."""
    apart = made - images
    mse = jnp.square(apart).mean((1, 2, 3))
    psnr = -10 * jnp.log10(jnp.maximum(mse, 1e-10))
    return {"mse": mse, "l1": jnp.abs(apart).mean((1, 2, 3)), "psnr": psnr}


def _above_each_other(images: Float[np.ndarray, "n h w c"]) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
    return {"reconstructions": pictures.grid(images, len(images) // 2)}
