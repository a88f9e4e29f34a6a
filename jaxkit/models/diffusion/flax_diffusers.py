"""The Flax classes of diffusers 0.39 and transformers 4.57, called as ours are, and what they would compute wrongly."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax.typing import Dtype

from jaxkit.errors import ConfigError, UserError
from jaxkit.models.diffusion.autoencoder import AutoencoderKL
from jaxkit.models.diffusion.clip_text import TextStates
from jaxkit.models.diffusion.config import class_of, from_config

Config = Mapping[str, Any]
# what their UNet and autoencoder compute whatever these keys say
_FIXED = {
    "norm_num_groups": 32,
    "center_input_sample": False,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "time_embedding_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "reverse_transformer_layers_per_block": None,
}
_VAE_FIXED = {"use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True}
_INSTEAD = "take the backend 'native', which computes it"


def refusals(config: Config, dtype: Dtype = jnp.float32) -> list[str]:
    """Lists what a config.json asks for that the Flax classes of diffusers ignore or cannot do, and what to do.

    Raises ConfigError for a config that is none of Stable Diffusion's, or has keys that are not computed here either.
    """
    name, module = class_of(config), from_config(config)
    if name.startswith("CLIP"):
        return []
    vae = isinstance(module, AutoencoderKL)
    found = [
        f"{key} {config[key]!r}, where diffusers' Flax class computes {value!r}"
        for key, value in (_VAE_FIXED if vae else _FIXED).items()
        if config.get(key, value) != value
    ]
    if isinstance(config.get("layers_per_block"), list | tuple):
        found.append(f"layers_per_block {config['layers_per_block']!r}, where diffusers' Flax class takes one number")
    if config.get("upcast_attention") and jnp.dtype(dtype) != jnp.float32:
        found.append(f"upcast_attention, where diffusers' Flax class computes the softmax in {jnp.dtype(dtype)}")
    return [f"{name}: {fault}: {_INSTEAD}" for fault in found]


def functions(
    text: Sequence[Config],
    unet: Config,
    vae: Config,
    ends: Sequence[int | None],
    *,
    dtype: Dtype,
    vae_dtype: Dtype,
    text_dtype: Dtype,
    remat: str,
    attention: str | None,
) -> tuple:
    """Builds the fields of :class:`jaxkit.models.diffusion.backend.Models` in order; arguments as ``build`` there.

    Raises:
        ConfigError: for what :func:`refusals` lists, and ways to run a network that they have not.
        UserError: without the packages.
    """
    faults = [fault for config in (*text, unet, vae) for fault in refusals(config, dtype)]
    if remat != "none":
        faults.append(f"remat {remat!r}: {_INSTEAD}")
    if attention == "cudnn":
        faults.append(f"attention 'cudnn': {_INSTEAD}")
    if faults:
        raise ConfigError("; ".join(faults))
    try:
        from diffusers.utils import logging

        # every class says that it is deprecated when it is imported, and every layer when it is made
        logging.set_verbosity_error()
        from diffusers import FlaxAutoencoderKL, FlaxUNet2DConditionModel
    except ImportError as error:
        raise UserError(f"the backend 'diffusers' needs {error.name}: pip install 'jaxkit[diffusion]'") from error
    chunked = {"use_memory_efficient_attention": attention == "chunked", "split_head_dim": False}
    ours = from_config(vae)
    return (
        tuple(_text(config, end, text_dtype) for config, end in zip(text, ends, strict=True)),
        _unet(_built(FlaxUNet2DConditionModel, {**unet, **chunked}, dtype)),
        *_autoencoder(_built(FlaxAutoencoderKL, vae, vae_dtype)),
        ours.scaling_factor,
        ours.reduction,
    )


def _built(kind: type, config: Config, dtype: Dtype) -> Any:
    """A module with the fields that a config.json has for it."""
    names = {field.name for field in fields(kind)} - {"dtype", "parent", "name"}
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key in names}
    return kind(**values, dtype=dtype)


def _unet(module: Any) -> Callable:
    def apply(variables, x, timesteps, context, added=None):
        told = None if added is None else added._asdict()
        x = rearrange(x, "b h w c -> b c h w")
        y = module.apply(variables, x, timesteps, context, told).sample
        return rearrange(y, "b c h w -> b h w c").astype(jnp.float32)

    return apply


def _autoencoder(module: Any) -> tuple[Callable, Callable]:
    def encode(variables, x):
        found = module.apply(variables, rearrange(x, "b h w c -> b c h w"), method=module.encode).latent_dist
        return found.mean.astype(jnp.float32), found.logvar.astype(jnp.float32)

    def decode(variables, z):
        # it turns what has other than the latents' channels last; this never has
        y = module.apply(variables, z, method=module.decode).sample
        return rearrange(y, "b c h w -> b h w c").astype(jnp.float32)

    return encode, decode


def _text(config: Config, end: int | None, dtype: Dtype) -> Callable:
    try:
        from transformers import CLIPTextConfig
        from transformers.models.clip import modeling_flax_clip as clip
    except ImportError as error:
        raise UserError(f"the backend 'diffusers' needs transformers<5: {error}") from error
    projected = class_of(config) == "CLIPTextModelWithProjection"
    kind = clip.FlaxCLIPTextModelWithProjectionModule if projected else clip.FlaxCLIPTextModule
    settings = {**config} if end is None else {**config, "eos_token_id": end}

    def apply(variables, ids, rows=None):
        table = variables["params"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
        if rows is not None:
            # theirs has one table, of as many rows as its config says
            table = jnp.concatenate([table.astype(rows.dtype), rows])
        module = kind(CLIPTextConfig(**{**settings, "vocab_size": len(table)}), dtype)
        inputs = (ids, jnp.ones_like(ids), jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape))
        found = module.apply(_with_table(variables, table), *inputs, True, False, True)
        pooled = found.text_embeds if projected else found.pooler_output
        states = (found.last_hidden_state, found.hidden_states[-2], pooled)
        return TextStates(*(state.astype(jnp.float32) for state in states))

    return apply


def _with_table(variables: Mapping[str, Any], table: Any) -> dict[str, Any]:
    """The variables of a text encoder with another table of tokens."""
    text = variables["params"]["text_model"]
    embeddings = {**text["embeddings"], "token_embedding": {"embedding": table}}
    return {"params": {**variables["params"], "text_model": {**text, "embeddings": embeddings}}}
