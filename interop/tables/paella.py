"""PaellaVQ: open-muse's names, and those of diffusers' PaellaVQModel."""

from interop.layers import Place, batch_norm, conv, conv_transpose, dense, embedding

_gammas = {"gammas": Place("params/{}/gammas", "n -> n")}
_BODY = (
    ("in_block.1", "encoder/in_block", conv),
    ("down_blocks.{i}", "encoder/down{i}", conv),
    ("down_blocks.{i}.0", "encoder/down{i}_conv", conv),
    ("down_blocks.{i}.1", "encoder/down{i}_norm", batch_norm),
    ("up_blocks.0.0", "decoder/up_in", conv),
    ("up_blocks.{i}", "decoder/up{i}", conv_transpose),
    ("out_block.0", "decoder/out_block", conv),
    *(
        (f"{side}_blocks.{{i}}{theirs}", f"{part}/{side}{{i}}{ours}", kind)
        for side, part in {"down": "encoder", "up": "decoder"}.items()
        for theirs, ours, kind in (
            ("", "", _gammas),
            (".depthwise.1", "/depthwise", conv),
            (".channelwise.0", "/wi", dense),
            (".channelwise.2", "/wo", dense),
        )
    ),
)

PAELLA_MUSE = (*_BODY, ("vquantizer.codebook", "quantize", embedding))
PAELLA_DIFFUSERS = (*_BODY, ("vquantizer.embedding", "quantize", embedding))
