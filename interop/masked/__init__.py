"""Masked-image models, which a config.json describes: folders of open-muse, diffusers, transformers; Google's files."""
