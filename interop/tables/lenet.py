"""LeNet-5 as SWEEN names it."""

from interop.layers import conv, dense, flatten_dense

LENET = (
    ("conv_{n}", "conv{n}", conv),
    ("fc_1", "dense1", flatten_dense),
    ("fc_2", "dense2", dense),
    ("fc_3", "head", dense),
)

TABLES = {"lenet": LENET, "lenet_tiny": LENET}
