"""MaskGIT's tokenizer: open-muse's names in torch, and those of Google's own Flax checkpoints."""

from interop.layers import Place, conv, embedding, group_norm
from interop.rules import Table

_BLOCKS = {
    "encoder.down.{level}.block.{i}": "encoder/level{level}_block{i}",
    "encoder.mid.{i}": "encoder/mid_block{i}",
    "decoder.mid.{i}": "decoder/mid_block{i}",
    "decoder.up.{level}.block.{i}": "decoder/level{level}_block{i}",
}
_CONVS, _NORMS = ("conv1", "conv2", "nin_shortcut"), ("norm1", "norm2")

MASKGIT_VQGAN_MUSE = (
    *((f"{part}.conv_{end}", f"{part}/conv_{end}", conv) for part in ("encoder", "decoder") for end in ("in", "out")),
    *((f"{part}.norm_out", f"{part}/norm_out", group_norm) for part in ("encoder", "decoder")),
    *((f"{torch}.{name}", f"{flax}/{name}", conv) for torch, flax in _BLOCKS.items() for name in _CONVS),
    *((f"{torch}.{name}", f"{flax}/{name}", group_norm) for torch, flax in _BLOCKS.items() for name in _NORMS),
    ("decoder.up.{level}.upsample_conv", "decoder/level{level}_upsample", conv),
    ("quantize.embedding", "quantize", embedding),
)

# Flax on both sides: the layouts are the same.
_conv = {"kernel": Place("params/{}/kernel", "h w i o -> h w i o"), "bias": Place("params/{}/bias", "o -> o")}
_norm = {"scale": Place("params/{}/scale", "c -> c"), "bias": Place("params/{}/bias", "c -> c")}
_codebook = {"codebook": Place("params/{}/embedding", "n d -> n d")}
_GOOGLE_BLOCK = (
    ("GroupNorm_0", "norm1", _norm),
    ("Conv_0", "conv1", _conv),
    ("GroupNorm_1", "norm2", _norm),
    ("Conv_1", "conv2", _conv),
    ("Conv_2", "nin_shortcut", _conv),
)


def maskgit_vqgan_google(levels: int, num_res_blocks: int) -> Table:
    """The table of Google's checkpoint, its tree's keys joined by dots: ``encoder.ResBlock_0.Conv_0.kernel``.

    Flax numbered its layers in the order they are called, so the numbers of a model hang on how many ``levels``
    (``len(channel_mult)``) and residual blocks it has.
    """
    mid = [f"mid_block{i}" for i in range(num_res_blocks)]
    down, up = (
        [f"level{level}_block{i}" for level in order for i in range(num_res_blocks)]
        for order in (range(levels), reversed(range(levels)))
    )
    called = {"encoder": [*down, *mid], "decoder": [*mid, *up]}
    upsampled = [f"level{level}_upsample" for level in reversed(range(1, levels))]
    convs = {"encoder": ["conv_in", "conv_out"], "decoder": ["conv_in", *upsampled, "conv_out"]}
    return (
        *((f"{part}.Conv_{n}", f"{part}/{name}", _conv) for part in convs for n, name in enumerate(convs[part])),
        *((f"{part}.GroupNorm_0", f"{part}/norm_out", _norm) for part in convs),
        *(
            (f"{part}.ResBlock_{n}.{theirs}", f"{part}/{name}/{ours}", kind)
            for part in called
            for n, name in enumerate(called[part])
            for theirs, ours, kind in _GOOGLE_BLOCK
        ),
        ("quantizer", "quantize", _codebook),
    )
