"""Google's MaskGIT transformer: BERT over the tokens of an image and its class."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Int

from jaxkit.models.masked.tokens import flatten_tokens
from jaxkit.nn.attention import Attention
from jaxkit.nn.transformer import PositionEmbedding, layer_norm


class PostNormLayer(nn.Module):
    """Attention and feed-forward, each added to its input and normed after (Devlin et al., NAACL 2019)."""

    norm: Callable
    attention: Callable
    dense: Callable
    intermediate_size: int
    dropout_rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool) -> Float[Array, "b n d"]:
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        y = self.attention(name="attention")(x, train=train)
        x = self.norm(name="attention_norm")(x + dropout(y))

        y = nn.gelu(self.dense(self.intermediate_size, name="intermediate")(x), approximate=True)
        y = self.dense(x.shape[-1], name="output")(y)
        return self.norm(name="output_norm")(x + dropout(y))


class MaskGitBert(nn.Module):
    """Predicts the tokens of an image behind the mask, given its class (Chang et al., CVPR 2022).

    The fields are those of BERT's config.json, the defaults Google's for ImageNet at 256 x 256. The mask is the last
    token, which -1 means too, a class the token ``codebook_size + label``, put before the image's where there are
    labels. Logits are float32 over all ``vocab_size`` tokens, products with their embeddings. With ``type_vocab_size``
    the first type's embedding is added to every token's: transformers has it, Google has not.

    ``dtype`` is that of the arithmetic, ``remat`` computes the layers' activations again in the backward pass,
    ``attention`` is :class:`~jaxkit.nn.attention.Attention`'s implementation.

    Raises ShapeError for a grid that has more tokens than there are positions.

    Source: google-research/maskgit, ``nets/maskgit_transformer.py``.
    """

    vocab_size: int = 2025
    codebook_size: int = 1024
    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 257
    type_vocab_size: int = 0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    dtype: Dtype = jnp.float32
    remat: bool = False
    attention: Literal["xla", "cudnn"] | None = None

    @property
    def mask_token_id(self) -> int:
        """The token that stands for one to be predicted."""
        return self.vocab_size - 1

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b h w"], labels: Int[Array, " b"] | None = None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        normal = nn.initializers.truncated_normal(self.initializer_range)
        dense = partial(nn.Dense, kernel_init=normal, dtype=self.dtype)
        norm = layer_norm("layernorm", epsilon=self.layer_norm_eps, use_bias=True, dtype=self.dtype)
        embedding = partial(nn.Embed, features=self.hidden_size, embedding_init=normal, dtype=self.dtype)
        attention = partial(
            Attention,
            self.num_attention_heads,
            True,
            self.attention_probs_dropout_prob,
            normal,
            self.attention,
            self.dtype,
        )

        words = embedding(self.vocab_size, name="word_embeddings")
        x = words(flatten_tokens(tokens, None if labels is None else self.codebook_size + labels))
        x = PositionEmbedding(self.max_position_embeddings, normal, self.dtype, name="position_embeddings")(x)
        if self.type_vocab_size:
            x = x + embedding(self.type_vocab_size, name="token_type_embeddings")(jnp.zeros((1, 1), jnp.int32))
        x = norm(name="embeddings_norm")(x)
        x = nn.Dropout(self.hidden_dropout_prob, deterministic=not train)(x)

        layer = nn.remat(PostNormLayer, static_argnums=(2,)) if self.remat else PostNormLayer
        parts = norm, attention, dense, self.intermediate_size, self.hidden_dropout_prob
        for i in range(self.num_hidden_layers):
            x = layer(*parts, name=f"layers_{i}")(x, train)

        x = x if labels is None else x[:, 1:]
        x = norm(name="mlm_norm")(nn.gelu(dense(self.hidden_size, name="mlm_dense")(x), approximate=True))
        logits = words.attend(x).astype(jnp.float32)
        logits = logits + self.param("mlm_bias", nn.initializers.zeros, (self.vocab_size,), jnp.float32)
        return rearrange(logits, "b (h w) k -> b h w k", w=tokens.shape[2])


maskgit_bert_tiny = partial(
    MaskGitBert,
    vocab_size=71,
    codebook_size=64,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=17,
)
