"""PyTorch on one side, jaxkit on the other: what both must agree on."""
