"""open-muse's MaskGitTransformer: pre-norm layers over the tokens of an image, with class or text conditions."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from jaxkit.errors import ConfigError
from jaxkit.models.masked.tokens import flatten_tokens, patches, unpatched
from jaxkit.nn.attention import Attention
from jaxkit.nn.layers import Conv
from jaxkit.nn.transformer import FeedForward, PositionEmbedding, exact_gelu, layer_norm

# open-muse fixes it, whatever max_position_embeddings says
_PATCH_POSITIONS = 256


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention where there is a context, feed-forward; each normed before, and added.

    The functions build the layers. With ``use_normformer`` what attention gives is normed, too.
    """

    norm: Callable
    attention: Callable
    feed_forward: Callable
    mlp_norm: Callable
    use_normformer: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b t e"] | None,
        mask: Bool[Array, "b t"] | None,
        train: bool,
    ) -> Float[Array, "b n d"]:
        y = self.attention(name="attention")(self.norm(name="attn_layer_norm")(x), train=train)
        x = x + (self.norm(name="post_attn_layer_norm")(y) if self.use_normformer else y)

        if context is not None:
            y = self.norm(name="crossattn_layer_norm")(x)
            y = self.attention(name="crossattention")(y, context, mask, train)
            x = x + (self.norm(name="post_crossattn_layer_norm")(y) if self.use_normformer else y)

        y = self.mlp_norm(name="pre_mlp_layer_norm")(x)
        return x + self.feed_forward(name="ffn")(y, train)


class MaskGitTransformer(nn.Module):
    """Predicts the tokens of an image behind the mask (Chang et al., CVPR 2022; Chang et al., ICML 2023).

    The fields are those of open-muse's config.json; ``num_vq_tokens``, the tokens of an image it is sampled at, is
    handed on to it. The mask is the last token, a class the token ``codebook_size + label``, put before the image's.
    Logits are float32, over ``vocab_size`` tokens, or ``codebook_size`` with ``use_codebook_size_for_output``.

    ``encoder_mask`` tells the tokens of a text from its padding; in open-muse the padding is attended to.
    ``dtype`` is that of the arithmetic, ``remat`` computes the layers' activations again in the backward pass,
    ``attention`` is :class:`~jaxkit.nn.attention.Attention`'s implementation.

    Raises ConfigError where the input's conditions are not those of the fields, and ShapeError for a grid that has
    more tokens than there are positions.

    Source: open-muse, ``muse/modeling_transformer.py``.
    """

    vocab_size: int
    hidden_size: int = 768
    embedding_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    max_position_embeddings: int = 256
    add_cross_attention: bool = False
    encoder_hidden_size: int = 1024
    project_encoder_hidden_states: bool = False
    initializer_range: float = 0.02
    norm_type: str = "layernorm"
    layer_norm_eps: float = 1e-5
    use_normformer: bool = True
    use_encoder_layernorm: bool = True
    use_mlm_layer: bool = True
    use_mlm_layernorm: bool = True
    use_bias: bool = False
    codebook_size: int = 1024
    num_vq_tokens: int = 256
    num_classes: int | None = None
    use_codebook_size_for_output: bool = False
    use_conv_in_out: bool = False
    patch_size: int = 1
    dtype: Dtype = jnp.float32
    remat: bool = False
    attention: Literal["xla", "cudnn"] | None = None

    @property
    def mask_token_id(self) -> int:
        """The token that stands for one to be predicted."""
        return self.vocab_size - 1

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "b h w"],
        encoder_hidden_states: Float[Array, "b t e"] | None = None,
        labels: Int[Array, " b"] | None = None,
        encoder_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b h w k"]:
        self._check(encoder_hidden_states, labels)
        x = self._embed_patches(tokens) if self.use_conv_in_out else self._embed(tokens, labels, train)
        context = self._context(encoder_hidden_states)

        layer = nn.remat(TransformerLayer, static_argnums=(4,)) if self.remat else TransformerLayer
        parts = self._norm, self._attention, self._feed_forward, self._mlp_norm
        for i in range(self.num_hidden_layers):
            name = f"transformer_layers_{i}"
            x = layer(*parts, self.use_normformer, name=name)(x, context, encoder_mask, train)

        if self.use_encoder_layernorm:
            x = self._norm(name="encoder_layer_norm")(x)
        x = x if labels is None else x[:, 1:]
        x = rearrange(x, "b (h w) d -> b h w d", w=tokens.shape[2] // self.patch_size)
        return self._logits(x).astype(jnp.float32)

    def _embed(self, tokens, labels, train: bool) -> Float[Array, "b n d"]:
        classes = None if labels is None else self.codebook_size + labels
        x = self._embedding(self.vocab_size, self.hidden_size, name="word_embeddings")(flatten_tokens(tokens, classes))
        x = self._positions(self.max_position_embeddings, name="position_embeddings")(x)
        return nn.Dropout(self.hidden_dropout, deterministic=not train)(x)

    def _embed_patches(self, tokens) -> Float[Array, "b n d"]:
        x = self._embedding(self.vocab_size, self._inner, name="embeddings")(tokens)
        x = patches(self._norm(name="embed_layer_norm")(x), self.patch_size)
        x = self._conv(self.hidden_size, name="embed_conv")(x)
        x = rearrange(x, "b h w d -> b (h w) d")
        return self._positions(_PATCH_POSITIONS, name="position_embeddings")(x)

    def _context(self, encoder_hidden_states) -> Float[Array, "b t e"] | None:
        if not self.project_encoder_hidden_states:
            return encoder_hidden_states
        # open-muse makes the projection for networks without cross-attention, too, where nothing reads it
        states = jnp.zeros((1, 1, self.encoder_hidden_size)) if encoder_hidden_states is None else encoder_hidden_states
        projected = self._dense(self.hidden_size, name="encoder_proj")(states)
        projected = self._norm(name="encoder_proj_layer_norm")(projected)
        return projected if self.add_cross_attention else None

    def _logits(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 k"]:
        size = self.codebook_size if self.use_codebook_size_for_output else self.vocab_size
        if not self.use_mlm_layer:
            return self._dense(size, name="to_logits")(x)
        if self.use_conv_in_out:
            x = unpatched(self._conv(self._inner * self.patch_size**2, name="mlm_conv1")(x), self.patch_size)
            return self._conv(size, name="mlm_conv2")(self._norm(name="mlm_layer_norm")(x))
        x = exact_gelu(self._dense(self.hidden_size, name="mlm_dense")(x))
        x = self._norm(name="mlm_ln")(x) if self.use_mlm_layernorm else x
        return self._dense(size, name="mlm_to_logits")(x)

    def _check(self, encoder_hidden_states, labels) -> None:
        for given, wanted, what in (
            (encoder_hidden_states is not None, self.add_cross_attention, "encoder_hidden_states and cross-attention"),
            (labels is not None, self.num_classes is not None, "labels and num_classes"),
        ):
            if given != wanted:
                raise ConfigError(f"{what} come together: the {'second' if given else 'first'} is missing")
        if self.embedding_size is not None and not self.use_conv_in_out:
            raise ConfigError("embedding_size is that of use_conv_in_out; without it embeddings have hidden_size")
        if self.use_conv_in_out and labels is not None:
            raise ConfigError("use_conv_in_out works on a grid, in which a class token has no place")
        if self.patch_size > 1 and not (self.use_conv_in_out and self.use_mlm_layer):
            raise ConfigError("patch_size above 1 needs use_conv_in_out and use_mlm_layer, which cut and join patches")

    @property
    def _inner(self) -> int:
        return self.embedding_size or self.hidden_size

    @property
    def _normal(self) -> Callable:
        return nn.initializers.normal(self.initializer_range)

    @property
    def _norm(self) -> Callable:
        return layer_norm(self.norm_type, epsilon=self.layer_norm_eps, use_bias=self.use_bias, dtype=self.dtype)

    @property
    def _mlp_norm(self) -> Callable:
        # a layer norm whatever norm_type is, as in open-muse
        return layer_norm("layernorm", epsilon=self.layer_norm_eps, use_bias=self.use_bias, dtype=self.dtype)

    @property
    def _dense(self) -> Callable:
        return partial(nn.Dense, use_bias=self.use_bias, kernel_init=self._normal, dtype=self.dtype)

    @property
    def _conv(self) -> Callable:
        return partial(Conv, kernel_size=(1, 1), use_bias=self.use_bias, dtype=self.dtype)

    @property
    def _embedding(self) -> Callable:
        return partial(nn.Embed, embedding_init=self._normal, dtype=self.dtype)

    @property
    def _positions(self) -> Callable:
        return partial(PositionEmbedding, embedding_init=self._normal, dtype=self.dtype)

    @property
    def _attention(self) -> Callable:
        return partial(
            Attention,
            self.num_attention_heads,
            self.use_bias,
            self.attention_dropout,
            self._normal,
            implementation=self.attention,
            dtype=self.dtype,
        )

    @property
    def _feed_forward(self) -> Callable:
        norm = self._norm if self.use_normformer else None
        return partial(FeedForward, self.intermediate_size, self._dense, norm, dropout_rate=self.hidden_dropout)


maskgit_transformer_tiny = partial(
    MaskGitTransformer,
    vocab_size=72,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    max_position_embeddings=16,
    codebook_size=64,
    num_vq_tokens=16,
)
