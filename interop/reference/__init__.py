"""Small torch networks under the key names their weights are published with, for cross-checks against jaxkit's."""

from importlib import import_module
from typing import TYPE_CHECKING

from jaxkit.models import MODELS

if TYPE_CHECKING:
    import torch


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], **fields) -> "torch.nn.Module":
    """Builds the torch twin of the model called ``name`` for images of shape (h, w, c), given to it as [b c h w].

    ``fields`` are the model's own: ``dropout_rate``, ``compat``.
    """
    return getattr(import_module(f"interop.reference.{MODELS[name]}"), name)(num_classes, image_shape, **fields)
