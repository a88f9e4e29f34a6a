"""MaskGiT-UViT v2, diffusers' UVit2DModel: a transformer between convolutional blocks, conditioned on a text."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from jaxkit.errors import ConfigError, ShapeError
from jaxkit.models.masked.style_adapter import StyleAdapter
from jaxkit.models.masked.uvit_blocks import Layers, MapBlock, ModulatedLayer
from jaxkit.nn.attention import Attention
from jaxkit.nn.initializers import uniform_within
from jaxkit.nn.transformer import FeedForward, Modulation, exact_gelu, layer_norm, sinusoidal_embedding

_NORMAL = nn.initializers.normal(0.02)


class MaskGiTUViT(nn.Module):
    """Predicts the tokens of an image behind the mask, given a text (aMUSEd; Patil et al., 2024).

    The fields are those of open-muse's config.json. The mask is the last token. ``encoder_hidden_states`` are the
    text's, ``cond_embeds`` its pooled embedding, ``micro_conds`` five numbers: the image's width and height before it
    was cropped, the crop's top and left in pixels, its aesthetic score. Logits are float32, over ``codebook_size``
    tokens; fresh parameters make them 0. Depthwise convolutions alone tell positions apart.

    With ``force_down_up_sample`` the layers work at half the grid's height and width: aMUSEd 512. ``use_fused_mlp``
    feeds forward without the gate, by the tanh approximation of GELU. ``use_adapter`` adds StyleDrop's; of the same
    variables ``module.clone(use_adapter=False)`` passes it by. ``encoder_mask`` tells the tokens of the text from its
    padding; in the originals the padding is attended to.

    ``dtype`` is that of the arithmetic, ``remat`` computes the blocks' activations again in the backward pass,
    ``attention`` is :class:`~jaxkit.nn.attention.Attention`'s implementation.

    Raises ConfigError for several levels of ``block_out_channels``, which are version 1's, and ShapeError for
    micro-conditions or a grid that the fields have no place for.

    Source: open-muse, ``muse/modeling_transformer_v2.py``; Liu et al., "A ConvNet for the 2020s", CVPR 2022.
    """

    hidden_size: int = 1024
    use_bias: bool = False
    hidden_dropout: float = 0.0
    cond_embed_dim: int = 768
    micro_cond_encode_dim: int = 256
    micro_cond_embed_dim: int = 1280
    encoder_hidden_size: int = 768
    vocab_size: int = 8256
    codebook_size: int = 8192
    in_channels: int = 768
    block_out_channels: tuple[int, ...] = (768,)
    num_res_blocks: int = 3
    force_down_up_sample: bool = False
    block_num_heads: int = 12
    num_hidden_layers: int = 22
    num_attention_heads: int = 16
    attention_dropout: float = 0.0
    intermediate_size: int = 2816
    use_fused_mlp: bool = False
    norm_type: str = "rmsnorm"
    layer_norm_eps: float = 1e-6
    ln_elementwise_affine: bool = True
    use_adapter: bool = False
    adapter_proj_dim: int = 4
    is_adapter_shared: bool = True
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
        encoder_hidden_states: Float[Array, "b t {self.encoder_hidden_size}"],
        cond_embeds: Float[Array, "b {self.cond_embed_dim}"],
        micro_conds: Float[Array, "b m"],
        encoder_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b h w {self.codebook_size}"]:
        self._check(tokens, micro_conds)
        layers, (channels,) = self._layers, self.block_out_channels
        context = layers.norm(name="encoder_proj_layer_norm")(
            layers.dense(self.hidden_size, name="encoder_proj")(encoder_hidden_states)
        )
        condition = self._condition(cond_embeds, micro_conds)
        given = context, condition, encoder_mask, train

        embeddings = self._embeddings
        x = layers.norm(name="embed_layer_norm")(embeddings(tokens))
        x = layers.conv(channels, kernel_init=_xavier(0.02), name="embed_conv")(x)

        block = partial(MapBlock, layers, self.num_res_blocks, self.block_num_heads, self.remat)
        x = self._half_size(x) if self.force_down_up_sample else x
        x = block(name="down_block")(x, *given)
        x = self._transformer(x, given)
        x = block(name="up_block")(x, *given)
        x = self._double_size(x) if self.force_down_up_sample else x

        x = layers.conv(self.in_channels, kernel_init=nn.initializers.zeros, name="mlm_conv1")(x)
        x = layers.norm(name="mlm_layer_norm")(x)
        copied = embeddings.embedding[: self.codebook_size].T[None, None]
        x = layers.conv(self.codebook_size, kernel_init=lambda *_: copied, name="mlm_conv2")(x)
        return x.astype(jnp.float32)

    def _condition(self, cond_embeds, micro_conds) -> Float[Array, "b d"]:
        micro = sinusoidal_embedding(micro_conds, self.micro_cond_encode_dim)
        x = jnp.concatenate([cond_embeds.astype(jnp.float32), micro], axis=1)
        x = nn.silu(self._layers.dense(self.hidden_size, name="cond_embed_linear_1")(x))
        return self._layers.dense(self.hidden_size, name="cond_embed_linear_2")(x)

    def _transformer(self, x: Float[Array, "b h w c"], given: tuple) -> Float[Array, "b h w c"]:
        height, width, channels = x.shape[1:]
        x = rearrange(x, "b h w c -> b (h w) c")
        x = self._layers.norm(name="project_to_hidden_norm")(x)
        x = self._layers.dense(self.hidden_size, name="project_to_hidden")(x)

        layer = nn.remat(ModulatedLayer, static_argnums=(5,)) if self.remat else ModulatedLayer
        feed_forward = partial(
            FeedForward,
            self.intermediate_size,
            self._layers.dense,
            gated=not self.use_fused_mlp,
            activation=partial(nn.gelu, approximate=True) if self.use_fused_mlp else exact_gelu,
            dropout_rate=self.hidden_dropout,
        )
        pairs = [None] * self.num_hidden_layers
        if self.use_adapter:
            options = self.num_hidden_layers, self.adapter_proj_dim, self.is_adapter_shared, self.dtype
            pairs = list(zip(*StyleAdapter(*options, name="adapter")(self.hidden_size), strict=True))
        for i, pair in enumerate(pairs):
            name = f"transformer_layers_{i}"
            x = layer(self._layers, feed_forward, self.num_attention_heads, name=name)(x, *given, pair)

        x = self._layers.norm(name="project_from_hidden_norm")(x)
        x = self._layers.dense(channels, name="project_from_hidden")(x)
        return rearrange(x, "b (h w) c -> b h w c", h=height, w=width)

    def _half_size(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        x = self._layers.norm(name="downsample_norm")(x)
        return self._layers.conv(x.shape[-1], kernel_size=(2, 2), strides=2, padding=0, name="downsample_conv")(x)

    def _double_size(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        # torch's default, which open-muse leaves to transposed convolutions
        uniform = uniform_within(1 / np.sqrt(4 * x.shape[-1]))
        conv = partial(nn.ConvTranspose, strides=(2, 2), padding="VALID", transpose_kernel=True, dtype=self.dtype)
        x = self._layers.norm(name="upsample_norm")(x)
        initial = {"kernel_init": uniform, "bias_init": uniform}
        return conv(x.shape[-1], (2, 2), use_bias=self.use_bias, name="upsample_conv", **initial)(x)

    def _check(self, tokens, micro_conds) -> None:
        if len(self.block_out_channels) != 1:
            raise ConfigError(
                f"block_out_channels {list(self.block_out_channels)}: several levels are version 1's; give one"
            )
        if micro_conds.shape[1] * self.micro_cond_encode_dim != self.micro_cond_embed_dim:
            raise ShapeError(
                f"{micro_conds.shape[1]} micro-conditions of micro_cond_encode_dim {self.micro_cond_encode_dim} each "
                f"are not micro_cond_embed_dim {self.micro_cond_embed_dim}"
            )
        if self.force_down_up_sample and (tokens.shape[1] % 2 or tokens.shape[2] % 2):
            raise ShapeError(f"force_down_up_sample halves the grid: {tokens.shape[1]} x {tokens.shape[2]} is odd")

    @property
    def _embeddings(self) -> nn.Embed:
        normal = nn.initializers.normal(np.sqrt(1 / self.vocab_size))
        return nn.Embed(self.vocab_size, self.in_channels, embedding_init=normal, dtype=self.dtype, name="embeddings")

    @property
    def _layers(self) -> Layers:
        dense = partial(nn.Dense, use_bias=self.use_bias, kernel_init=_NORMAL, dtype=self.dtype)
        conv = partial(nn.Conv, kernel_size=(1, 1), use_bias=self.use_bias, kernel_init=_NORMAL, dtype=self.dtype)
        norm = partial(
            layer_norm,
            epsilon=self.layer_norm_eps,
            use_bias=self.use_bias,
            affine=self.ln_elementwise_affine,
            dtype=self.dtype,
        )
        attention = partial(
            Attention,
            use_bias=self.use_bias,
            dropout_rate=self.attention_dropout,
            kernel_init=_NORMAL,
            implementation=self.attention,
            dtype=self.dtype,
        )
        modulation = partial(Modulation, self.use_bias, self.dtype)
        # the norm before a feed-forward layer is a layer norm whatever norm_type is, as in open-muse
        return Layers(
            dense, conv, norm(self.norm_type), norm("layernorm"), attention, modulation, self.hidden_dropout, self.dtype
        )


def _xavier(gain: float) -> Callable:
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


uvit_tiny = partial(
    MaskGiTUViT,
    hidden_size=32,
    cond_embed_dim=10,
    micro_cond_encode_dim=8,
    micro_cond_embed_dim=40,
    encoder_hidden_size=12,
    vocab_size=72,
    codebook_size=64,
    in_channels=20,
    block_out_channels=(24,),
    num_res_blocks=1,
    block_num_heads=3,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=40,
)
