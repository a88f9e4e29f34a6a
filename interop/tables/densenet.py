"""Densely connected networks: the names of torchvision, which SWEEN shares, and those of teacher-free distillation."""

from interop.layers import batch_norm, conv, dense
from jaxkit.models import MODELS

DENSENET = (
    ("features.conv0", "conv_stem", conv),
    ("features.norm0", "norm_stem", batch_norm),
    ("features.denseblock{stage}.denselayer{layer}.norm{n}", "stage{stage}_layer{layer}/norm{n}", batch_norm),
    ("features.denseblock{stage}.denselayer{layer}.conv{n}", "stage{stage}_layer{layer}/conv{n}", conv),
    ("features.transition{n}.norm", "transition{n}/norm", batch_norm),
    ("features.transition{n}.conv", "transition{n}/conv", conv),
    ("features.norm5", "norm_final", batch_norm),
    ("classifier", "head", dense),
)

_BLOCKS = {1: "dense_block_layer_0", 2: "dense_block_layer_1", 3: "dense_block_layer_2", 4: "dense_block3"}

DENSENET_TFKD = (
    ("conv1", "conv_stem", conv),
    *(
        (f"features.{block}.bottle_neck_layer_{{layer}}.bottle_neck.{i}", f"stage{stage}_layer{{layer}}/{name}", kind)
        for stage, block in _BLOCKS.items()
        for i, name, kind in (
            (0, "norm1", batch_norm),
            (2, "conv1", conv),
            (3, "norm2", batch_norm),
            (5, "conv2", conv),
        )
    ),
    *(
        (f"features.transition_layer_{n}.down_sample.{i}", f"transition{n + 1}/{name}", kind)
        for n in range(3)
        for i, name, kind in ((0, "norm", batch_norm), (1, "conv", conv))
    ),
    ("features.bn", "norm_final", batch_norm),
    ("linear", "head", dense),
)

TABLES = {
    name: DENSENET_TFKD if name.endswith("_tfkd") else DENSENET
    for name, family in MODELS.items()
    if family == "densenet"
}
