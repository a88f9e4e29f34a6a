"""MnasNet as torchvision names it."""

from interop.layers import batch_norm, conv, dense
from interop.tables.mobilenet_v2 import LAYERS, SEQUENCE, block_rows
from jaxkit.models import MODELS

MNASNET = (
    ("layers.0", "conv_stem", conv),
    ("layers.1", "norm_stem", batch_norm),
    *block_rows("layers", "stage1_block0", (3, 4, 6, 7), LAYERS[2:]),
    *(
        row
        for stage in range(2, 8)
        for row in block_rows(f"layers.{stage + 6}.{{block}}.layers", f"stage{stage}_block{{block}}", SEQUENCE)
    ),
    ("layers.14", "conv_last", conv),
    ("layers.15", "norm_last", batch_norm),
    ("classifier.1", "head", dense),
)

TABLES = {name: MNASNET for name, family in MODELS.items() if family == "mnasnet"}
