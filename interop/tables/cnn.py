"""The plain convolutional student of teacher-free distillation."""

from interop.layers import batch_norm, conv, dense, flatten_dense

CNN = (
    ("conv{n}", "conv{n}", conv),
    ("bn{n}", "norm{n}", batch_norm),
    ("fc1", "dense1", flatten_dense),
    ("fcbn1", "norm_dense1", batch_norm),
    ("fc2", "head", dense),
)

TABLES = {"cnn": CNN, "cnn_tiny": CNN}
