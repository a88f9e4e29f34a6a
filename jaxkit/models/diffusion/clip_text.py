"""CLIP's text encoder, with the parameter names of transformers' FlaxCLIPTextModel, and with rows for new words."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Int

from jaxkit.errors import ShapeError
from jaxkit.models.diffusion.attention import FlatAttention
from jaxkit.models.diffusion.blocks import Remat, rematerialised
from jaxkit.nn.transformer import exact_gelu, layer_norm

ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": exact_gelu,
    "gelu_new": partial(nn.gelu, approximate=True),
}


# of freshly drawn embeddings
_DEVIATION = 0.02


class TextStates(NamedTuple):
    """What a text encoder makes of texts."""

    last: Float[Array, "b t d"]
    """After the last layer and the final norm: the context of Stable Diffusion 1 and 2."""
    penultimate: Float[Array, "b t d"]
    """Before the last layer, not normed: the context of Stable Diffusion XL."""
    pooled: Float[Array, "b p"]
    """The last state of one position, projected where the encoder has a projection."""


class Embeddings(nn.Module):
    """Looks up each token, in the table or behind its end in ``rows``, and adds its position.

    A token that neither has becomes not-a-numbers.
    """

    vocab_size: int
    width: int
    max_positions: int
    deviation: float
    dtype: Dtype

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b t"], rows: Float[Array, "n {self.width}"] | None
    ) -> Float[Array, "b t {self.width}"]:
        init = nn.initializers.normal(self.deviation)
        x = nn.Embed(self.vocab_size, self.width, embedding_init=init, dtype=self.dtype, name="token_embedding")(ids)
        if rows is not None:
            new = jnp.take(rows, ids - self.vocab_size, axis=0, mode="fill").astype(self.dtype)
            x = jnp.where((ids >= self.vocab_size)[..., None], new, x)
        if ids.shape[1] > self.max_positions:
            raise ShapeError(f"a text of {ids.shape[1]} tokens, but there are {self.max_positions} position embeddings")
        places = nn.Embed(
            self.max_positions, self.width, embedding_init=init, dtype=self.dtype, name="position_embedding"
        )
        return x + places(jnp.arange(ids.shape[1])[None])


class FeedForward(nn.Module):
    """Widens, activates, narrows; kernels are drawn with the deviations of the original."""

    features: int
    activation: str
    inner_deviation: float
    outer_deviation: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        inner, outer = nn.initializers.normal(self.inner_deviation), nn.initializers.normal(self.outer_deviation)
        y = nn.Dense(self.features, kernel_init=inner, dtype=self.dtype, name="fc1")(x)
        return nn.Dense(x.shape[-1], kernel_init=outer, dtype=self.dtype, name="fc2")(ACTIVATIONS[self.activation](y))


class Layer(nn.Module):
    """Causal self-attention, then a feed-forward layer; each normed before, and added."""

    num_heads: int
    features: int
    activation: str
    epsilon: float
    depth: int
    factor: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        width = x.shape[-1]
        outer = self.factor / math.sqrt(width * 2 * self.depth)
        dense = partial(nn.Dense, dtype=self.dtype)
        norm = layer_norm("layernorm", epsilon=self.epsilon, use_bias=True, dtype=self.dtype)
        attention = FlatAttention(
            self.num_heads,
            ("q_proj", "k_proj", "v_proj", "out_proj"),
            project=partial(dense, kernel_init=nn.initializers.normal(outer)),
            out=partial(dense, kernel_init=nn.initializers.normal(self.factor / math.sqrt(width))),
            causal=True,
            name="self_attn",
        )
        inner = self.factor / math.sqrt(2 * width)
        feed_forward = FeedForward(self.features, self.activation, inner, outer, self.dtype, name="mlp")

        x = x + attention(norm(name="layer_norm1")(x))
        return x + feed_forward(norm(name="layer_norm2")(x))


class LayerStack(nn.Module):
    """The layers by number; returns what goes into the last, and what comes out of it."""

    layer: Callable
    depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
        before = x
        for i in range(self.depth):
            before, x = x, self.layer(name=str(i))(x)
        return before, x


class Encoder(nn.Module):
    """Holds the layers, one level further down than they need be: their names are transformers'."""

    layer: Callable
    depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
        return LayerStack(self.layer, self.depth, name="layers")(x)


class TextTransformer(nn.Module):
    """Embeddings, layers and the final norm: the states before the last layer, and the normed ones behind it."""

    embeddings: Callable
    layer: Callable
    depth: int
    norm: Callable

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b t"], rows: Float[Array, "n d"] | None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
        x = self.embeddings(name="embeddings")(ids, rows)
        before, x = Encoder(self.layer, self.depth, name="encoder")(x)
        return before, self.norm(name="final_layer_norm")(x)


class ClipText(nn.Module):
    """CLIP's text encoder, of OpenAI or OpenCLIP, whose fields are those of a config.json of transformers.

    Tokens from ``vocab_size`` on are read from ``rows``: new words, which gradients reach through this argument alone.

    Pooled is the state of the first ``eos_token_id``; where that is None, of the largest token, as released configs
    (``eos_token_id`` 2) have it. That is the end of the text only as long as there are no new words.
    With ``with_projection`` it is multiplied to ``projection_dim``.

    Raises ShapeError for more tokens than ``max_position_embeddings``.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: Literal["quick_gelu", "gelu", "gelu_new"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    initializer_factor: float = 1.0
    eos_token_id: int | None = 49407
    with_projection: bool = False
    remat: Remat = "none"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b t"], rows: Float[Array, "n d"] | None = None) -> TextStates:
        width, factor = self.hidden_size, self.initializer_factor
        if rows is not None and rows.shape[1] != width:
            raise ShapeError(f"rows of {rows.shape[1]} numbers, but the text encoder's are {width} wide")
        before, last = TextTransformer(
            partial(Embeddings, self.vocab_size, width, self.max_position_embeddings, factor * _DEVIATION, self.dtype),
            partial(
                rematerialised(Layer, self.remat),
                self.num_attention_heads,
                self.intermediate_size,
                self.hidden_act,
                self.layer_norm_eps,
                self.num_hidden_layers,
                factor,
                self.dtype,
            ),
            self.num_hidden_layers,
            layer_norm("layernorm", epsilon=self.layer_norm_eps, use_bias=True, dtype=self.dtype),
            name="text_model",
        )(ids, rows)

        end = ids.argmax(-1) if self.eos_token_id is None else (ids == self.eos_token_id).argmax(-1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        if self.with_projection:
            init = nn.initializers.normal(factor / math.sqrt(width))
            project = nn.Dense(self.projection_dim, False, kernel_init=init, dtype=self.dtype, name="text_projection")
            pooled = project(pooled)
        return TextStates(*(states.astype(jnp.float32) for states in (last, before, pooled)))
