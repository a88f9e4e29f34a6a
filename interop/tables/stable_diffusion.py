"""Stable Diffusion's UNet, autoencoder and text encoder: torch's names against those of the Flax classes."""

from interop.layers import Dropped, conv, dense, embedding, group_norm, layer_norm
from interop.rules import Table


def _within(places: dict[str, str], rows: Table) -> Table:
    """The rows of a module, at each of its places."""
    return tuple(
        (f"{torch}.{theirs}", f"{flax}/{ours}", kind) for torch, flax in places.items() for theirs, ours, kind in rows
    )


_RESNET = (
    ("norm1", "norm1", group_norm),
    ("conv1", "conv1", conv),
    ("time_emb_proj", "time_emb_proj", dense),
    ("norm2", "norm2", group_norm),
    ("conv2", "conv2", conv),
    ("conv_shortcut", "conv_shortcut", conv),
)
_ATTENTION = tuple(
    (f"{name}.{theirs}", f"{name}/{ours}", dense)
    for name in ("attn1", "attn2")
    for theirs, ours in (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out.0", "to_out_0"))
)
_TRANSFORMER_BLOCK = (
    *((f"norm{n}", f"norm{n}", layer_norm) for n in (1, 2, 3)),
    *_ATTENTION,
    ("ff.net.0.proj", "ff/net_0/proj", dense),
    ("ff.net.2", "ff/net_2", dense),
)
_SIDES = {f"{way}_blocks.{{i}}": f"{way}_blocks_{{i}}" for way in ("down", "up")} | {"mid_block": "mid_block"}
_RESNETS = {f"{torch}.resnets.{{j}}": f"{flax}/resnets_{{j}}" for torch, flax in _SIDES.items()}
_ATTENTIONS = {f"{torch}.attentions.{{j}}": f"{flax}/attentions_{{j}}" for torch, flax in _SIDES.items()}
_BLOCKS = {
    f"{torch}.transformer_blocks.{{k}}": f"{flax}/transformer_blocks_{{k}}" for torch, flax in _ATTENTIONS.items()
}
_BODY = (
    ("conv_in", "conv_in", conv),
    *_within(_RESNETS, _RESNET),
    ("down_blocks.{i}.downsamplers.0.conv", "down_blocks_{i}/downsamplers_0/conv", conv),
    ("up_blocks.{i}.upsamplers.0.conv", "up_blocks_{i}/upsamplers_0/conv", conv),
    ("conv_norm_out", "conv_norm_out", group_norm),
    ("conv_out", "conv_out", conv),
)


def unet(use_linear_projection: bool) -> Table:
    """The table of a UNet2DConditionModel, whose projections around attention are 1x1 convolutions or dense."""
    project = dense if use_linear_projection else conv
    return (
        *_BODY,
        *_within(
            {"time_embedding": "time_embedding", "add_embedding": "add_embedding"},
            (("linear_1", "linear_1", dense), ("linear_2", "linear_2", dense)),
        ),
        *_within(
            _ATTENTIONS,
            (("norm", "norm", group_norm), ("proj_in", "proj_in", project), ("proj_out", "proj_out", project)),
        ),
        *_within(_BLOCKS, _TRANSFORMER_BLOCK),
    )


def autoencoder(old_names: bool = False) -> Table:
    """The table of an AutoencoderKL; ``old_names`` are those of attention in older files, which Flax's still are.

    torch writes the new ones, and reads both.
    """
    flax = ("query", "key", "value", "proj_attn")
    torch = flax if old_names else ("to_q", "to_k", "to_v", "to_out.0")
    attention = (
        ("group_norm", "group_norm", group_norm),
        *((theirs, ours, dense) for theirs, ours in zip(torch, flax, strict=True)),
    )
    return (
        *_within({"encoder": "encoder", "decoder": "decoder"}, _BODY),
        *_within(
            {
                f"{part}.mid_block.attentions.{{j}}": f"{part}/mid_block/attentions_{{j}}"
                for part in ("encoder", "decoder")
            },
            attention,
        ),
        ("quant_conv", "quant_conv", conv),
        ("post_quant_conv", "post_quant_conv", conv),
    )


_positions = {"position_ids": Dropped("torch counts positions in a buffer that it no longer writes")}
_ENCODER_LAYER = (
    ("layer_norm1", "layer_norm1", layer_norm),
    *((f"self_attn.{name}_proj", f"self_attn/{name}_proj", dense) for name in ("q", "k", "v", "out")),
    ("layer_norm2", "layer_norm2", layer_norm),
    ("mlp.fc1", "mlp/fc1", dense),
    ("mlp.fc2", "mlp/fc2", dense),
)
CLIP_TEXT = (
    ("text_model.embeddings.token_embedding", "text_model/embeddings/token_embedding", embedding),
    ("text_model.embeddings.position_embedding", "text_model/embeddings/position_embedding", embedding),
    ("text_model.embeddings", "text_model/embeddings", _positions),
    *_within({"text_model.encoder.layers.{i}": "text_model/encoder/layers/{i}"}, _ENCODER_LAYER),
    ("text_model.final_layer_norm", "text_model/final_layer_norm", layer_norm),
    ("text_projection", "text_projection", dense),
)
