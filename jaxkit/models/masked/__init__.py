"""Transformers that predict masked image tokens, by name: ``TRANSFORMERS[name]`` is where each is defined.

``maskgit_transformer`` and ``uvit`` are open-muse's (the latter is also diffusers' ``UVit2DModel``: aMUSEd);
``maskgit_bert`` is Google's. Tokens are [b h w] and logits [b h w k], on grids of any shape. ``config.from_config``
builds the one that a config.json describes.
"""

from importlib import import_module

TRANSFORMERS = {
    "maskgit_transformer": ("transformer", "MaskGitTransformer"),
    "uvit": ("uvit", "MaskGiTUViT"),
    "maskgit_bert": ("bert", "MaskGitBert"),
}


def transformer_class(name: str) -> type:
    """Imports the linen module called ``name``."""
    file, class_name = TRANSFORMERS[name]
    return getattr(import_module(f"jaxkit.models.masked.{file}"), class_name)
