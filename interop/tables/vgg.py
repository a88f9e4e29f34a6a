"""VGG: torchvision's and SWEEN's chains of numbered layers, and RepDistiller's blocks."""

from interop.layers import batch_norm, conv, dense, flatten_dense
from jaxkit.models import MODELS

# Convolutions in each block, by the first part of the name.
_SIZES = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
    "vgg": (1, 2, 1, 1, 1),
}

_HEAD = (
    ("classifier.0", "dense1", flatten_dense),
    ("classifier.3", "dense2", dense),
    ("classifier.6", "head", dense),
)

REPDISTILLER = (
    *((f"block{{b}}.{3 * n}", f"block{{b}}/conv{n + 1}", conv) for n in range(4)),
    *((f"block{{b}}.{3 * n + 1}", f"block{{b}}/norm{n + 1}", batch_norm) for n in range(4)),
    ("classifier", "head", dense),
)


def _features(sizes, normalized):
    """Counts through the layers as torch does: convolution, norm, ReLU, and a maximum at the end of each block."""
    rows, position = [], 0
    for block, size in enumerate(sizes):
        for n in range(1, size + 1):
            rows.append((f"features.{position}", f"block{block}/conv{n}", conv))
            if normalized:
                rows.append((f"features.{position + 1}", f"block{block}/norm{n}", batch_norm))
            position += 3 if normalized else 2
        position += 1
    return tuple(rows)


def _table(name):
    sizes = _SIZES.get(name.split("_")[0])
    if name.endswith("_repdistiller"):
        return REPDISTILLER
    if name.endswith("_sween"):
        return (*_features(sizes, normalized=True), ("classifier", "head", dense))
    return (*_features(sizes, normalized=name.endswith("_bn")), *_HEAD)


TABLES = {name: _table(name) for name, family in MODELS.items() if family == "vgg"}
