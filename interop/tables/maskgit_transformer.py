"""open-muse's MaskGitTransformer, under the names of its ``pytorch_model.bin``."""

from interop.layers import conv, dense, embedding, heads_in, heads_out, layer_norm

_LAYER = "transformer_layers.{i}", "transformer_layers_{i}"
_NORMS = (
    "attn_layer_norm",
    "post_attn_layer_norm",
    "crossattn_layer_norm",
    "post_crossattn_layer_norm",
    "ffn.pre_mlp_layer_norm",
    "ffn.mid_mlp_layer_norm",
)
# The norm before the feed-forward layer is ours before it, theirs within it.
_OURS = {"ffn.pre_mlp_layer_norm": "pre_mlp_layer_norm"}


def _within(name: str, kind, ours: str | None = None):
    return f"{_LAYER[0]}.{name}", f"{_LAYER[1]}/{ours or name.replace('.', '/')}", kind


MASKGIT_TRANSFORMER = (
    ("embed.word_embeddings", "word_embeddings", embedding),
    ("embed.position_embeddings", "position_embeddings", embedding),
    ("embed.embeddings", "embeddings", embedding),
    ("embed.layer_norm", "embed_layer_norm", layer_norm),
    ("embed.conv", "embed_conv", conv),
    ("encoder_proj", "encoder_proj", dense),
    ("encoder_proj_layer_norm", "encoder_proj_layer_norm", layer_norm),
    *(_within(name, layer_norm, _OURS.get(name)) for name in _NORMS),
    *(
        _within(f"{attention}.{part}", heads_out if part == "out" else heads_in)
        for attention in ("attention", "crossattention")
        for part in ("query", "key", "value", "out")
    ),
    *(_within(f"ffn.{name}", dense) for name in ("wi_0", "wi_1", "wo")),
    ("encoder_layer_norm", "encoder_layer_norm", layer_norm),
    ("mlm_layer.mlm_dense", "mlm_dense", dense),
    ("mlm_layer.mlm_ln", "mlm_ln", layer_norm),
    ("mlm_layer.to_logits", "mlm_to_logits", dense),
    ("mlm_layer.conv1", "mlm_conv1", conv),
    ("mlm_layer.layer_norm.norm", "mlm_layer_norm", layer_norm),
    ("mlm_layer.conv2", "mlm_conv2", conv),
    ("to_logits", "to_logits", dense),
)
