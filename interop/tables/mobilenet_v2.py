"""MobileNetV2 as torchvision, teacher-free distillation and RepDistiller name it.

Torchvision numbers the blocks of all stages through, RepDistiller numbers the stages from 0, and teacher-free
distillation does not number the block of a stage that has one.
"""

from interop.engine import Table
from interop.layers import batch_norm, conv, dense

LAYERS = ("conv_expand", "norm_expand", "conv_depthwise", "norm_depthwise", "conv_project", "norm_project")
# Their numbers in a sequence with the two activations.
SEQUENCE = (0, 1, 3, 4, 6, 7)


def block_rows(torch: str, flax: str, names: tuple[str | int, ...], layers: tuple[str, ...] = LAYERS) -> Table:
    """Lists the rows of a block: its layers and torch's names for them."""
    kinds = {"conv": conv, "norm": batch_norm}
    return tuple(
        (f"{torch}.{name}", f"{flax}/{layer}", kinds[layer[:4]]) for name, layer in zip(names, layers, strict=True)
    )


def torchvision(sizes: tuple[int, ...]) -> Table:
    """Lists torchvision's rows for stages of ``sizes`` blocks, of which the first does not expand."""
    blocks = [f"stage{stage}_block{block}" for stage, size in enumerate(sizes, start=1) for block in range(size)]
    return (
        ("features.0.0", "conv_stem", conv),
        ("features.0.1", "norm_stem", batch_norm),
        *block_rows("features.1.conv", blocks[0], ("0.0", "0.1", "1", "2"), LAYERS[2:]),
        *(
            row
            for i, block in enumerate(blocks[1:], start=2)
            for row in block_rows(f"features.{i}.conv", block, ("0.0", "0.1", "1.0", "1.1", "2", "3"))
        ),
        (f"features.{len(blocks) + 1}.0", "conv_last", conv),
        (f"features.{len(blocks) + 1}.1", "norm_last", batch_norm),
        ("classifier.1", "head", dense),
    )


def tfkd(sizes: tuple[int, ...]) -> Table:
    """Lists the rows of teacher-free distillation for stages of ``sizes`` blocks."""
    return (
        ("pre.0", "conv_stem", conv),
        ("pre.1", "norm_stem", batch_norm),
        *(
            row
            for stage, size in enumerate(sizes, start=1)
            for row in (
                block_rows(f"stage{stage}.residual", f"stage{stage}_block0", SEQUENCE)
                if size == 1
                else block_rows(f"stage{stage}.{{block}}.residual", f"stage{stage}_block{{block}}", SEQUENCE)
            )
        ),
        ("conv1.0", "conv_last", conv),
        ("conv1.1", "norm_last", batch_norm),
        ("conv2", "head", conv),
    )


REPDISTILLER = (
    ("conv1.0", "conv_stem", conv),
    ("conv1.1", "norm_stem", batch_norm),
    *(
        row
        for stage in range(1, 8)
        for row in block_rows(f"blocks.{stage - 1}.{{block}}.conv", f"stage{stage}_block{{block}}", SEQUENCE)
    ),
    ("conv2.0", "conv_last", conv),
    ("conv2.1", "norm_last", batch_norm),
    ("classifier.0", "head", dense),
)

_SIZES = (1, 2, 3, 4, 3, 3, 1)
TABLES = {
    "mobilenet_v2": torchvision(_SIZES),
    "mobilenet_v2_tiny": torchvision((1, 2, 1, 1)),
    "mobilenet_v2_tfkd": tfkd(_SIZES),
    "mobilenet_v2_tiny_tfkd": tfkd((1, 2, 1)),
    "mobile_half": REPDISTILLER,
    "mobile_tiny": REPDISTILLER,
}
