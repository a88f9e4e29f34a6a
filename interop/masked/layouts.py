"""What a config.json means to conversion: the module it describes, and the table of its weights; and back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from interop.architecture import Architecture
from interop.configs import MASKED, class_of, layout_of, stem_of
from interop.rules import Table
from interop.tables.maskgit_bert import MASKGIT_BERT_TRANSFORMERS
from interop.tables.maskgit_transformer import MASKGIT_TRANSFORMER
from interop.tables.maskgit_vqgan import MASKGIT_VQGAN_MUSE
from interop.tables.paella import PAELLA_DIFFUSERS, PAELLA_MUSE
from interop.tables.uvit import UVIT_DIFFUSERS, UVIT_MUSE
from interop.tables.vqgan import MOVQ_MUSE, VQGAN_MUSE, vq_diffusers
from jaxkit.errors import ConfigError
from jaxkit.models.masked import TRANSFORMERS
from jaxkit.models.masked import config as transformers
from jaxkit.models.tokenizers import TOKENIZERS
from jaxkit.models.tokenizers import config as tokenizers
from jaxkit.spelling import nearest

# what open-muse and diffusers add to the config.json of averaged weights
_AVERAGE = (
    "decay", "min_decay", "update_after_step", "optimization_step", "use_ema_warmup", "inv_gamma", "power",
)  # fmt: skip
_TABLES = {
    "MaskGitTransformer": MASKGIT_TRANSFORMER,
    "MaskGiTUViT": UVIT_MUSE,
    "MaskGiTUViT_v2": UVIT_MUSE,
    "UVit2DModel": UVIT_DIFFUSERS,
    "BertForMaskedLM": MASKGIT_BERT_TRANSFORMERS,
    "VQGANModel": VQGAN_MUSE,
    "MOVQ": MOVQ_MUSE,
    "MaskGitVQGAN": MASKGIT_VQGAN_MUSE,
    "PaellaVQModel": PAELLA_MUSE,
}
# by the module's class: where its weights may be at home, the default first
LAYOUTS = {
    "MaskGitTransformer": ("open-muse",),
    "MaskGiTUViT": ("open-muse", "diffusers"),
    "MaskGitBert": ("transformers", "google"),
    "VQGAN": ("open-muse", "diffusers"),
    "MoVQ": ("open-muse", "diffusers"),
    "MaskGitVQGAN": ("open-muse", "google"),
    "PaellaVQ": ("open-muse", "diffusers"),
}


def module_of(config: Mapping[str, Any]) -> nn.Module:
    """Builds the module that a config.json describes.

    Raises ConfigError for a class, a key or a value that jaxkit has not.
    """
    name = class_of(config)
    if name not in MASKED:
        raise ConfigError(
            f"config.json names the class {name!r}, which jaxkit has not{nearest(str(name), MASKED)}; there are "
            f"{', '.join(MASKED)}"
        )
    kinds = tokenizers if name in tokenizers.CLASSES else transformers
    with _building(name):
        return kinds.from_config({key: value for key, value in config.items() if key not in _AVERAGE})


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Finds what conversion needs to know of the weights beside a config.json. Raises ConfigError as ``module_of``."""
    module, name = module_of(config), class_of(config)
    return Architecture(name, _table(config, module), lambda _: shapes(module), config, stem_of(config))


def name_of(module: nn.Module) -> str:
    """The name by which ``TOKENIZERS`` or ``TRANSFORMERS`` has a module."""
    return next(name for name, (_, kind) in (TOKENIZERS | TRANSFORMERS).items() if kind == type(module).__name__)


def config_of(module: nn.Module, layout: str, sample_size: int | None = None) -> dict[str, Any]:
    """Writes the config.json of a module in a layout of :data:`LAYOUTS`; for Google's that which goes best with it.

    ``sample_size`` is the side of the grid that diffusers' pipelines sample; by default aMUSEd's.

    Raises ConfigError for another layout, and for a module that it has no place for.
    """
    offered = LAYOUTS.get(type(module).__name__, ())
    if layout not in offered:
        raise ConfigError(
            f"{type(module).__name__} has no layout {layout!r}; choose one of {', '.join(offered) or 'none'}"
        )
    if sample_size is not None and (layout, type(module).__name__) != ("diffusers", "MaskGiTUViT"):
        raise ConfigError("sample_size is that of diffusers' UVit2DModel alone: leave it out")
    if name_of(module) in TOKENIZERS:
        write = tokenizers.to_diffusers_config if layout == "diffusers" else tokenizers.to_config
        return write(module)
    if layout == "diffusers":
        return transformers.to_diffusers_config(module, sample_size or (32 if module.force_down_up_sample else 16))
    return transformers.to_config(module)


def shapes(module: nn.Module) -> Mapping[str, Any]:
    """The shapes of a module's variables; computes nothing. Raises ConfigError for fields that do not go together."""
    with _building(type(module).__name__):
        inputs, named = _example(module)
        return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **named))


@contextmanager
def _building(name: str) -> Iterator[None]:
    """Says of what a module is built that its values, from anywhere, do not make one."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise ConfigError(f"the config describes no {name} that can be built: {error}") from error


def _example(module: nn.Module) -> tuple[tuple, dict[str, Any]]:
    """The smallest inputs that a module takes."""
    name = name_of(module)
    if name in TOKENIZERS:
        channels = getattr(module, "num_channels", 3)
        return (jnp.zeros((1, module.reduction, module.reduction, channels)),), {}
    side = module.patch_size if name == "maskgit_transformer" else 2
    tokens, text = jnp.zeros((1, side, side), jnp.int32), jnp.zeros((1, 1, getattr(module, "encoder_hidden_size", 1)))
    if name == "uvit":
        micro = module.micro_cond_embed_dim // module.micro_cond_encode_dim
        return (tokens, text, jnp.zeros((1, module.cond_embed_dim)), jnp.zeros((1, micro))), {}
    named = {"labels": jnp.zeros(1, jnp.int32)} if getattr(module, "num_classes", None) else {}
    if getattr(module, "add_cross_attention", False):
        named["encoder_hidden_states"] = text
    return (tokens,), named


def _table(config: Mapping[str, Any], module: nn.Module) -> Table:
    name = class_of(config)
    if name == "VQModel":
        return vq_diffusers(len(module.channel_mult))
    return PAELLA_DIFFUSERS if name == "PaellaVQModel" and layout_of(config) == "diffusers" else _TABLES[name]
