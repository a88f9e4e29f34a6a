"""Wide residual networks as RepDistiller and TfKD name them."""

from interop.layers import batch_norm, conv, dense
from jaxkit.models import MODELS

WIDE_RESNET = (
    ("conv1", "conv_stem", conv),
    ("block{stage}.layer.{block}.bn{n}", "stage{stage}_block{block}/norm{n}", batch_norm),
    ("block{stage}.layer.{block}.conv{n}", "stage{stage}_block{block}/conv{n}", conv),
    ("block{stage}.layer.{block}.convShortcut", "stage{stage}_block{block}/conv_proj", conv),
    ("bn1", "norm_head", batch_norm),
    ("fc", "head", dense),
)

TABLES = {name: WIDE_RESNET for name, family in MODELS.items() if family == "wide_resnet"}
