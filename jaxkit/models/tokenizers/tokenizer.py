"""What all tokenizers of images have in common: five methods around an encoder, a codebook and a decoder."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32, Int, Int32, PyTree

from jaxkit.errors import ShapeError
from jaxkit.nn.quantizer import Key, straight_through


class Reconstruction(NamedTuple):
    """What a tokenizer makes of images in training."""

    images: Float32[Array, "b h w c"]
    """Not clipped. Their gradient passes the codebook straight through."""
    latents: Float32[Array, "b h2 w2 d"]
    """What the encoder gives the quantizer."""
    quantized: Float32[Array, "b h2 w2 d"]
    """The codes nearest to them; the gradient is the codebook's."""
    tokens: Int32[Array, "b h2 w2"]
    affinity: Float32[Array, "b h2 w2 k"]
    """See :func:`jaxkit.nn.quantizer.affinity`."""


class Tokenizer(nn.Module):
    """Images [b h w c] in [0, 1] to tokens [b h2 w2] on a grid of any shape, row by row, and back.

    A kind has ``quantize``, a :class:`jaxkit.nn.quantizer.VectorQuantizer`; ``latents``, from images to the vectors to
    quantize; ``reconstruct``, from codes to images; ``reduction``, the pixels along a token's side; and
    ``last_layer``, the path of the kernel that makes the images.

    ``dtype`` is that of the arithmetic; parameters, distances and what comes out are float32. ``codebook_decay``,
    ``revive_below`` and ``axis_name`` are those of the quantizer: by default the codebook is a parameter.
    """

    dtype: Dtype = jnp.float32
    codebook_decay: float | None = None
    revive_below: float = 0.0
    axis_name: str | None = None

    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Reconstruction:
        """Encodes and decodes images; in training a codebook of moving averages moves, if it is mutable."""
        z = self._encoded(x, train)
        tokens = self.quantize(z)
        z_q = self.quantize.lookup(tokens)
        images = self.reconstruct(straight_through(z, z_q), train)
        found = Reconstruction(images, z, z_q, tokens, self.quantize.affinity(z))
        if train and not self.is_initializing():
            self.quantize.update(z, tokens)
        return found

    def encode(self, x: Float[Array, "b h w c"]) -> tuple[Float32[Array, "b h2 w2 d"], Int32[Array, "b h2 w2"]]:
        """Encodes images to codes and their tokens.

        Raises ShapeError for images whose sides are no multiples of ``reduction``.
        """
        tokens = self.get_code(x)
        return self.quantize.lookup(tokens), tokens

    def decode(self, z_q: Float[Array, "b h2 w2 d"]) -> Float32[Array, "b h w c"]:
        """Decodes codes, as ``encode`` gives them, to images; values may leave [0, 1]."""
        return self.reconstruct(z_q)

    def decode_code(self, tokens: Int[Array, "b h2 w2"]) -> Float32[Array, "b h w c"]:
        """Decodes tokens to images; values may leave [0, 1]. A token beyond the codebook gives NaN."""
        return self.reconstruct(self.quantize.lookup(tokens))

    def get_code(self, x: Float[Array, "b h w c"]) -> Int32[Array, "b h2 w2"]:
        """Encodes images to tokens. Raises ShapeError as ``encode`` does."""
        return self.quantize(self._encoded(x))

    def get_soft_code(
        self, x: Float[Array, "b h w c"], temperature: float = 1.0, key: Key | None = None
    ) -> tuple[Float32[Array, "b h2 w2 k"], Int32[Array, "b h2 w2"]]:
        """Encodes images to distributions over the codes, and tokens; see :func:`jaxkit.nn.quantizer.soft_code`.

        Raises ShapeError as ``encode`` does.
        """
        return self.quantize.soft(self._encoded(x), temperature, key)

    def _encoded(self, x: Float[Array, "b h w c"], train: bool = False) -> Float32[Array, "b h2 w2 d"]:
        height, width = x.shape[1:3]
        if height % self.reduction or width % self.reduction:
            raise ShapeError(
                f"images of {height} x {width} pixels cannot be cut into tokens of {self.reduction} x "
                f"{self.reduction}: give sides that are multiples of {self.reduction}"
            )
        return self.latents(x, train)


def in_chunks(f: Callable[[PyTree], PyTree], x: PyTree, n: int) -> PyTree:
    """Applies ``f`` to at most ``n`` examples at once, one chunk after the other, so that memory holds one chunk's.

    ``f`` maps arrays with a leading axis of examples to such arrays, each example on its own: a tokenizer's
    ``get_code`` or ``decode_code``. The result is that of ``f(x)``.
    """
    examples = len(jax.tree.leaves(x)[0])
    whole = examples // n * n
    if whole == 0 or examples == n:
        return f(x)
    chunks = jax.tree.map(lambda leaf: rearrange(leaf[:whole], "(m n) ... -> m n ...", n=n), x)
    done = jax.tree.map(lambda leaf: rearrange(leaf, "m n ... -> (m n) ..."), jax.lax.map(f, chunks))
    if whole == examples:
        return done
    rest = f(jax.tree.map(lambda leaf: leaf[whole:], x))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), done, rest)
