"""Vector quantization: the nearest code of a codebook, soft codes, and a codebook learned by moving averages.

Source: van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, section 3 and appendix A.1.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Int, Int32, PRNGKeyArray, UInt32

from jaxkit.nn.initializers import uniform_within

# Below this a moving average of a code's size says nothing of where the code is.
_SMALLEST = 1e-5
Key = PRNGKeyArray | UInt32[Array, "2"]


def affinity(z: Float[Array, "*b d"], codebook: Float[Array, "k d"]) -> Float32[Array, "*b k"]:
    """Takes ``2 z·e - ‖e‖²``, the negative squared distance to every code plus ``‖z‖²``, which is the same for all.

    Neither the nearest code nor a softmax over the codes sees that term, and float32 rounds less without it.
    """
    z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
    product = jnp.einsum("...d,kd->...k", z, codebook, precision=jax.lax.Precision.HIGHEST)
    return 2 * product - jnp.sum(jnp.square(codebook), axis=-1)


def nearest_code(z: Float[Array, "*b d"], codebook: Float[Array, "k d"]) -> Int32[Array, "*b"]:
    """Finds the code at the smallest squared distance; of several the first."""
    return jnp.argmax(affinity(z, codebook), axis=-1).astype(jnp.int32)


def soft_code(
    z: Float[Array, "*b d"], codebook: Float[Array, "k d"], temperature: float, key: Key | None = None
) -> tuple[Float32[Array, "*b k"], Int32[Array, "*b"]]:
    """Spreads every vector over the codes: ``softmax(-‖z - e‖² / temperature)``, and a token of each.

    The token is the nearest code, or, given a key, one drawn from that distribution.

    Source: Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022, section 3.2.3.
    """
    logits = affinity(z, codebook) / temperature
    tokens = jnp.argmax(logits, axis=-1) if key is None else jax.random.categorical(key, logits)
    return jax.nn.softmax(logits), tokens.astype(jnp.int32)


def straight_through(z: Float[Array, "*b d"], z_q: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Takes the value of ``z_q`` and the gradient of ``z`` (section 3.2)."""
    return z + jax.lax.stop_gradient(z_q - z)


class Averages(NamedTuple):
    """A codebook and the moving averages it is made of."""

    embedding: Float32[Array, "k d"]
    sizes: Float32[Array, " k"]
    """Vectors that a code is nearest to, a batch."""
    sums: Float32[Array, "k d"]
    """The sum of these vectors."""


def averaged(
    codebook: Averages,
    z: Float[Array, "*b d"],
    tokens: Int[Array, "*b"],
    *,
    decay: float,
    axis_name: str | None = None,
) -> Averages:
    """Moves every code towards the mean of the vectors it is nearest to.

    ``N ← γ N + (1 - γ) n``, ``m ← γ m + (1 - γ) Σ z`` and ``e = m / N``, with γ the ``decay``. A code that has not
    been used for so long that N vanishes stays where it is. Where each device sees a part of the batch, ``axis_name``
    is the mapped axis, and n and Σ z are those of the whole batch.

    Source: appendix A.1, equations 6 to 8.
    """
    z = jax.lax.stop_gradient(rearrange(z.astype(jnp.float32), "... d -> (...) d"))
    tokens = tokens.reshape(-1)
    counts, sums = jnp.zeros_like(codebook.sizes).at[tokens].add(1), jnp.zeros_like(codebook.sums).at[tokens].add(z)
    counts, sums = _total((counts, sums), axis_name)

    sizes = decay * codebook.sizes + (1 - decay) * counts
    sums = decay * codebook.sums + (1 - decay) * sums
    known = (sizes > _SMALLEST)[:, None]
    embedding = jnp.where(known, sums / jnp.maximum(sizes, _SMALLEST)[:, None], codebook.embedding)
    return Averages(embedding, sizes, sums)


def revived(
    codebook: Averages, z: Float[Array, "*b d"], key: Key, *, below: float, axis_name: str | None = None
) -> Averages:
    """Puts every code that is hardly used where a random vector of the batch lies.

    A fair share is the batch's vectors over the number of codes. A code of less than ``below`` fair shares is dead; a
    revived one gets a whole share, hence ``log(below) / log(decay)`` steps to prove itself. Where each device sees
    a part of the batch, the vectors are of all parts, and every device gets the same.

    Source: Dhariwal et al., "Jukebox", 2020, section 3 ("random restarts").
    """
    z = jax.lax.stop_gradient(rearrange(z.astype(jnp.float32), "... d -> (...) d"))
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    key_pick, key_device = jax.random.split(key)
    picks = z[jax.random.randint(key_pick, codebook.sizes.shape, 0, len(z))]
    vectors = len(z)
    if axis_name is not None:
        vectors *= jax.lax.axis_size(axis_name)
        luck = jax.random.uniform(key_device, codebook.sizes.shape)
        wins = (luck == jax.lax.pmax(luck, axis_name)).astype(jnp.float32)[:, None]
        picks, winners = _total((wins * picks, wins), axis_name)
        picks = picks / winners

    share = vectors / len(codebook.sizes)
    dead = codebook.sizes < below * share
    return Averages(
        jnp.where(dead[:, None], picks, codebook.embedding),
        jnp.where(dead, share, codebook.sizes),
        jnp.where(dead[:, None], share * picks, codebook.sums),
    )


class VectorQuantizer(nn.Module):
    """A codebook [k d], to look up tokens in and to find them by.

    With ``decay`` None it is the parameter ``embedding``, which a loss moves. With a ``decay`` it is the variable of
    that name in the collection ``codebook``, which :func:`averaged` moves whenever ``update`` is called, and
    :func:`revived` too where ``revive_below`` is above 0; that needs the rng ``codebook``.
    """

    num_embeddings: int
    embedding_dim: int
    decay: float | None = None
    revive_below: float = 0.0
    axis_name: str | None = None

    def setup(self):
        shape, draw = (self.num_embeddings, self.embedding_dim), uniform_within(1 / self.num_embeddings)
        if self.decay is None:
            self._embedding = self.param("embedding", draw, shape, jnp.float32)
            return
        embedding = self.variable("codebook", "embedding", lambda: draw(self.make_rng("params"), shape, jnp.float32))
        sizes = self.variable("codebook", "sizes", jnp.ones, shape[:1], jnp.float32)
        self._moving = embedding, sizes, self.variable("codebook", "sums", lambda: embedding.value)

    @property
    def embedding(self) -> Float32[Array, "k d"]:
        """The codebook."""
        return self._embedding if self.decay is None else self._moving[0].value

    def __call__(self, z: Float[Array, "*b d"]) -> Int32[Array, "*b"]:
        """Finds the token of every vector."""
        return nearest_code(z, self.embedding)

    def lookup(self, tokens: Int[Array, "*b"]) -> Float32[Array, "*b d"]:
        """Looks up the codes of tokens; one beyond the codebook gives NaN."""
        return jnp.take(self.embedding, tokens, axis=0, mode="fill", fill_value=jnp.nan)

    def affinity(self, z: Float[Array, "*b d"]) -> Float32[Array, "*b k"]:
        """Takes :func:`affinity` to the codebook."""
        return affinity(z, self.embedding)

    def soft(
        self, z: Float[Array, "*b d"], temperature: float, key: Key | None = None
    ) -> tuple[Float32[Array, "*b k"], Int32[Array, "*b"]]:
        """Takes :func:`soft_code` over the codebook."""
        return soft_code(z, self.embedding, temperature, key)

    def update(self, z: Float[Array, "*b d"], tokens: Int[Array, "*b"]) -> None:
        """Moves a codebook of moving averages by one batch; one that is a parameter stays."""
        if self.decay is None:
            return
        new = Averages(*(variable.value for variable in self._moving))
        new = averaged(new, z, tokens, decay=self.decay, axis_name=self.axis_name)
        if self.revive_below > 0:
            key = self.make_rng("codebook")
            new = revived(new, z, key, below=self.revive_below, axis_name=self.axis_name)
        for variable, value in zip(self._moving, new, strict=True):
            variable.value = value


def settled(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Makes every codebook of moving averages a parameter: variables for the same model without a ``decay``.

    What is frozen, converted or exported has its codebook there.
    """
    rest = {name: tree for name, tree in variables.items() if name != "codebook"}
    return {**rest, "params": _joined(variables["params"], variables.get("codebook", {}))}


def _joined(params: Mapping[str, Any], codebooks: Mapping[str, Any]) -> dict[str, Any]:
    joined = dict(params)
    for name, tree in codebooks.items():
        joined[name] = {"embedding": tree["embedding"]} if "embedding" in tree else _joined(params.get(name, {}), tree)
    return joined


def _total(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.tree.map(partial(jax.lax.psum, axis_name=axis_name), tree)
