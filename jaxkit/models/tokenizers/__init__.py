"""The tokenizers of images by name: ``TOKENIZERS[name]`` is the file and the class, imported when it is built."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxkit.models.tokenizers.tokenizer import Tokenizer

TOKENIZERS = {
    "vqgan": ("vqgan", "VQGAN"),
    "movq": ("vqgan", "MoVQ"),
    "maskgit_vqgan": ("maskgit_vqgan", "MaskGitVQGAN"),
    "paella_vq": ("paella", "PaellaVQ"),
}


def build(name: str, **fields) -> "Tokenizer":
    """Builds the linen module called ``name``; ``fields`` are its attributes, such as ``num_embeddings``.

    The lists of a config.json become tuples: a module must be hashable to be a static argument.
    """
    module, kind = TOKENIZERS[name]
    fields = {field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()}
    return getattr(import_module(f"jaxkit.models.tokenizers.{module}"), kind)(**fields)
