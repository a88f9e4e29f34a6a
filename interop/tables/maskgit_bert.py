"""Google's MaskGIT transformer: under the paths of its Flax checkpoints, and under transformers' BertForMaskedLM's."""

from interop.layers import Filled, Kind, Place, Tied, dense, embedding, heads_in, heads_out, layer_norm

# What the checkpoints call a layer, and we; with the leaves it has and their axes, the same on both sides.
_DENSE = {"kernel": "i o", "bias": "o"}
_NORM = {"scale": "c", "bias": "c"}
_HEADS = {"kernel": "i n d", "bias": "n d"}
_HEADS_OUT = {"kernel": "n d o", "bias": "o"}
_EMBEDDING = {"embedding": "n d"}
_THEIRS = "TransformerLayer_{i}/Attention_0", "TransformerLayer_{i}/Mlp_0"
_GOOGLE_LAYERS = (
    ("Embed_0/word_embeddings", "word_embeddings", _EMBEDDING),
    ("Embed_0/position_embeddings", "position_embeddings", _EMBEDDING),
    ("Embed_0/embeddings_ln", "embeddings_norm", _NORM),
    *((f"{_THEIRS[0]}/self_attention/{x}", f"layers_{{i}}/attention/{x}", _HEADS) for x in ("query", "key", "value")),
    (f"{_THEIRS[0]}/self_attention/out", "layers_{i}/attention/out", _HEADS_OUT),
    (f"{_THEIRS[0]}/attention_output_ln", "layers_{i}/attention_norm", _NORM),
    (f"{_THEIRS[1]}/intermediate_output", "layers_{i}/intermediate", _DENSE),
    (f"{_THEIRS[1]}/layer_output", "layers_{i}/output", _DENSE),
    (f"{_THEIRS[1]}/layer_output_ln", "layers_{i}/output_norm", _NORM),
    ("MlmLayer_0/mlm_dense", "mlm_dense", _DENSE),
    ("MlmLayer_0/mlm_ln", "mlm_norm", _NORM),
    ("MlmLayer_0/mlm_bias", "", {"bias": "o"}),
)


def _same(theirs: str, ours: str, leaves: dict[str, str]) -> Kind:
    paths = {leaf: f"params/{ours}/{leaf}" if ours else "params/mlm_bias" for leaf in leaves}
    return {f"params/{theirs}/{leaf}": Place(paths[leaf], f"{axes} -> {axes}") for leaf, axes in leaves.items()}


# From one Flax tree to another: the names are paths, as msgpack files are read.
MASKGIT_BERT_GOOGLE = (
    *(("", "", _same(*row)) for row in _GOOGLE_LAYERS),
    ("", "", {"": Filled("params/token_type_embeddings/embedding", "Google's tokens are of one type")}),
)

_LAYER = "bert.encoder.layer.{i}"
MASKGIT_BERT_TRANSFORMERS = (
    ("bert.embeddings.word_embeddings", "word_embeddings", embedding),
    ("bert.embeddings.position_embeddings", "position_embeddings", embedding),
    ("bert.embeddings.token_type_embeddings", "token_type_embeddings", embedding),
    ("bert.embeddings.LayerNorm", "embeddings_norm", layer_norm),
    *((f"{_LAYER}.attention.self.{x}", f"layers_{{i}}/attention/{x}", heads_in) for x in ("query", "key", "value")),
    (f"{_LAYER}.attention.output.dense", "layers_{i}/attention/out", heads_out),
    (f"{_LAYER}.attention.output.LayerNorm", "layers_{i}/attention_norm", layer_norm),
    (f"{_LAYER}.intermediate.dense", "layers_{i}/intermediate", dense),
    (f"{_LAYER}.output.dense", "layers_{i}/output", dense),
    (f"{_LAYER}.output.LayerNorm", "layers_{i}/output_norm", layer_norm),
    ("cls.predictions.transform.dense", "mlm_dense", dense),
    ("cls.predictions.transform.LayerNorm", "mlm_norm", layer_norm),
    ("cls.predictions", "", {"bias": Place("params/mlm_bias", "o -> o")}),
    (
        "cls.predictions.decoder",
        "",
        {"weight": Tied("bert.embeddings.word_embeddings.weight"), "bias": Tied("cls.predictions.bias")},
    ),
)
