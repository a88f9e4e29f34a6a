"""GoogLeNet under the names of torchvision, and of teacher-free distillation."""

from interop.layers import batch_norm, conv, dense, flatten_dense

GOOGLENET = (
    ("conv{n}.conv", "conv{n}/conv", conv),
    ("conv{n}.bn", "conv{n}/norm", batch_norm),
    *(
        (f"inception{{stage}}{letter}.{branch}.{leaf}", f"inception{{stage}}{letter}/{unit}/{name}", kind)
        for letter in "abcde"
        for branch, unit in (
            ("branch1", "conv1x1"),
            ("branch2.0", "reduce3x3"),
            ("branch2.1", "conv3x3"),
            ("branch3.0", "reduce5x5"),
            ("branch3.1", "conv5x5"),
            ("branch4.1", "pool_proj"),
        )
        for leaf, name, kind in (("conv", "conv", conv), ("bn", "norm", batch_norm))
    ),
    ("aux{n}.conv.conv", "aux{n}/conv/conv", conv),
    ("aux{n}.conv.bn", "aux{n}/conv/norm", batch_norm),
    ("aux{n}.fc1", "aux{n}/dense1", flatten_dense),
    ("aux{n}.fc2", "aux{n}/head", dense),
    ("fc", "head", dense),
)

GOOGLENET_TFKD = (
    ("prelayer.0", "conv1/conv", conv),
    ("prelayer.1", "conv1/norm", batch_norm),
    *(
        (f"{letter}{{stage}}.b{branch}.{first + i}", f"inception{{stage}}{letter}/{unit}/{name}", kind)
        for letter in "abcde"
        for branch, first, unit in (
            (1, 0, "conv1x1"),
            (2, 0, "reduce3x3"),
            (2, 3, "conv3x3"),
            (3, 0, "reduce5x5"),
            (3, 3, "conv5x5"),
            (3, 6, "conv5x5_2"),
            (4, 1, "pool_proj"),
        )
        for i, name, kind in ((0, "conv", conv), (1, "norm", batch_norm))
    ),
    ("linear", "head", dense),
)

TABLES = {
    "googlenet": GOOGLENET,
    "googlenet_aux": GOOGLENET,
    "googlenet_tiny": GOOGLENET,
    "googlenet_tfkd": GOOGLENET_TFKD,
    "googlenet_tiny_tfkd": GOOGLENET_TFKD,
}
