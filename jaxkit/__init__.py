"""Five PyTorch systems in JAX/Flax, trained by one compiled loop."""

__version__ = "0.1.0"
