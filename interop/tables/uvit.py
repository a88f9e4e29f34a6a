"""MaskGiT-UViT v2 under open-muse's names, and under those of diffusers' UVit2DModel."""

from interop.layers import Place, conv, conv_transpose, dense, embedding, heads_in, heads_out, layer_norm

_response_norm = {
    "gamma": Place("params/{}/gamma", "1 1 1 c -> c"),
    "beta": Place("params/{}/beta", "1 1 1 c -> c"),
}
# diffusers joins the two layers of a gated feed-forward layer, the activated one last.
_geglu = {
    "weight": Place(("params/{}/wi_1/kernel", "params/{}/wi_0/kernel"), "(s o) i -> s i o"),
    "bias": Place(("params/{}/wi_1/bias", "params/{}/wi_0/bias"), "(s o) -> s o"),
}

# open-muse, diffusers, ours, kind
_ENDS = (
    ("encoder_proj", "encoder_proj", "encoder_proj", dense),
    ("encoder_proj_layer_norm", "encoder_proj_layer_norm", "encoder_proj_layer_norm", layer_norm),
    ("embed.embeddings", "embed.embeddings", "embeddings", embedding),
    ("embed.layer_norm", "embed.layer_norm", "embed_layer_norm", layer_norm),
    ("embed.conv", "embed.conv", "embed_conv", conv),
    ("cond_embed.0", "cond_embed.linear_1", "cond_embed_linear_1", dense),
    ("cond_embed.2", "cond_embed.linear_2", "cond_embed_linear_2", dense),
    ("down_blocks.0.downsample.0.norm", "down_block.downsample.norm", "downsample_norm", layer_norm),
    ("down_blocks.0.downsample.1", "down_block.downsample.conv", "downsample_conv", conv),
    ("project_to_hidden_norm", "project_to_hidden_norm", "project_to_hidden_norm", layer_norm),
    ("project_to_hidden", "project_to_hidden", "project_to_hidden", dense),
    ("project_from_hidden_norm", "project_from_hidden_norm", "project_from_hidden_norm", layer_norm),
    ("project_from_hidden", "project_from_hidden", "project_from_hidden", dense),
    ("up_blocks.0.upsample.0.norm", "up_block.upsample.norm", "upsample_norm", layer_norm),
    ("up_blocks.0.upsample.1", "up_block.upsample.conv", "upsample_conv", conv_transpose),
    ("mlm_layer.conv1", "mlm_layer.conv1", "mlm_conv1", conv),
    ("mlm_layer.layer_norm.norm", "mlm_layer.layer_norm", "mlm_layer_norm", layer_norm),
    ("mlm_layer.conv2", "mlm_layer.conv2", "mlm_conv2", conv),
)
_RES_BLOCK = (
    ("depthwise", "depthwise", "depthwise", conv),
    ("norm.norm", "norm", "norm", layer_norm),
    ("channelwise.0", "channelwise_linear_1", "channelwise_linear_1", dense),
    ("channelwise.2", "channelwise_norm", "channelwise_norm", _response_norm),
    ("channelwise.4", "channelwise_linear_2", "channelwise_linear_2", dense),
    ("adaLN_modulation.mapper", "cond_embeds_mapper", "modulation/mapper", dense),
)
_ATTENTION = tuple(
    (f"{ours}.{muse}", f"{theirs}.{diffusers}", f"{ours}/{muse}", kind)
    for ours, theirs in (("attention", "attn1"), ("crossattention", "attn2"))
    for muse, diffusers, kind in (
        ("query", "to_q", heads_in),
        ("key", "to_k", heads_in),
        ("value", "to_v", heads_in),
        ("out", "to_out.0", heads_out),
    )
)
_ATTENTION_BLOCK = (
    ("kv_mapper", "kv_mapper", "kv_mapper", dense),
    ("attn_layer_norm", "norm1", "attn_layer_norm", layer_norm),
    ("crossattn_layer_norm", "norm2", "crossattn_layer_norm", layer_norm),
    *_ATTENTION,
)
_LAYER = (
    ("attn_layer_norm", "norm1.norm", "attn_layer_norm", layer_norm),
    ("self_attn_adaLN_modulation.mapper", "norm1.linear", "self_attn_modulation/mapper", dense),
    ("crossattn_layer_norm", "norm2.norm", "crossattn_layer_norm", layer_norm),
    ("cross_attn_adaLN_modulation.mapper", "norm2.linear", "cross_attn_modulation/mapper", dense),
    *_ATTENTION,
    ("ffn.pre_mlp_layer_norm", "norm3.norm", "pre_mlp_layer_norm", layer_norm),
    ("ffn.adaLN_modulation.mapper", "norm3.linear", "ffn_modulation/mapper", dense),
    ("ffn.wo", "ff.net.2", "ffn/wo", dense),
)
_PLACES = (
    *(
        (f"{level}_blocks.0.{blocks}.{{i}}.", f"{level}_block.{blocks}.{{i}}.", f"{level}_block/{blocks}_{{i}}/", rows)
        for level in ("down", "up")
        for blocks, rows in (("res_blocks", _RES_BLOCK), ("attention_blocks", _ATTENTION_BLOCK))
    ),
    ("transformer_layers.{i}.", "transformer_layers.{i}.", "transformer_layers_{i}/", _LAYER),
)
_ROWS = (
    *_ENDS,
    *(
        (muse + row[0], diffusers + row[1], ours + row[2], row[3])
        for muse, diffusers, ours, rows in _PLACES
        for row in rows
    ),
)

_style_adapter = {
    "WD.weight": Place("params/{}/down", "l (d h) -> l d h"),
    "WU.weight": Place("params/{}/up", "l (h d) -> l h d"),
    "DD.weight": Place("params/{}/down_shift", "l h -> l h"),
    "DU.weight": Place("params/{}/up_shift", "l d -> l d"),
}
UVIT_MUSE = (
    *((muse, ours, kind) for muse, _, ours, kind in _ROWS),
    ("transformer_layers.{i}.ffn.wi_0", "transformer_layers_{i}/ffn/wi_0", dense),
    ("transformer_layers.{i}.ffn.wi_1", "transformer_layers_{i}/ffn/wi_1", dense),
    ("adapter", "adapter", _style_adapter),
)
UVIT_DIFFUSERS = (
    *((diffusers, ours, kind) for _, diffusers, ours, kind in _ROWS),
    ("transformer_layers.{i}.ff.net.0.proj", "transformer_layers_{i}/ffn", _geglu),
)
