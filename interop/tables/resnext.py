"""ResNeXt for CIFAR, under the names of prlz77's network, which TfKD trains."""

from interop.layers import batch_norm, conv, dense

_BLOCK = (
    ("conv_reduce", "conv1", conv),
    ("bn_reduce", "norm1", batch_norm),
    ("conv_conv", "conv2", conv),
    ("bn", "norm2", batch_norm),
    ("conv_expand", "conv3", conv),
    ("bn_expand", "norm3", batch_norm),
    ("shortcut.shortcut_conv", "conv_proj", conv),
    ("shortcut.shortcut_bn", "norm_proj", batch_norm),
)

# Torch repeats the stage in the block's name, where a placeholder may not repeat.
RESNEXT = (
    ("conv_1_3x3", "conv_stem", conv),
    ("bn_1", "norm_stem", batch_norm),
    *(
        (f"stage_{stage}.stage_{stage}_bottleneck_{{block}}.{torch}", f"stage{stage}_block{{block}}/{flax}", kind)
        for stage in (1, 2, 3)
        for torch, flax, kind in _BLOCK
    ),
    ("classifier", "head", dense),
)

TABLES = {"resnext29_8x64d": RESNEXT, "resnext_tiny": RESNEXT}
