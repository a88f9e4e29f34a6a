"""open-muse's MaskGitTransformer in torch, for evaluation: it has no dropout."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, pixel_shuffle, pixel_unshuffle, scaled_dot_product_attention


class LayerNorm(nn.Module):
    """A layer norm whose bias is optional."""

    def __init__(self, width: int, eps: float, bias: bool):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last axis."""
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Divides by the root of the mean square."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last axis."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class MapNorm(nn.Module):
    """A norm of the channels of a map [b c h w]."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the channels."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Attention(nn.Module):
    """From one sequence to another, or itself."""

    def __init__(self, width: int, heads: int, context_width: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(width, width, bias), nn.Linear(width, width, bias)
        self.key, self.value = nn.Linear(context_width, width, bias), nn.Linear(context_width, width, bias)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attends to the positions of the context [b s e] where the mask [b s] is True."""
        query, key, value = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.query(x), self.key(context), self.value(context))
        )
        mask = None if mask is None else mask[:, None, None]
        y = scaled_dot_product_attention(query, key, value, mask)
        return self.out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """A gated feed-forward layer."""

    def __init__(self, width: int, inner: int, bias: bool, pre_norm: nn.Module, mid_norm: nn.Module | None):
        super().__init__()
        self.pre_mlp_layer_norm = pre_norm
        self.wi_0, self.wi_1 = nn.Linear(width, inner, bias), nn.Linear(width, inner, bias)
        self.mid_mlp_layer_norm = mid_norm
        self.wo = nn.Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b n d] to the same."""
        x = self.pre_mlp_layer_norm(x)
        x = gelu(self.wi_0(x)) * self.wi_1(x)
        return self.wo(x if self.mid_mlp_layer_norm is None else self.mid_mlp_layer_norm(x))


class Layer(nn.Module):
    """Self-attention, cross-attention, feed-forward."""

    def __init__(self, c: Mapping[str, Any], norm: partial, context_width: int):
        super().__init__()
        width, heads, bias, extra = c["hidden_size"], c["num_attention_heads"], c["use_bias"], c["use_normformer"]
        self.attn_layer_norm, self.attention = norm(width), Attention(width, heads, width, bias)
        self.post_attn_layer_norm = norm(width) if extra else None
        self.crossattention = None
        if c["add_cross_attention"]:
            self.crossattn_layer_norm = norm(width)
            self.crossattention = Attention(width, heads, context_width, bias)
            self.post_crossattn_layer_norm = norm(width) if extra else None
        inner = c["intermediate_size"]
        pre_norm = LayerNorm(width, c["layer_norm_eps"], bias)
        self.ffn = FeedForward(width, inner, bias, pre_norm, norm(inner) if extra else None)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Maps [b n d] to the same."""
        y = self.attn_layer_norm(x)
        y = self.attention(y, y)
        x = x + (y if self.post_attn_layer_norm is None else self.post_attn_layer_norm(y))
        if self.crossattention is not None:
            y = self.crossattention(self.crossattn_layer_norm(x), context, mask)
            x = x + (y if self.post_crossattn_layer_norm is None else self.post_crossattn_layer_norm(y))
        return x + self.ffn(x)


class MaskGitTransformer(nn.Module):
    """Logits [b n k] of the tokens [b n] of a square image, after a class token where there are classes.

    The config is a config.json of open-muse, every key given.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.config, c = config, config
        width, bias, size = c["hidden_size"], c["use_bias"], c["vocab_size"]
        eps = c["layer_norm_eps"]
        norm = partial(LayerNorm, eps=eps, bias=bias) if c["norm_type"] == "layernorm" else partial(RMSNorm, eps=eps)
        inner, area = c["embedding_size"], c["patch_size"] ** 2

        self.embed = nn.Module()
        if c["use_conv_in_out"]:
            self.embed.embeddings, self.embed.layer_norm = nn.Embedding(size, inner), norm(inner)
            self.embed.conv = nn.Conv2d(inner * area, width, 1, bias=bias)
            self.embed.position_embeddings = nn.Embedding(256, width)
        else:
            self.embed.word_embeddings = nn.Embedding(size, width)
            self.embed.position_embeddings = nn.Embedding(c["max_position_embeddings"], width)
        context_width = c["encoder_hidden_size"]
        if c["project_encoder_hidden_states"]:
            self.encoder_proj, self.encoder_proj_layer_norm = nn.Linear(context_width, width, bias), norm(width)
            context_width = width
        self.transformer_layers = nn.ModuleList(Layer(c, norm, context_width) for _ in range(c["num_hidden_layers"]))
        self.encoder_layer_norm = norm(width) if c["use_encoder_layernorm"] else nn.Identity()

        out = c["codebook_size"] if c["use_codebook_size_for_output"] else size
        self.mlm_layer = nn.Module()
        if not c["use_mlm_layer"]:
            self.to_logits = nn.Linear(width, out, bias)
        elif c["use_conv_in_out"]:
            self.mlm_layer.conv1 = nn.Conv2d(width, inner * area, 1, bias=bias)
            self.mlm_layer.layer_norm, self.mlm_layer.conv2 = MapNorm(norm(inner)), nn.Conv2d(inner, out, 1, bias=bias)
        else:
            self.mlm_layer.mlm_dense = nn.Linear(width, width, bias)
            self.mlm_layer.mlm_ln = norm(width) if c["use_mlm_layernorm"] else nn.Identity()
            self.mlm_layer.to_logits = nn.Linear(width, out, bias)

    def forward(
        self, tokens: Tensor, encoder_hidden_states: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Scores every token at every place."""
        x = self._embedded(tokens)
        context = encoder_hidden_states
        if context is not None and self.config["project_encoder_hidden_states"]:
            context = self.encoder_proj_layer_norm(self.encoder_proj(context))
        for layer in self.transformer_layers:
            x = layer(x, context, mask)
        x = self.encoder_layer_norm(x)

        head, patch = self.mlm_layer, self.config["patch_size"]
        if not self.config["use_mlm_layer"]:
            return self.to_logits(x)
        if self.config["use_conv_in_out"]:
            y = pixel_shuffle(head.conv1(_square(x)), patch)
            return head.conv2(head.layer_norm(y)).flatten(2).transpose(1, 2)
        return head.to_logits(head.mlm_ln(gelu(head.mlm_dense(x))))

    def _embedded(self, tokens: Tensor) -> Tensor:
        embed = self.embed
        if self.config["use_conv_in_out"]:
            y = _square(embed.layer_norm(embed.embeddings(tokens)))
            x = embed.conv(pixel_unshuffle(y, self.config["patch_size"])).flatten(2).transpose(1, 2)
        else:
            x = embed.word_embeddings(tokens)
        return x + embed.position_embeddings.weight[: x.shape[1]]


def _square(x: Tensor) -> Tensor:
    """The sequence [b n d] as a square map [b d h w]."""
    side = int(x.shape[1] ** 0.5)
    return x.transpose(1, 2).unflatten(2, (side, side))
