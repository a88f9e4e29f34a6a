"""The networks of Stable Diffusion as functions of their variables, from either of two libraries of modules."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float, Real

from jaxkit.models.diffusion.attention import Implementation
from jaxkit.models.diffusion.blocks import Remat
from jaxkit.models.diffusion.clip_text import TextStates
from jaxkit.models.diffusion.config import from_config
from jaxkit.models.diffusion.unet import Added

Backend = Literal["diffusers", "native"]
Config = Mapping[str, Any]


class Models(NamedTuple):
    """Pure functions; maps are channels last and float32. Both backends take the same variables."""

    text: tuple[Callable, ...]
    """Of each text encoder: ``(variables, ids [b t], rows [n d] | None) -> TextStates``."""
    unet: Callable
    """``(variables, latents [b h w c], timesteps [b], context [b t d], Added | None) -> [b h w c]``."""
    encode: Callable
    """``(variables, images [b h w 3] in [-1, 1]) -> mean, logvar``, both [b h w c] and not scaled."""
    decode: Callable
    """``(variables, latents [b h w c], not scaled) -> images [b h w 3]``."""
    scaling_factor: float
    """What diffusion multiplies the latents by."""
    reduction: int
    """Pixels along a latent's side."""


def build(
    backend: Backend,
    text: Sequence[Config],
    unet: Config,
    vae: Config,
    *,
    dtype: Dtype = jnp.float32,
    text_dtype: Dtype | None = None,
    vae_dtype: Dtype | None = None,
    remat: Remat = "none",
    attention: Implementation | None = None,
    eos_token_ids: Sequence[int] | None = None,
) -> Models:
    """Builds the networks that the config.json files of a pipeline describe.

    Args:
        backend: ``native``, the modules beside this file; or ``diffusers``, the Flax classes of diffusers 0.39 and
            transformers 4.57, which are not exact (6e-5 in UNets of random weights).
        text: of the text encoders, one, or two of Stable Diffusion XL.
        unet: of the UNet.
        vae: of the autoencoder.
        dtype: of the arithmetic. In float16 the autoencoder stays in float32 where its config has ``force_upcast``.
        text_dtype: the same of the text encoders; None: ``dtype``.
        vae_dtype: the same of the autoencoder; None: as said of ``dtype``.
        remat: what the backward pass computes again; of ``diffusers`` only ``none``.
        attention: how attention is computed; of ``diffusers`` ``chunked`` and ``xla``.
        eos_token_ids: the token at which each text encoder's pooled state is taken. By default as its config says,
            which in released ones is the largest token, be it a new word.

    Raises:
        ConfigError: for a network that the backend does not compute as torch does, key by key.
    """
    ends = eos_token_ids or [None] * len(text)
    exact = jnp.dtype(dtype) == jnp.float16 and vae.get("force_upcast", True)
    types = {
        "dtype": dtype,
        "vae_dtype": vae_dtype or (jnp.float32 if exact else dtype),
        "text_dtype": dtype if text_dtype is None else text_dtype,
    }
    if backend == "native":
        return _native(text, unet, vae, ends, remat=remat, attention=attention, **types)
    # diffusers takes seconds to import
    from jaxkit.models.diffusion import flax_diffusers

    return Models(*flax_diffusers.functions(text, unet, vae, ends, remat=remat, attention=attention, **types))


def condition(
    states: Sequence[TextStates], time_ids: Real[Array, "b m"] | None = None
) -> tuple[Float[Array, "b t d"], Added | None]:
    """Makes of what the text encoders say the context of the UNet, and what Stable Diffusion XL is told besides.

    Without ``time_ids`` the context is the last states of the one encoder, as of Stable Diffusion 1 and 2; with them
    the states before the last layer of all encoders side by side, and the pooled text is the last encoder's.

    Raises ValueError for several encoders without ``time_ids``.

    Source: Podell et al., "SDXL", ICLR 2024, sections 2.1 and 2.2.
    """
    if time_ids is None:
        (state,) = states
        return state.last, None
    return jnp.concatenate([state.penultimate for state in states], axis=-1), Added(states[-1].pooled, time_ids)


def _native(text, unet, vae, ends, *, dtype, vae_dtype, text_dtype, remat, attention) -> Models:
    encoders = [
        from_config(config, eos_token_id=end, dtype=text_dtype, remat=remat)
        for config, end in zip(text, ends, strict=True)
    ]
    network = from_config(unet, dtype=dtype, remat=remat, attention=attention)
    # a head as wide as its map is none for cuDNN
    autoencoder = from_config(vae, dtype=vae_dtype, remat=remat, attention="xla" if attention == "cudnn" else attention)
    return Models(
        text=tuple(encoder.apply for encoder in encoders),
        unet=network.apply,
        encode=partial(autoencoder.apply, method="encode"),
        decode=partial(autoencoder.apply, method="decode"),
        scaling_factor=autoencoder.scaling_factor,
        reduction=autoencoder.reduction,
    )
