"""The config.json of every part of a Stable Diffusion that is trained from scratch."""

from typing import Any

from flax import linen as nn

from jaxkit.errors import ConfigError
from jaxkit.models.diffusion.config import from_config, shapes
from jaxkit.schema.text_to_image import TextToImage
from jaxkit.tasks.latents import config_of

# as Stable Diffusion's
_SCHEDULER = {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def configs(config: TextToImage, image_shape: tuple[int, int, int], captions: Any) -> dict[str, dict[str, Any]]:
    """The config.json of each part, with the sizes that follow from the data and from the other parts.

    Raises:
        ConfigError: for a key that another one, or the data, decides otherwise.
    """
    autoencoder = config.autoencoder.model
    side = latent_shape(config, image_shape)[0]
    text = {
        "architectures": ["CLIPTextModel"],
        "vocab_size": captions.vocabulary,
        "max_position_embeddings": captions.length,
        # of a CLIP tokenizer made here the marks are the last two words
        "bos_token_id": captions.vocabulary - 2,
        "eos_token_id": captions.vocabulary - 1,
        "pad_token_id": captions.padding,
    }
    width = config.text_encoder.get("hidden_size", 512)
    unet = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": side,
        "in_channels": autoencoder.latent_channels,
        "out_channels": autoencoder.latent_channels,
        "cross_attention_dim": width,
        "addition_embed_type": None,
    }
    for name, filled in (("text_encoder", text), ("unet", unet), ("scheduler", {"_class_name": "DDIMScheduler"})):
        given = getattr(config, name)
        for key in given.keys() & filled.keys():
            if given[key] != filled[key]:
                raise ConfigError(f"task.{name}.{key}: is {given[key]!r}, but follows from the rest: {filled[key]!r}")
    return {
        "text_encoder": text | config.text_encoder,
        "unet": unet | config.unet,
        "vae": config_of(autoencoder) | {"sample_size": image_shape[0]},
        "scheduler": _SCHEDULER | config.scheduler,
    }


def module_of(name: str, config: dict[str, Any]) -> nn.Module:
    """The module of a part's config. Raises ConfigError if there is none such."""
    try:
        module = from_config(config)
        shapes(module)
    except ConfigError as error:
        raise ConfigError(f"task.{name}: {error}") from error
    return module


def latent_shape(config: TextToImage, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Height, width and channels of an image's latents. Raises ConfigError for images that cannot be so reduced."""
    model = config.autoencoder.model
    reduction = 2 ** (len(model.block_out_channels) - 1)
    height, width, channels = image_shape
    if height % reduction or width % reduction:
        raise ConfigError(
            f"data.image_size: images of {height} x {width} are not reduced by {reduction}; give a multiple of it"
        )
    if channels != model.in_channels:
        raise ConfigError(
            f"data.channels: the autoencoder is of {model.in_channels} channels, but the images have {channels}"
        )
    return height // reduction, width // reduction, model.latent_channels
