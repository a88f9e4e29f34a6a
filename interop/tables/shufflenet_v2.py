"""ShuffleNet V2 as torchvision, teacher-free distillation and RepDistiller name it."""

from interop.engine import Table
from interop.layers import batch_norm, conv, dense
from interop.tables.mobilenet_v2 import block_rows
from jaxkit.models import MODELS

_SHORT = ("conv_proj1", "norm_proj1", "conv_proj2", "norm_proj2")
_LONG = ("conv1", "norm1", "conv2", "norm2", "conv3", "norm3")


def sequences(stem: str, short: str, long: str) -> Table:
    """Lists the rows of a network whose branches are torch sequences, in stages numbered from 2."""
    return (
        (f"{stem}.0", "conv_stem", conv),
        (f"{stem}.1", "norm_stem", batch_norm),
        *(
            row
            for stage in (1, 2, 3)
            for branch, numbers, layers in ((short, (0, 1, 2, 3), _SHORT), (long, (0, 1, 3, 4, 5, 6), _LONG))
            for row in block_rows(
                f"stage{stage + 1}.{{block}}.{branch}", f"stage{stage}_block{{block}}", numbers, layers
            )
        ),
        ("conv5.0", "conv_last", conv),
        ("conv5.1", "norm_last", batch_norm),
        ("fc", "head", dense),
    )


TORCHVISION = sequences("conv1", "branch1", "branch2")
TFKD = sequences("pre", "shortcut", "residual")

# The convolutions of a first block, which strides, are numbered otherwise than those of the others.
_FIRST = ((1, "_proj1"), (2, "_proj2"), (3, "1"), (4, "2"), (5, "3"))
_OTHER = ((1, "1"), (2, "2"), (3, "3"))
REPDISTILLER = (
    ("conv1", "conv_stem", conv),
    ("bn1", "norm_stem", batch_norm),
    *(
        (f"layer{{stage}}.{block}.{torch}{n}", f"stage{{stage}}_block{block}/{flax}{layer}", kind)
        for block in range(8)
        for n, layer in (_OTHER if block else _FIRST)
        for torch, flax, kind in (("conv", "conv", conv), ("bn", "norm", batch_norm))
    ),
    ("conv2", "conv_last", conv),
    ("bn2", "norm_last", batch_norm),
    ("linear", "head", dense),
)

TABLES = {
    name: {"tfkd": TFKD, "repdistiller": REPDISTILLER}.get(name.rpartition("_")[2], TORCHVISION)
    for name, family in MODELS.items()
    if family == "shufflenet_v2"
}
