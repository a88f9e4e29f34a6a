"""A network of Stable Diffusion and its torch twin, which diffusers or transformers builds of the same config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax import linen as nn
from jaxtyping import Array

from interop.diffusion.folders import load_part
from interop.diffusion.layouts import architecture_of
from interop.engine import to_torch
from interop.parity.zoo import Twins, randomise
from interop.report.difference import PRECISIONS
from jaxkit.errors import ConfigError
from jaxkit.models.diffusion.clip_text import ClipText
from jaxkit.models.diffusion.config import class_of, from_config
from jaxkit.models.diffusion.unet import Added, UNet

# few, for a comparison is to take a minute: texts of some tokens, and maps of 2 x 2 at the lowest resolution
_TOKENS, _LOWEST = 6, 2


class Flat(nn.Module):
    """A network that takes arrays alone, and returns what torch's returns first; its variables are the network's."""

    net: nn.Module

    def setup(self):
        nn.share_scope(self, self.net)

    def __call__(self, *inputs: Array) -> Array:
        if isinstance(self.net, UNet) and len(inputs) > 3:
            return self.net(*inputs[:3], Added(*inputs[3:]))
        found = self.net(*inputs)
        if isinstance(self.net, ClipText):
            return found.pooled if self.net.with_projection else found.last
        return found


def diffusion_twins(
    config: Mapping[str, Any], weights: Path | None, image_size: int | None, batch: int, seed: int, dtype: str
) -> Twins:
    """Builds both networks of a config.json, torch's with its weights, and draws inputs.

    Args:
        config: of a UNet, an autoencoder or a text encoder.
        weights: the network's folder; None: random weights.
        image_size: side of the latents or images; None: as small as the network can be given.
        batch: how many examples.
        seed: of weights and inputs.
        dtype: of our arithmetic: f32, bf16 or f16.

    Raises:
        ConfigError: if there is no such network, or it is given no images and ``image_size`` is.
        WeightsError, FileError: as :func:`interop.diffusion.folders.load_part`.
    """
    module, table = from_config(config, dtype=PRECISIONS[dtype].numpy), architecture_of(config).table
    torch.manual_seed(seed)
    net = _of_torch(config)
    if weights is None:
        randomise(net)
    else:
        if not weights.is_dir():
            raise ConfigError(f"--weights {weights}: give the folder that has the network's config.json and weights")
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), load_part(weights).variables)
        given = {key: torch.from_numpy(array) for key, array in to_torch(variables, table).items()}
        net.load_state_dict(net.state_dict() | given)
    if isinstance(module, UNet) and module.addition_embed_type is not None:
        net.register_forward_pre_hook(_told, with_kwargs=True)
    return Twins(net, Flat(module), table, _inputs(module, image_size, batch, np.random.default_rng(seed)))


def _of_torch(config: Mapping[str, Any]) -> torch.nn.Module:
    name = class_of(config).removeprefix("Flax")
    if name.startswith("CLIP"):
        import transformers

        return getattr(transformers, name)(transformers.CLIPTextConfig(**config))
    import diffusers

    return getattr(diffusers, name).from_config({**config, "_class_name": name})


def _told(_: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Puts what Stable Diffusion XL is told besides where diffusers' UNet looks for it."""
    *args, pooled, sizes = args
    return tuple(args), {**kwargs, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}


def _inputs(module: nn.Module, image_size: int | None, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    if isinstance(module, ClipText):
        if image_size is not None:
            raise ConfigError(f"--image-size {image_size}: a text encoder is given texts; leave it out")
        return (rng.integers(0, module.vocab_size, (batch, min(_TOKENS, module.max_position_embeddings))),)
    side = image_size or _LOWEST * 2 ** (len(module.block_out_channels) - 1)
    images = normal(batch, side, side, module.in_channels)
    if not isinstance(module, UNet):
        return (images,)
    inputs = (images, rng.integers(0, 1000, batch), normal(batch, _TOKENS, module.cross_attention_dim))
    if module.addition_embed_type is None:
        return inputs
    # two sizes and a corner
    sizes = rng.integers(0, 1024, (batch, 6))
    rest = module.projection_class_embeddings_input_dim - sizes.shape[1] * module.addition_time_embed_dim
    return (*inputs, normal(batch, rest), sizes)
