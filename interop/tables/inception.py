"""Inception v3 under torchvision's names."""

from interop.layers import batch_norm, conv, dense

_STEM = {"1a_3x3": "1a", "2a_3x3": "2a", "2b_3x3": "2b", "3b_1x1": "3b", "4a_3x3": "4a"}
_BRANCHES = (
    "branch_pool",
    "branch{h}x{w}",
    "branch{h}x{w}_{i}",
    "branch{h}x{w}_{i}a",
    "branch{h}x{w}_{i}b",
    "branch{h}x{w}dbl_{i}",
    "branch{h}x{w}dbl_{i}a",
    "branch{h}x{w}dbl_{i}b",
    "branch{h}x{w}x{n}_{i}",
)
_UNITS = (
    *((f"Conv2d_{theirs}", f"conv_{ours}") for theirs, ours in _STEM.items()),
    *(
        (f"Mixed_{{stage}}{letter}.{branch}", f"mixed_{{stage}}{letter}/{branch}")
        for letter in "abcde"
        for branch in _BRANCHES
    ),
    ("AuxLogits.conv{i}", "aux1/conv{i}"),
)

INCEPTION = (
    *((f"{theirs}.conv", f"{ours}/conv", conv) for theirs, ours in _UNITS),
    *((f"{theirs}.bn", f"{ours}/norm", batch_norm) for theirs, ours in _UNITS),
    ("AuxLogits.fc", "aux1/head", dense),
    ("fc", "head", dense),
)

TABLES = {"inception_v3": INCEPTION, "inception_v3_aux": INCEPTION, "inception_tiny": INCEPTION}
