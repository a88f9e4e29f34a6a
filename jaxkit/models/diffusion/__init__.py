"""Stable Diffusion 1, 2 and XL in linen: CLIP's text encoder, UNet and autoencoder, exact to torch.

Parameters have the names and layouts of diffusers' and transformers' Flax classes; ``config.from_config`` builds the
module that a config.json describes, ``backend.build`` a whole pipeline's, of these modules or of theirs.
"""
