"""VQGAN and MoVQ: the names of open-muse (taming's and Kandinsky's), and those of diffusers' VQModel."""

from itertools import chain

from interop.layers import Kind, Place, conv, dense, embedding, group_norm
from interop.rules import Table

# Taming's attention multiplies by 1x1 convolutions, Kandinsky's and diffusers' by dense layers.
_pointwise = {"weight": Place("params/{}/kernel", "o i 1 1 -> i o"), "bias": Place("params/{}/bias", "o -> o")}

# torch module -> ours, for the layers of a block; the norms are listed apart
_MUSE_BLOCK = {"conv1": "conv1", "conv2": "conv2", "nin_shortcut": "nin_shortcut"}
_DIFFUSERS_BLOCK = {"conv1": "conv1", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
_MUSE_ATTENTION = {name: name for name in ("q", "k", "v", "proj_out")}
_DIFFUSERS_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}

_MUSE_BLOCKS = {
    "encoder.down.{level}.block.{i}": "encoder/level{level}_block{i}",
    "encoder.mid.block_{n}": "encoder/mid_block{n}",
    "decoder.mid.block_{n}": "decoder/mid_block{n}",
    "decoder.mid.extra_mid_res_blocks.{i}": "decoder/mid_extra{i}",
    "decoder.up.{level}.block.{i}": "decoder/level{level}_block{i}",
}
_MUSE_ATTENTIONS = {
    "encoder.down.{level}.attn.{i}": "encoder/level{level}_attn{i}",
    "encoder.mid.attn_{n}": "encoder/mid_attn{n}",
    "decoder.mid.attn_{n}": "decoder/mid_attn{n}",
    "decoder.up.{level}.attn.{i}": "decoder/level{level}_attn{i}",
}
_SINGLE = (
    *((f"{part}.conv_{end}", f"{part}/conv_{end}", conv) for part in ("encoder", "decoder") for end in ("in", "out")),
    ("quant_conv", "quant_conv", conv),
    ("post_quant_conv", "post_quant_conv", conv),
    ("quantize.embedding", "quantize", embedding),
)


def _modulated(torch: str, flax: str) -> Table:
    """A norm that the codes modulate."""
    modulations = ((f"{torch}.conv_{name}", f"{flax}/conv_{name}", conv) for name in "yb")
    return ((f"{torch}.norm_layer", f"{flax}/norm_layer", group_norm), *modulations)


def _norm(torch: str, flax: str) -> Table:
    """A norm, plain or modulated: a model has one of the two there."""
    return ((torch, flax, group_norm), *_modulated(torch, flax))


def _layers(modules: dict[str, str], layers: dict[str, str], norms: dict[str, str], kind: Kind) -> Table:
    """The rows of modules that each have these layers and these norms."""
    return (
        *(
            (f"{torch}.{theirs}", f"{flax}/{ours}", kind)
            for torch, flax in modules.items()
            for theirs, ours in layers.items()
        ),
        *chain.from_iterable(
            _norm(f"{torch}.{theirs}", f"{flax}/{ours}")
            for torch, flax in modules.items()
            for theirs, ours in norms.items()
        ),
    )


_BLOCK_NORMS = {"norm1": "norm1", "norm2": "norm2"}
_MUSE_BODY = (
    *_SINGLE,
    ("encoder.down.{level}.downsample.conv", "encoder/level{level}_downsample/conv", conv),
    ("decoder.up.{level}.upsample.conv", "decoder/level{level}_upsample/conv", conv),
    *_norm("encoder.norm_out", "encoder/norm_out"),
    *_norm("decoder.norm_out", "decoder/norm_out"),
    *_layers(_MUSE_BLOCKS, _MUSE_BLOCK, _BLOCK_NORMS, conv),
)
VQGAN_MUSE = (*_MUSE_BODY, *_layers(_MUSE_ATTENTIONS, _MUSE_ATTENTION, {"norm": "norm"}, _pointwise))
MOVQ_MUSE = (*_MUSE_BODY, *_layers(_MUSE_ATTENTIONS, _MUSE_ATTENTION, {"norm": "norm"}, dense))


def vq_diffusers(levels: int) -> Table:
    """The table of diffusers' VQModel with that many levels (``len(channel_mult)``), of VQGAN and MoVQ alike.

    Its decoder numbers the levels in the order they are run in, the last first, which needs their number.
    """
    up = {f"decoder.up_blocks.{levels - 1 - level}": f"decoder/level{level}" for level in range(levels)}
    sides = {"encoder.down_blocks.{level}": "encoder/level{level}", **up}
    mids = [(f"{part}.mid_block", f"{part}/mid") for part in ("encoder", "decoder")]
    blocks = {f"{torch}.resnets.{{i}}": f"{flax}_block{{i}}" for torch, flax in sides.items()}
    blocks |= {f"{torch}.resnets.{n - 1}": f"{flax}_block{n}" for torch, flax in mids for n in (1, 2)}
    attentions = {f"{torch}.attentions.{{i}}": f"{flax}_attn{{i}}" for torch, flax in sides.items()}
    attentions |= {f"{torch}.attentions.0": f"{flax}_attn1" for torch, flax in mids}
    return (
        *_SINGLE,
        ("encoder.down_blocks.{level}.downsamplers.0.conv", "encoder/level{level}_downsample/conv", conv),
        *((f"{torch}.upsamplers.0.conv", f"{flax}_upsample/conv", conv) for torch, flax in up.items()),
        *_norm("encoder.conv_norm_out", "encoder/norm_out"),
        *_norm("decoder.conv_norm_out", "decoder/norm_out"),
        *_layers(blocks, _DIFFUSERS_BLOCK, _BLOCK_NORMS, conv),
        *_layers(attentions, _DIFFUSERS_ATTENTION, {}, dense),
        *((f"{torch}.group_norm", f"{flax}/norm", group_norm) for torch, flax in attentions.items()),
        *chain.from_iterable(_modulated(f"{torch}.spatial_norm", f"{flax}/norm") for torch, flax in attentions.items()),
    )
