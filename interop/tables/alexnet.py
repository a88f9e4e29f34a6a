"""AlexNet: the names of torchvision, TfKD and SWEEN."""

from interop.layers import conv, dense, flatten_dense

_CONVOLUTIONS = tuple(
    (f"features.{position}", f"conv{n}", conv) for n, position in enumerate((0, 3, 6, 8, 10), start=1)
)

ALEXNET = (
    *_CONVOLUTIONS,
    ("classifier.1", "dense1", flatten_dense),
    ("classifier.4", "dense2", dense),
    ("classifier.6", "head", dense),
)
TFKD = (*_CONVOLUTIONS, ("classifier", "head", dense))
SWEEN = (*_CONVOLUTIONS, ("fc", "head", dense))

TABLES = {
    "alexnet": ALEXNET,
    "alexnet_tiny": ALEXNET,
    "alexnet_tfkd": TFKD,
    "alexnet_tiny_tfkd": TFKD,
    "alexnet_sween": SWEEN,
}
