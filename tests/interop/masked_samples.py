"""Tiny masked-image models with random weights, and the folders they are written to."""

import json

import numpy as np

from interop.engine import flatten, unflatten
from interop.masked.folders import save_folder
from interop.masked.layouts import LAYOUTS, shapes
from jaxkit.models import tokenizers
from jaxkit.models.masked.bert import maskgit_bert_tiny
from jaxkit.models.masked.transformer import maskgit_transformer_tiny
from jaxkit.models.masked.uvit import uvit_tiny

# 32 channels, as the norms of MoVQ and MaskGitVQGAN have 32 groups
VQ = {"hidden_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4, "num_embeddings": 64}
MODULES = {
    "uvit": uvit_tiny(),
    "uvit of half size": uvit_tiny(force_down_up_sample=True, use_bias=True),
    "maskgit_transformer of classes": maskgit_transformer_tiny(num_classes=6, max_position_embeddings=20),
    "maskgit_transformer of texts": maskgit_transformer_tiny(
        add_cross_attention=True, encoder_hidden_size=12, use_conv_in_out=True, embedding_size=10, patch_size=2
    ),
    "maskgit_bert": maskgit_bert_tiny(type_vocab_size=1),
    "vqgan": tokenizers.build("vqgan", **VQ, quantized_embed_dim=6, attn_resolutions=(128,)),
    "movq": tokenizers.build("movq", **VQ, quantized_embed_dim=4),
    "maskgit_vqgan": tokenizers.build("maskgit_vqgan", **VQ),
    "paella_vq": tokenizers.build("paella_vq", levels=2, bottleneck_blocks=1, c_hidden=16, codebook_size=64),
}
CASES = [(name, layout) for name, module in MODULES.items() for layout in LAYOUTS[type(module).__name__]]
FOLDERS = [(name, layout) for name, layout in CASES if layout != "google"]


def random_variables(module, layout="open-muse", seed=0):
    rng = np.random.default_rng(seed)
    flat = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flatten(shapes(module)).items()}
    for path in flat:
        if path.endswith("/var"):
            flat[path] = abs(flat[path]) + 0.5
        if layout == "google" and path.startswith("params/token_type"):
            flat[path] = np.zeros_like(flat[path])
    return unflatten(flat)


def written(folder, name, layout, **options):
    """A random model's folder, or Google's file, and its variables."""
    path = folder / ("model.msgpack" if layout == "google" else "model")
    variables = random_variables(MODULES[name], layout)
    save_folder(MODULES[name], variables, path, layout, **options)
    return path, variables


def same(ours, theirs):
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        other = np.asarray(theirs[path])
        assert (leaf.dtype, leaf.shape, leaf.tobytes()) == (other.dtype, other.shape, other.tobytes()), path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewritten(folder, **changes):
    """The folder, with other values in its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder
