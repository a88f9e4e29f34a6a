"""What a tokenizer in training costs: what its images have lost, how far its latents are from codes, what a judge says.

Source: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021, section 3.1.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from jaxkit.errors import ConfigError
from jaxkit.losses import adversarial
from jaxkit.losses import vector_quantization as vq
from jaxkit.models.tokenizers.tokenizer import Reconstruction, Tokenizer
from jaxkit.schema import tokenizer as schema
from jaxkit.tasks.judges import FrozenClassifier
from jaxkit.tasks.task import Context, Variables

JUDGES = {
    "hinge": (adversarial.hinge_discriminator, adversarial.hinge_generator),
    "non_saturating": (adversarial.non_saturating_discriminator, adversarial.non_saturating_generator),
}


@dataclass(frozen=True)
class TokenizerLosses:
    """The terms of a ``tokenizer`` task's loss, each a mean over the batch.

    Parameters: ``tokenizer`` and, with a judge, ``discriminator``. Frozen: the ``classifier``. State: the
    ``tokenizer``'s collections, and ``pieces``, the parts of batches seen so far.
    """

    config: schema.Tokenizer
    context: Context
    model: Tokenizer
    judge: nn.Module | None
    classifier: FrozenClassifier | None

    def difference(
        self, variables: Variables, images: Float[Array, "b h w c"], made: Float[Array, "b h w c"]
    ) -> Float[Array, ""]:
        """What images have lost: in pixels, and in features of the classifier."""
        config = self.config
        total = config.l1 * jnp.abs(made - images).mean() + config.l2 * jnp.square(made - images).mean()
        if self.classifier:
            weights = variables.frozen["classifier"]
            sides = [self.classifier.apply(weights, side)[1] for side in (images, made)]
            apart = [_apart(*(side[name] for side in sides)) for name in config.perceptual.features]
            total += config.perceptual.weight * sum(apart)
        return total

    def quantization(self, found: Reconstruction) -> Float[Array, ""]:
        """What latents and codes cost that are apart, and codes that are not used."""
        config = self.config
        if config.model.codebook_decay is None:
            rates = {"beta": config.commitment, "parity": config.parity}
            total = vq.vector_quantization(found.latents, found.quantized, **rates).mean()
        else:
            total = config.commitment * vq.commitment(found.latents, found.quantized).mean()
        if config.entropy:
            how = {"temperature": config.entropy.temperature, "axis_name": self.context.mapped_axis}
            total += config.entropy.weight * vq.codebook_entropy(found.affinity, **how).mean()
        return total

    def adversaries(
        self, variables: Variables, images: Float[Array, "b h w c"], found: Reconstruction
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss of the tokenizer by its judge plus the judge's own, and metrics. Neither moves the other."""
        config, params = self.config.adversarial, variables.params["discriminator"]
        judging, opinion_of = JUDGES[config.loss]

        def opinion(made):
            return opinion_of(self.judge.apply({"params": jax.lax.stop_gradient(params)}, made)).mean()

        def judged(x):
            return self.judge.apply({"params": params}, x)

        own = judging(judged(images), judged(jax.lax.stop_gradient(found.images))).mean()
        if config.r1:
            own += config.r1 * adversarial.r1_penalty(judged, images).mean()
        weight = config.weight
        if config.adaptive:
            weight *= self._adaptive_weight(variables, images, found, opinion)
        updates = variables.state["pieces"] // self.context.pieces
        metrics = {"discriminator": own, "opinion": opinion(found.images), "opinion_weight": weight}
        return (updates >= config.start) * (weight * metrics["opinion"] + own), metrics

    def _adaptive_weight(
        self, variables: Variables, images: Float[Array, "b h w c"], found: Reconstruction, opinion: Any
    ) -> Float[Array, ""]:
        """The ratio of both losses' gradients at the decoder's last layer."""
        path, z_q = ("tokenizer", *self.model.last_layer), jax.lax.stop_gradient(found.quantized)

        def decoded(kernel):
            params = _with(variables.params, path, kernel)["tokenizer"]
            return self.model.apply({"params": params, **variables.state["tokenizer"]}, z_q, method="reconstruct")

        return adversarial.adaptive_weight(
            decoded,
            reduce(lambda tree, name: tree[name], path, variables.params),
            lambda made: self.difference(variables, images, made),
            opinion,
            axis_name=self.context.mapped_axis,
        )

    def require_features(self, weights: PyTree, images: Float[Array, "b h w c"]) -> None:
        """Checks that the classifier has the features asked for.

        Raises:
            ConfigError: naming those it has.
        """
        _, features = jax.eval_shape(self.classifier.apply, weights, images)
        stray = [name for name in self.config.perceptual.features if name not in features]
        if stray:
            raise ConfigError(
                f"task.perceptual.features: the classifier has no {', '.join(stray)}; it has {', '.join(features)}"
            )


def _apart(x: Float[Array, "b *n c"], y: Float[Array, "b *n c"]) -> Float[Array, ""]:
    """The mean squared distance of features, each scaled to length 1, as in LPIPS (Zhang et al., CVPR 2018, eq. 1)."""
    x, y = (side / jnp.sqrt(jnp.square(side).sum(-1, keepdims=True) + 1e-10) for side in (x, y))
    return jnp.square(x - y).sum(-1).mean()


def _with(tree: dict, path: tuple[str, ...], leaf: Array) -> dict:
    """The tree with another leaf at ``path``."""
    name, *rest = path
    return {**tree, name: _with(tree[name], tuple(rest), leaf) if rest else leaf}
