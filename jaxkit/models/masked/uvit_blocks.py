"""The blocks of MaskGiT-UViT: modulated convolutions with attention to the text, and modulated transformer layers."""

from collections.abc import Callable
from typing import NamedTuple

from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float

from jaxkit.models.masked.style_adapter import adapted
from jaxkit.nn.transformer import GlobalResponseNorm, exact_gelu


class Layers(NamedTuple):
    """What builds the layers of every block, with the network's fields bound."""

    dense: Callable
    conv: Callable
    norm: Callable
    mlp_norm: Callable
    attention: Callable
    modulation: Callable
    dropout_rate: float
    dtype: Dtype


class ResBlock(nn.Module):
    """A depthwise 3x3 and two channelwise layers with a global response norm, added, then modulated as a whole.

    Source: Woo et al., "ConvNeXt V2", CVPR 2023, fig. 5; Rampas et al., "Paella", 2022.
    """

    layers: Layers

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], condition: Float[Array, "b d"], train: bool
    ) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        depthwise = self.layers.conv(
            channels, kernel_size=(3, 3), padding=1, feature_group_count=channels, name="depthwise"
        )
        y = self.layers.norm(name="norm")(depthwise(x))
        y = exact_gelu(self.layers.dense(4 * channels, name="channelwise_linear_1")(y))
        y = GlobalResponseNorm(self.layers.dtype, name="channelwise_norm")(y)
        y = nn.Dropout(self.layers.dropout_rate, deterministic=not train)(y)
        y = self.layers.dense(channels, name="channelwise_linear_2")(y)
        return self.layers.modulation(name="modulation")(x + y, condition)


class AttentionBlock(nn.Module):
    """Attends to the text twice; the first of the two, ``attention``, is no self-attention, as in the originals."""

    layers: Layers
    num_heads: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        context: Float[Array, "b t d"],
        mask: Bool[Array, "b t"] | None,
        train: bool,
    ) -> Float[Array, "b h w c"]:
        height, width, channels = x.shape[1:]
        if context.shape[-1] != channels:
            context = self.layers.dense(channels, name="kv_mapper")(nn.silu(context))
        x = rearrange(x, "b h w c -> b (h w) c")
        for norm, attention in ("attn_layer_norm", "attention"), ("crossattn_layer_norm", "crossattention"):
            y = self.layers.norm(name=norm)(x)
            x = x + self.layers.attention(self.num_heads, name=attention)(y, context, mask, train)
        return rearrange(x, "b (h w) c -> b h w c", h=height, w=width)


class MapBlock(nn.Module):
    """Residual and attention blocks in turn, on a map."""

    layers: Layers
    num_res_blocks: int
    num_heads: int
    remat: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        context: Float[Array, "b t d"],
        condition: Float[Array, "b d"],
        mask: Bool[Array, "b t"] | None,
        train: bool,
    ) -> Float[Array, "b h w c"]:
        res_block, attention_block = ResBlock, AttentionBlock
        if self.remat:
            res_block = nn.remat(ResBlock, static_argnums=(3,))
            attention_block = nn.remat(AttentionBlock, static_argnums=(4,))
        for i in range(self.num_res_blocks):
            x = res_block(self.layers, name=f"res_blocks_{i}")(x, condition, train)
            x = attention_block(self.layers, self.num_heads, name=f"attention_blocks_{i}")(x, context, mask, train)
        return x


class ModulatedLayer(nn.Module):
    """Self-attention, attention to the text, feed-forward; each normed and modulated before, and added.

    ``adapter`` are the two matrices of the bottleneck that what comes from the text passes.

    Source: Peebles and Xie, "Scalable Diffusion Models with Transformers", ICCV 2023, fig. 3 (adaLN).
    """

    layers: Layers
    feed_forward: Callable
    num_heads: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b t d"],
        condition: Float[Array, "b d"],
        mask: Bool[Array, "b t"] | None,
        train: bool,
        adapter: tuple[Float[Array, "d p"], Float[Array, "p d"]] | None,
    ) -> Float[Array, "b n d"]:
        norm, modulation, attention = self.layers.norm, self.layers.modulation, self.layers.attention

        y = modulation(name="self_attn_modulation")(norm(name="attn_layer_norm")(x), condition)
        x = x + attention(self.num_heads, name="attention")(y, train=train)
        y = modulation(name="cross_attn_modulation")(norm(name="crossattn_layer_norm")(x), condition)
        y = attention(self.num_heads, name="crossattention")(y, context, mask, train)
        x = x + (y if adapter is None else adapted(y, *adapter))
        y = modulation(name="ffn_modulation")(self.layers.mlp_norm(name="pre_mlp_layer_norm")(x), condition)
        return x + self.feed_forward(name="ffn")(y, train)
