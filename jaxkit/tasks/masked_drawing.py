"""What a masked transformer draws: samples, images painted anew, pictures of how it treats real ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt8, UInt32

from jaxkit import pictures
from jaxkit.errors import ConfigError
from jaxkit.models.tokenizers.tokenizer import Tokenizer, in_chunks
from jaxkit.sampling.editing import composite, noise_tokens, outpaint, outpaint_windows, token_mask
from jaxkit.sampling.masked import sample_tokens
from jaxkit.schema.maskgit import MaskGit
from jaxkit.tasks import mask_analysis
from jaxkit.tasks.inputs import Encoding
from jaxkit.tasks.masked_network import Network, logits_of, sampler
from jaxkit.tasks.task import Context, Variables

# Samples of one call of the compiled sampler when they are scored.
SCORED_AT_ONCE = 100
# The share of a token's pixels from which on it is painted anew: any of them.
LEAST_HIDDEN = 1e-6
# What a batch may ask of an image, beside the image.
EDITS = ("mask", "strength", "outpaint")
SIDES = ("left", "right", "top", "bottom")
Key = PRNGKeyArray | UInt32[Array, "2"]
Batch = dict[str, Array]


@dataclass(frozen=True)
class Studio:
    """The parts of a ``maskgit`` task that images are drawn with."""

    config: MaskGit
    context: Context
    tokenizer: Tokenizer
    stage: Encoding
    net: Network
    grid: tuple[int, int]
    codebook_size: int

    def draw(self, variables: Variables, key: Key, batch: dict[str, Any]) -> Float[Array, "n h w c"]:
        """Draws images of what a batch asks for.

        Of an ``image`` one of three: it is painted anew where ``mask`` is 1; by ``strength``, a number, tokens of it
        are drawn again; or as many pixels as ``outpaint`` has, (left, right, top, bottom), are painted around it.
        The last two decide the program: under ``jax.jit`` they are closed over.

        Raises:
            ConfigError: for a strength without a step, or pixels that are no whole tokens.
        """
        encoded = self.stage.encode(variables.frozen, {name: part for name, part in batch.items() if name not in EDITS})
        conditions = self.net.conditions(encoded)
        if "image" not in batch:
            masked = jnp.full((len(jax.tree.leaves(batch)[0]), *self.grid), self.net.mask_token)
            return self._filled(variables, key, masked, conditions)
        tokens, image = encoded["tokens"], batch["image"]
        if "strength" in batch:
            return self._again(variables, key, tokens, conditions, batch["strength"])
        if "outpaint" in batch:
            return self._outpainted(variables, key, image, tokens, conditions, batch["outpaint"])
        hidden = token_mask(batch["mask"], self.tokenizer.reduction, threshold=LEAST_HIDDEN)
        tokens = jnp.where(hidden, self.net.mask_token, tokens)
        return composite(image, self._filled(variables, key, tokens, conditions), batch["mask"])

    def sample(self, variables: Variables, key: Key, n: int) -> Float[Array, "n h w c"]:
        """Draws ``n`` images to look at, of the classes or the prompts in turn."""
        condition, context = self.config.condition, self.context
        if condition.name != "text":
            return self.draw(variables, key, {"label": jnp.arange(n) % context.num_classes})
        found = [context.captions(text) for text in condition.prompts or ("",)]
        prompts = {name: jnp.stack([found[i % len(found)][name] for i in range(n)]) for name in found[0]}
        return self.draw(variables, key, prompts)

    def to_score(
        self, variables: Variables, test: Callable[[], Iterator[Batch]], key: Key
    ) -> Iterator[tuple[Float[Array, "n h w c"], Int[Array, " n"] | None]]:
        """Draws what is to be scored, with the classes asked for: all in turn, or by captions of the test split."""
        draw = jax.jit(self.draw)
        for number, (batch, classes) in enumerate(self._asked(test)):
            yield draw(variables, jax.random.fold_in(key, number), batch), classes

    def trace(
        self, variables: Variables, batch: Batch, key: Key
    ) -> tuple[Float[Array, "n h w c"], mask_analysis.Analysis]:
        """Real images, what the tokenizer makes of them, their left halves, and these filled up; an analysis."""
        encoded = self.stage.encode(variables.frozen, batch)
        tokens, conditions = encoded["tokens"], self.net.conditions(encoded)
        key_fill, key_analysis = jax.random.split(key)
        half = jnp.where(jnp.arange(self.grid[1]) < self.grid[1] // 2, tokens, self.net.mask_token)
        again = self._decoded(variables, tokens)
        images = batch.get("image", again)
        hidden = jnp.where(jnp.arange(images.shape[2])[:, None] < images.shape[2] // 2, images, 0.5)
        filled = self._filled(variables, key_fill, half, conditions)

        def predict(seen):
            return self.net.apply(variables, seen, conditions)[..., : self.codebook_size]

        analysis = mask_analysis.analyse(key_analysis, predict, tokens, self.hide)
        return jnp.concatenate([images, again, hidden, filled]), analysis

    def pictures(
        self, traced: tuple[Float[np.ndarray, "n h w c"], mask_analysis.Analysis]
    ) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
        """Draws what was traced."""
        images, analysis = traced
        return {"inpainting": pictures.grid(images, len(images) // 4), "predictions": mask_analysis.draw(analysis)}

    def hide(self, key: Key, tokens: Int[Array, "b h w"], mask: Bool[Array, "b h w"]) -> Int[Array, "b h w"]:
        """Puts the mask token, or random ones if the network is trained with such, where the mask is."""
        replaced = self.config.masking.noise == "random_replace"
        noise = jax.random.randint(key, tokens.shape, 0, self.codebook_size) if replaced else self.net.mask_token
        return jnp.where(mask, noise, tokens)

    def _asked(self, test: Callable[[], Iterator[Batch]]) -> Iterator[tuple[Batch, Array | None]]:
        left, kind = self.config.score.samples, self.config.condition.name
        if kind != "text":
            classes = jnp.arange(SCORED_AT_ONCE) % self.context.num_classes
            for _ in range(-(-left // SCORED_AT_ONCE)):
                yield {"label": classes}, classes if kind == "class" else None
            return
        while left > 0:
            for batch in test():
                # images with captions alone are all of class 0
                classes = batch["label"] if self.context.num_classes > 1 else None
                yield {name: part for name, part in batch.items() if name not in ("image", "label")}, classes
                left -= len(batch["label"])
                if left <= 0:
                    return

    def _again(
        self, variables: Variables, key: Key, tokens: Int[Array, "b h w"], conditions: PyTree, strength: float
    ) -> Float[Array, "b y x c"]:
        """The images of tokens, of which the last steps of the sampler have drawn some again."""
        plan = sampler(self.config.sampler)
        start, (key_noise, key_tokens) = plan.start(strength), jax.random.split(key)
        noised = noise_tokens(key_noise, tokens, plan, start=start, mask_token=self.net.mask_token)
        left = {"start": start, "total": tokens[0].size}
        return self._decoded(variables, self._sampled(variables, key_tokens, noised, conditions, **left))

    def _outpainted(
        self,
        variables: Variables,
        key: Key,
        image: Float[Array, "b y x c"],
        tokens: Int[Array, "b h w"],
        conditions: PyTree,
        margins: tuple[int, int, int, int],
    ) -> Float[Array, "b y2 x2 c"]:
        """Images with what surrounds them, filled up window by window, each of the network's grid."""
        side = self.tokenizer.reduction
        if any(margin % side for margin in margins):
            raise ConfigError(f"outpaint: {margins} are no whole tokens, of {side} pixels each")
        around = {name: margin // side for name, margin in zip(SIDES, margins, strict=True)}
        canvas = outpaint(tokens, mask_token=self.net.mask_token, **around)
        windows = jnp.asarray(outpaint_windows(tokens.shape[1:], **around))

        def fill(canvas, now):
            number, (top, left) = now
            seen = jax.lax.dynamic_slice(canvas, (0, top, left), tokens.shape)
            filled = self._sampled(variables, jax.random.fold_in(key, number), seen, conditions)
            return jax.lax.dynamic_update_slice(canvas, filled, (0, top, left)), None

        canvas, _ = jax.lax.scan(fill, canvas, (jnp.arange(len(windows)), windows))
        left, _, top, _ = margins
        return jax.lax.dynamic_update_slice(self._decoded(variables, canvas), image, (0, top, left, 0))

    def _filled(
        self, variables: Variables, key: Key, tokens: Int[Array, "b h w"], conditions: PyTree
    ) -> Float[Array, "b y x c"]:
        """The images of tokens, of which the masked ones are decoded."""
        return self._decoded(variables, self._sampled(variables, key, tokens, conditions))

    def _sampled(
        self,
        variables: Variables,
        key: Key,
        tokens: Int[Array, "b h w"],
        conditions: PyTree,
        start: int = 0,
        total: int | None = None,
    ) -> Int[Array, "b h w"]:
        logits = logits_of(self.net, variables, conditions, self.config.sampler.guidance)
        codes = {"codebook_size": self.codebook_size, "mask_token": self.net.mask_token}
        return sample_tokens(key, logits, tokens, sampler(self.config.sampler), start=start, total=total, **codes)

    def _decoded(self, variables: Variables, tokens: Int[Array, "b h w"]) -> Float[Array, "b y x c"]:
        def decoded(tokens):
            return jnp.clip(self.tokenizer.apply(variables.frozen["tokenizer"], tokens, method="decode_code"), 0, 1)

        chunk = self.config.encode_chunk
        return in_chunks(decoded, tokens, chunk) if chunk else decoded(tokens)
