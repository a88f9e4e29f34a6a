"""Runs over tokens, from folder to folder: a tokenizer is trained and exported, a UViT on it, and exported."""

import json
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import small_config

from interop.masked.folders import load_folder
from interop.masked.runs import export_run, load_run
from interop.starts import read_weights
from jaxkit.config import parse
from jaxkit.data.captions import END
from jaxkit.errors import ConfigError
from jaxkit.experiment import run
from jaxkit.inference import evaluate_run, sample_run

with warnings.catch_warnings():
    # both warn of their own deprecations
    warnings.simplefilter("ignore")
    import transformers
    from diffusers import UVit2DModel, VQModel

TOKENIZER = {
    "name": "vqgan", "resolution": 8, "num_channels": 1, "hidden_channels": 4, "channel_mult": [1, 1],
    "num_res_blocks": 1, "no_attn_mid_block": True, "z_channels": 4, "num_embeddings": 16, "quantized_embed_dim": 4,
    "norm_num_groups": 2, "codebook_decay": 0.9,
}  # fmt: skip
UVIT = {
    "name": "uvit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40,
    "in_channels": 16, "block_out_channels": [24], "num_res_blocks": 1, "block_num_heads": 2, "encoder_hidden_size": 8,
    "cond_embed_dim": 6,
}  # fmt: skip
LENGTH = 12


def trained(folder, task, **data):
    changes = {"train__steps": 2, "train__eval_every": 2, "train__checkpoint_every": 2}
    raw = small_config(task=task, optimizer={"name": "adamw", "learning_rate": 1e-2}, **changes)
    raw["data"] = {"name": "digits", "batch_size": 16, "eval_batch_size": 64, "eval_examples": 64, **data}
    return run(parse(raw, "small"), folder, read_weights=read_weights)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A run of two steps, and the folder it is exported to."""
    root = tmp_path_factory.mktemp("tokenizer")
    trained(root / "run", {"name": "tokenizer", "model": TOKENIZER})
    export_run(root / "run", root / "vq", "diffusers")
    return root


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP whose words are bytes."""
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END + 1}
    config = transformers.CLIPTextConfig(
        vocab_size=END + 2, projection_dim=6, max_position_embeddings=LENGTH, **sizes, **ends
    )
    torch.manual_seed(0)
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def told(tokenizer, clip, tmp_path_factory):
    """A run of UViT over the exported tokenizer's tokens, told by captions."""
    folder = tmp_path_factory.mktemp("uvit")
    source = {**TOKENIZER, "codebook_decay": None, "pretrained": str(tokenizer / "vq")}
    condition = {"name": "text", "dropout": 0.5, "prompts": ["seven"]}
    condition["encoder"] = {"kind": "clip_projection", "folder": str(clip), "penultimate": True}
    task = {"name": "maskgit", "tokenizer": {"model": source}, "model": UVIT, "condition": condition}
    trained(folder, task | {"sampler": {"steps": 2, "guidance": {"strength": 2.0}}}, captions={"max_length": LENGTH})
    return folder


def test_an_exported_tokenizer_is_that_of_the_run_and_opens_in_diffusers(tokenizer):
    module, variables, side = load_run(tokenizer / "run")
    again, read = load_folder(tokenizer / "vq")
    assert side == 4
    assert module.num_embeddings == again.num_embeddings == 16
    jax.tree.map(np.testing.assert_array_equal, variables, read)
    assert VQModel.from_pretrained(tokenizer / "vq").config.num_vq_embeddings == 16


def test_uvit_is_trained_on_an_exported_tokenizer_and_told_by_clip(told):
    images = partial(sample_run, told, 2, prompts=("a seven",), read_weights=read_weights)
    np.testing.assert_array_equal(images(), images())
    assert images().shape == (2, 8, 8, 1)
    metrics = evaluate_run(told, read_weights=read_weights)
    assert metrics["loss"] == pytest.approx(json.loads((told / "results.json").read_text())["best"]["loss"], rel=1e-6)
    with pytest.raises(ConfigError, match="nothing that reads weight files was handed to this run"):
        sample_run(told, 1)


def test_what_it_has_learned_opens_in_diffusers_with_the_same_logits(told, tmp_path):
    (line,) = export_run(told, tmp_path / "unet", "diffusers")
    module, variables, side = load_run(told)
    net = UVit2DModel.from_pretrained(tmp_path / "unet").eval()
    assert (side, net.config.sample_size) == (4, 4)
    assert f"{sum(p.numel() for p in net.parameters()):,} parameters" in line
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 17, (2, 4, 4))
    given = [rng.normal(size=shape).astype(np.float32) for shape in ((2, LENGTH, 8), (2, 6), (2, 5))]
    with jax.default_matmul_precision("highest"):
        ours = module.apply(variables, jnp.asarray(tokens, jnp.int32), *map(jnp.asarray, given))
    with torch.no_grad():
        text, pooled, micro = map(torch.from_numpy, given)
        theirs = net(torch.from_numpy(tokens), text, pooled, micro).permute(0, 2, 3, 1)
    # float32, in another order of summation
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_run_that_trains_no_network_over_tokens_is_refused(tmp_path):
    run(parse(small_config(train__steps=1, train__eval_every=1), "classifier"), tmp_path / "run")
    with pytest.raises(ConfigError, match="is of the task classify, and no maskgit or tokenizer"):
        load_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="no run is there"):
        load_run(tmp_path / "nowhere")
