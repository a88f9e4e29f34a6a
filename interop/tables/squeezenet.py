"""SqueezeNet as torchvision names it."""

from interop.layers import conv


def _table(sizes):
    """Rows for so many fire modules a stage; torch counts the maximum before each stage as well."""
    fires, position = [], 2
    for stage, size in enumerate(sizes, start=1):
        fires += [(f"features.{position + 1 + i}", f"stage{stage}_fire{i}") for i in range(size)]
        position += 1 + size
    return (
        ("features.0", "conv_stem", conv),
        *((f"{torch}.squeeze", f"{flax}/squeeze", conv) for torch, flax in fires),
        *((f"{torch}.expand{{n}}x{{m}}", f"{flax}/expand{{n}}x{{m}}", conv) for torch, flax in fires),
        ("classifier.1", "head", conv),
    )


TABLES = {
    "squeezenet1_0": _table((3, 4, 1)),
    "squeezenet1_1": _table((2, 2, 4)),
    "squeezenet_tiny": _table((2, 1, 1)),
}
