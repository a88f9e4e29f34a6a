"""Google's Flax checkpoints of MaskGIT, transformer and tokenizer: trees of names that Flax gave, without a config."""

import re
from collections.abc import Mapping
from typing import Any

from interop.architecture import Architecture
from interop.configs import described, stem_of
from interop.files import FileError, Weights
from interop.layout import Spec
from interop.rules import Table
from interop.tables.maskgit_bert import MASKGIT_BERT_GOOGLE
from interop.tables.maskgit_vqgan import maskgit_vqgan_google
from jaxkit.errors import ConfigError

# of ImageNet, which no shape tells
_CODES = 1024
_WORDS, _POSITIONS = (f"params/Embed_0/{name}_embeddings/embedding" for name in ("word", "position"))
_CODEBOOK, _BLOCK = "quantizer.codebook", "encoder.ResBlock_0.Conv_0.kernel"
# what BertForMaskedLM must be told to compute what Google's does
_CONFIG = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
}
_LAYER = "params/TransformerLayer_0/"


def opened(weights: Weights) -> Weights | None:
    """The weights under the names that the tables have, to convert from; None if these are none of Google's."""
    if weights.format != "flax":
        return None
    entries = {name if name.startswith("params/") else f"params/{name}": e for name, e in weights.entries().items()}
    if _WORDS not in entries:
        entries = {name.removeprefix("params/").replace("/", "."): entry for name, entry in entries.items()}
        if not {_CODEBOOK, _BLOCK} <= entries.keys():
            return None
    return Weights(
        weights.path,
        "torch",
        entries,
        files=weights.files,
        metadata=weights.metadata,
        notes=[*weights.notes, "took it for a checkpoint of Google's MaskGIT"],
    )


def architecture(weights: Weights) -> Architecture | None:
    """What conversion needs to know of weights that :func:`opened` gave; None of all others.

    Their config is the one in a config.json beside them, else that of ImageNet's models of these shapes.

    Raises:
        FileError: if they are not all there.
        ConfigError: for a transformer of fewer tokens than ImageNet's without a config.json, and a config of another.
    """
    bert = _WORDS in weights.specs
    if weights.format != "torch" or not (bert or _CODEBOOK in weights.specs):
        return None
    # flax and jax are loaded for these models alone
    from interop.masked.layouts import module_of, shapes

    try:
        config = described(weights) or (_transformer if bert else _tokenizer)(weights.specs)
    except (LookupError, ValueError, ZeroDivisionError):
        raise FileError(weights.path, "arrays are missing that tell the sizes of Google's MaskGIT") from None
    module, kind = module_of(config), "MaskGitBert" if bert else "MaskGitVQGAN"
    if type(module).__name__ != kind:
        raise ConfigError(f"{weights.path} has Google's names of {kind}, and a {type(module).__name__}'s config.json")
    return Architecture(kind, table(module), lambda _: shapes(module), config, stem_of(config))


def table(module: Any) -> Table:
    """The table between Google's names and a MaskGitBert's or MaskGitVQGAN's."""
    if type(module).__name__ == "MaskGitBert":
        return MASKGIT_BERT_GOOGLE
    return maskgit_vqgan_google(len(module.channel_mult), module.num_res_blocks)


def path_of(name: str) -> str:
    """The path in Google's tree of a name in the tables."""
    return name if "/" in name else f"params/{name.replace('.', '/')}"


def _transformer(specs: Mapping[str, Spec]) -> dict[str, Any]:
    """The config of BertForMaskedLM, with the one type of tokens that transformers must have."""
    (vocabulary, width), (positions, _) = specs[_WORDS].shape, specs[_POSITIONS].shape
    if vocabulary <= _CODES:
        raise ConfigError(
            f"Google's transformer has {vocabulary} tokens, fewer than ImageNet's {_CODES} codes; say in a config.json "
            "of BertForMaskedLM beside it what it is"
        )
    layers = {found[0] for name in specs if (found := re.match(r"params/TransformerLayer_\d+/", name))}
    return _CONFIG | {
        "vocab_size": vocabulary,
        "codebook_size": _CODES,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": specs[f"{_LAYER}Attention_0/self_attention/query/kernel"].shape[1],
        "intermediate_size": specs[f"{_LAYER}Mlp_0/intermediate_output/kernel"].shape[1],
        "max_position_embeddings": positions,
        "type_vocab_size": 1,
    }


def _tokenizer(specs: Mapping[str, Spec]) -> dict[str, Any]:
    """The config of open-muse's MaskGitVQGAN: levels are counted by the convolutions between them."""
    levels = sum(bool(re.fullmatch(r"decoder\.Conv_\d+\.kernel", name)) for name in specs) - 1
    blocks = sum(bool(re.fullmatch(r"encoder\.ResBlock_\d+\.Conv_0\.kernel", name)) for name in specs) // (levels + 1)
    first = specs["encoder.Conv_0.kernel"].shape
    widths = [specs[f"encoder.ResBlock_{level * blocks}.Conv_0.kernel"].shape[-1] for level in range(levels)]
    codes, size = specs["quantizer.codebook"].shape
    return {
        "_class_name": "MaskGitVQGAN",
        "num_channels": first[2],
        "hidden_channels": first[3],
        "channel_mult": [width // first[3] for width in widths],
        "num_res_blocks": blocks,
        "z_channels": size,
        "quantized_embed_dim": size,
        "num_embeddings": codes,
    }
