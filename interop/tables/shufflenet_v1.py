"""ShuffleNet as RepDistiller names it."""

from interop.layers import batch_norm, conv, dense

SHUFFLENET = (
    ("conv1", "conv_stem", conv),
    ("bn1", "norm_stem", batch_norm),
    ("layer{stage}.{block}.conv{n}", "stage{stage}_block{block}/conv{n}", conv),
    ("layer{stage}.{block}.bn{n}", "stage{stage}_block{block}/norm{n}", batch_norm),
    ("linear", "head", dense),
)

TABLES = {"shufflenet_v1": SHUFFLENET, "shufflenet_v1_tiny": SHUFFLENET}
