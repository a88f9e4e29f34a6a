"""Residual networks: the names of torchvision and RepDistiller, and kuangliu's of the CIFAR variants."""

from interop.layers import batch_norm, conv, dense
from jaxkit.models import MODELS

_BODY = (
    ("conv1", "conv_stem", conv),
    ("bn1", "norm_stem", batch_norm),
    ("layer{stage}.{block}.conv{n}", "stage{stage}_block{block}/conv{n}", conv),
    ("layer{stage}.{block}.bn{n}", "stage{stage}_block{block}/norm{n}", batch_norm),
)

RESNET = (
    *_BODY,
    ("layer{stage}.{block}.downsample.0", "stage{stage}_block{block}/conv_proj", conv),
    ("layer{stage}.{block}.downsample.1", "stage{stage}_block{block}/norm_proj", batch_norm),
    ("fc", "head", dense),
)

RESNET_CIFAR = (
    *_BODY,
    ("layer{stage}.{block}.shortcut.0", "stage{stage}_block{block}/conv_proj", conv),
    ("layer{stage}.{block}.shortcut.1", "stage{stage}_block{block}/norm_proj", batch_norm),
    ("linear", "head", dense),
)

# One class of ours, two of the field's: with the small stem, weights are published under kuangliu's names.
TABLES = {
    name: RESNET_CIFAR if name.endswith("_cifar") else RESNET for name, family in MODELS.items() if family == "resnet"
}
