"""The UNet of Stable Diffusion 1, 2 and XL, with the parameter names of diffusers' FlaxUNet2DConditionModel."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32, Real

from jaxkit.errors import ConfigError, ShapeError
from jaxkit.models.diffusion.attention import FlatAttention, Implementation
from jaxkit.models.diffusion.blocks import (
    DownBlock,
    Downsample,
    MidBlock,
    Remat,
    ResnetBlock,
    UpBlock,
    Upsample,
    rematerialised,
)
from jaxkit.models.diffusion.unet_blocks import SpatialTransformer, TransformerBlock
from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.transformer import layer_norm, sinusoidal_embedding

# what torch.nn.Linear draws, for a layer without bias
_TORCH_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Added(NamedTuple):
    """What Stable Diffusion XL is told besides the text."""

    text_embeds: Float[Array, "b p"]
    """The pooled text."""
    time_ids: Real[Array, "b m"]
    """In pixels: height and width of the image, top and left of the crop, height and width of the crop."""


class Level(NamedTuple):
    """One resolution on the way down or up."""

    channels: int
    layers: int
    attends: bool
    heads: int
    depth: int
    only_cross_attention: bool


class TimeEmbedding(nn.Module):
    """Two dense layers with SiLU between them."""

    features: int
    dense: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b i"]) -> Float[Array, "b {self.features}"]:
        return self.dense(self.features, name="linear_2")(nn.silu(self.dense(self.features, name="linear_1")(x)))


class UNet(nn.Module):
    """Predicts noise or velocity in latents, given the time and a text; fields are those of diffusers' config.json.

    ``attention_head_dim`` is a number of heads, whatever its name says; where a level's may differ, a tuple has one
    number a level, from the largest map on. Any size of map is served.

    ``remat`` says what the backward pass computes again, ``attention`` how attention is computed. The arithmetic is in
    ``dtype``, statistics and softmax in float32.

    Raises ConfigError for fields that do not go together, and ShapeError for a text of another width than
    ``cross_attention_dim``, or where what SDXL is told besides is missing or of another size.

    Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022; Podell et al.,
    "SDXL", ICLR 2024, section 2.
    """

    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1.0
    dropout: float = 0.0
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    reverse_transformer_layers_per_block: tuple[int, ...] | None = None
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    time_embedding_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    remat: Remat = "none"
    attention: Implementation | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w {self.in_channels}"],
        timesteps: Real[Array, " b"],
        context: Float[Array, "b t d"],
        added: Added | None = None,
        train: bool = False,
    ) -> Float32[Array, "b h w {self.out_channels}"]:
        conv, norm = partial(Conv, dtype=self.dtype), self._group_norm(self.norm_eps)
        resnet = partial(
            rematerialised(ResnetBlock, self.remat),
            norm=norm,
            conv=conv,
            dense=partial(Dense, dtype=self.dtype),
            dropout_rate=self.dropout,
            train=train,
        )
        down, mid, up = self.levels()
        self._require_inputs(context, added)
        time, context = self._time(timesteps, added), context.astype(self.dtype)

        x = 2 * x - 1 if self.center_input_sample else x
        x = self._edge(down[0].channels, self.conv_in_kernel, "conv_in")(x.astype(self.dtype))
        skips = [x]
        for i, level in enumerate(down):
            halve = partial(Downsample, conv, self.downsample_padding) if i < len(down) - 1 else None
            block = DownBlock(*level[:2], resnet, self._transformer(level), halve, name=f"down_blocks_{i}")
            x, maps = block(x, time, context)
            skips += maps

        if self.mid_block_type is not None:
            mid_resnet = partial(resnet, scale=self.mid_block_scale_factor)
            x = MidBlock(mid_resnet, self._transformer(mid), name="mid_block")(x, time, context)

        for i, level in enumerate(up):
            skips, taken = skips[: -level.layers], skips[-level.layers :]
            double = partial(Upsample, conv) if i < len(up) - 1 else None
            block = UpBlock(*level[:2], resnet, self._transformer(level), double, name=f"up_blocks_{i}")
            x = block(x, taken, skips[-1].shape[1:3] if skips else None, time, context)

        x = nn.silu(norm(name="conv_norm_out")(x))
        return self._edge(self.out_channels, self.conv_out_kernel, "conv_out")(x).astype(jnp.float32)

    def levels(self) -> tuple[list[Level], Level, list[Level]]:
        """The levels down, the one in the middle, and those up. Raises ConfigError for fields that make none."""
        count = len(self.block_out_channels)

        def each(name: str) -> tuple:
            value = getattr(self, name)
            value = value if isinstance(value, tuple) else (value,) * count
            if len(value) != count:
                raise ConfigError(f"{name} has {len(value)} entries, but there are {count} block_out_channels")
            return value

        heads, depths = each("attention_head_dim"), each("transformer_layers_per_block")
        layers, only = each("layers_per_block"), each("only_cross_attention")
        columns = (self.block_out_channels, layers, _attends(each("down_block_types"), "Down"), heads, depths, only)
        down = [Level(*row) for row in zip(*columns, strict=True)]
        up = [
            level._replace(layers=level.layers + 1, attends=attends)
            for level, attends in zip(down[::-1], _attends(each("up_block_types"), "Up"), strict=True)
        ]
        if self.reverse_transformer_layers_per_block is not None:
            again = each("reverse_transformer_layers_per_block")
            up = [level._replace(depth=depth) for level, depth in zip(up, again, strict=True)]
        return down, down[-1]._replace(attends=True, only_cross_attention=False), up

    def _edge(self, channels: int, side: int, name: str) -> Conv:
        return Conv(channels, (side, side), padding=(side - 1) // 2, dtype=self.dtype, name=name)

    def _time(self, timesteps, added: Added | None) -> Float[Array, "b e"]:
        first = self.block_out_channels[0]
        embed = partial(TimeEmbedding, self.time_embedding_dim or 4 * first, partial(Dense, dtype=self.dtype))
        time = embed(name="time_embedding")(self._sinusoidal(timesteps[:, None], first))
        if added is None:
            return time
        ids = self._sinusoidal(added.time_ids, self.addition_time_embed_dim)
        return time + embed(name="add_embedding")(jnp.concatenate([added.text_embeds, ids], axis=-1))

    def _sinusoidal(self, x: Real[Array, "b m"], size: int) -> Float[Array, "b m*{size}"]:
        waves = sinusoidal_embedding(x.astype(jnp.float32), size)
        if self.flip_sin_to_cos:
            return waves
        halves = rearrange(waves, "b (m s d) -> b m s d", s=2, d=size // 2)
        return rearrange(halves[:, :, ::-1], "b m s d -> b (m s d)")

    def _group_norm(self, epsilon: float) -> Callable[..., nn.Module]:
        return partial(nn.GroupNorm, self.norm_num_groups, epsilon=epsilon, dtype=self.dtype, use_fast_variance=False)

    def _transformer(self, level: Level) -> Callable[..., nn.Module] | None:
        if not level.attends:
            return None
        dense = partial(Dense, dtype=self.dtype)
        attention = partial(
            FlatAttention,
            level.heads,
            ("to_q", "to_k", "to_v", "to_out_0"),
            partial(nn.Dense, use_bias=False, kernel_init=_TORCH_KERNEL, dtype=self.dtype),
            dense,
            self.attention,
        )
        norm = layer_norm("layernorm", epsilon=1e-5, use_bias=True, dtype=self.dtype)
        return partial(
            rematerialised(SpatialTransformer, self.remat),
            partial(TransformerBlock, attention, dense, norm, level.only_cross_attention),
            level.depth,
            self._group_norm(1e-6),
            dense if self.use_linear_projection else partial(Conv, kernel_size=(1, 1), dtype=self.dtype),
        )

    def _require_inputs(self, context: Float[Array, "b t d"], added: Added | None) -> None:
        if context.shape[-1] != self.cross_attention_dim:
            raise ShapeError(
                f"a text of width {context.shape[-1]}, but cross_attention_dim is {self.cross_attention_dim}"
            )
        if (added is None) != (self.addition_embed_type is None):
            raise ShapeError(
                "text_embeds and time_ids belong to a UNet of addition_embed_type 'text_time', and to no other"
            )
        if added is not None:
            width = added.text_embeds.shape[1] + added.time_ids.shape[1] * self.addition_time_embed_dim
            if width != self.projection_class_embeddings_input_dim:
                raise ShapeError(
                    f"text_embeds and time_ids make {width} numbers, but projection_class_embeddings_input_dim is "
                    f"{self.projection_class_embeddings_input_dim}"
                )


def _attends(types: tuple[str, ...], way: str) -> list[bool]:
    """Which blocks attend to the text. Raises ConfigError for a type of block that there is not."""
    known = {f"CrossAttn{way}Block2D": True, f"{way}Block2D": False}
    for name in types:
        if name not in known:
            raise ConfigError(f"{way.lower()}_block_types: {name!r} is not offered, only {' and '.join(known)}")
    return [known[name] for name in types]
