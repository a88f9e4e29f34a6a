"""Runs over tokens, from folder to folder: a tokenizer is trained and exported, a UViT on it, and exported."""

import json
import shutil
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import yaml
from conftest import small_config
from masked_samples import same

from interop.files import FileError
from interop.masked import runs
from interop.masked.adapters import load_adapted, lora_of_run
from interop.masked.folders import load_folder, save_folder
from interop.masked.layouts import config_of
from interop.masked.runs import export_run, load_run
from interop.starts import READERS
from jaxkit.config import parse
from jaxkit.errors import ConfigError
from jaxkit.experiment import run
from jaxkit.inference import evaluate_run, sample_run
from jaxkit.nn.adapters import lora_merge

with warnings.catch_warnings():
    # both warn of their own deprecations
    warnings.simplefilter("ignore")
    import transformers
    from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel

# diffusers tells of names it will drop
pytestmark = [pytest.mark.level(1), pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")]

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
    return run(parse(raw, "small"), folder, readers=READERS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A run of two steps, and the folder it is exported to."""
    root = tmp_path_factory.mktemp("tokenizer")
    trained(root / "run", {"name": "tokenizer", "model": TOKENIZER})
    export_run(root / "run", root / "vq", "diffusers")
    return root


@pytest.fixture(scope="module")
def amused(tokenizer, tmp_path_factory):
    """A whole pipeline of aMUSEd, as diffusers writes it, of the exported tokenizer and random networks."""
    folder = tmp_path_factory.mktemp("amused")
    vocabulary = ["a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    words = folder / "vocab.json", folder / "merges.txt"
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 6}
    text = transformers.CLIPTextConfig(vocab_size=7, projection_dim=6, max_position_embeddings=LENGTH, **sizes, **ends)
    fields = {name: value for name, value in UVIT.items() if name != "name"} | {"block_out_channels": 24}
    torch.manual_seed(0)
    AmusedPipeline(
        vqvae=VQModel.from_pretrained(tokenizer / "vq"),
        tokenizer=transformers.CLIPTokenizer(*map(str, words), model_max_length=LENGTH),
        text_encoder=transformers.CLIPTextModelWithProjection(text),
        transformer=UVit2DModel(**fields, vocab_size=17, codebook_size=16, sample_size=4),
        scheduler=AmusedScheduler(mask_token_id=16),
    ).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def told_by(amused, tokenizer, folder, **changes):
    """A run of UViT over the exported tokenizer's tokens, told by the captions that the pipeline would read."""
    source = {**TOKENIZER, "codebook_decay": None, "pretrained": str(tokenizer / "vq")}
    condition = {"name": "text", "dropout": 0.5, "prompts": ["ab"]}
    condition["encoder"] = {"kind": "clip_projection", "folder": str(amused / "text_encoder"), "penultimate": True}
    task = {"name": "maskgit", "tokenizer": {"model": source}, "model": UVIT, "condition": condition}
    task |= {"sampler": {"steps": 2, "guidance": {"strength": 2.0}}} | changes
    trained(folder, task, captions={"max_length": LENGTH, "tokenizer": str(amused / "tokenizer")})
    return folder


@pytest.fixture(scope="module")
def told(amused, tokenizer, tmp_path_factory):
    return told_by(amused, tokenizer, tmp_path_factory.mktemp("uvit") / "run")


def test_an_exported_tokenizer_is_that_of_the_run_and_opens_in_diffusers(tokenizer):
    module, variables, grid = load_run(tokenizer / "run")
    again, read = load_folder(tokenizer / "vq")
    assert grid == (4, 4)
    assert module.num_embeddings == again.num_embeddings == 16
    jax.tree.map(np.testing.assert_array_equal, variables, read)
    assert VQModel.from_pretrained(tokenizer / "vq").config.num_vq_embeddings == 16


@pytest.mark.slow
def test_uvit_is_trained_on_an_exported_tokenizer_and_told_by_clip(told):
    images = partial(sample_run, told, 2, prompts=("ab",), readers=READERS)
    np.testing.assert_array_equal(images(), images())
    assert images().shape == (2, 8, 8, 1)
    metrics = evaluate_run(told, readers=READERS)
    assert metrics["loss"] == pytest.approx(json.loads((told / "results.json").read_text())["best"]["loss"], rel=1e-6)
    with pytest.raises(ConfigError, match="nothing that reads weight files was handed to this run"):
        sample_run(told, 1)


def test_what_it_has_learned_opens_in_diffusers_with_the_same_logits(told, tmp_path):
    (line,) = export_run(told, tmp_path / "unet", "diffusers")
    module, variables, grid = load_run(told)
    net = UVit2DModel.from_pretrained(tmp_path / "unet").eval()
    assert (grid, net.config.sample_size) == ((4, 4), 4)
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


def test_a_run_becomes_a_whole_pipeline_that_samples_in_diffusers(told, amused, tmp_path):
    lines = export_run(told, tmp_path / "pipeline", pipeline=amused)
    assert [
        str(tmp_path / "pipeline" / name) in line for name, line in zip(("transformer", "vqvae"), lines, strict=True)
    ]
    for name, (_, variables) in {"transformer": load_run(told)[:2], "vqvae": load_folder(amused / "vqvae")}.items():
        same(load_folder(tmp_path / "pipeline" / name)[1], variables)
    pipe = AmusedPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    images = pipe("ab", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert images.shape == (1, 8, 8, 1)
    assert np.isfinite(images).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda source, config: config["condition"]["encoder"].update(penultimate=False), "penultimate is False"),
        (lambda source, config: config["condition"]["encoder"].update(mask_padding=True), "mask_padding is True"),
        (lambda source, config: other_words(source), "reads captions as .* 9 tokens.*; the run has .* 12 tokens"),
        (lambda source, config: other_weights(source / "text_encoder"), "is another than that which told the run"),
        (lambda source, config: (source / "model_index.json").write_text('{"_class_name": "Other"}'), "holds a Other"),
    ],
    ids=["last states", "padding unseen", "other words", "other text encoder", "other pipeline"],
)
def test_a_pipeline_that_would_sample_otherwise_than_the_run_is_refused(told, amused, tmp_path, spoil, message):
    shutil.copytree(told, tmp_path / "run")
    shutil.copytree(amused, tmp_path / "source")
    config = yaml.safe_load((told / "config.yaml").read_text())
    spoil(tmp_path / "source", config["task"])
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises((ConfigError, FileError), match=message):
        export_run(tmp_path / "run", tmp_path / "pipeline", pipeline=tmp_path / "source")
    assert not (tmp_path / "pipeline").exists()


def other_words(source):
    path = source / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 9}))


def other_weights(folder):
    """Doubles what is in a folder of one file of weights."""
    (path,) = folder.glob("*.safetensors")
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({name: 2 * array for name, array in arrays.items()}, path, {"format": "pt"})


def test_a_run_that_has_no_place_in_a_pipeline_says_what_has(tokenizer, amused, tmp_path):
    with pytest.raises(ConfigError, match="has a uvit of the task maskgit, and this run a vqgan of the task tokenizer"):
        export_run(tokenizer / "run", tmp_path / "pipeline", pipeline=amused)


def test_of_a_grid_that_is_no_square_the_size_that_no_config_holds_is_said(told, tmp_path, monkeypatch):
    module, variables, _ = load_run(told)
    monkeypatch.setattr(runs, "load_run", lambda *_: (module, variables, (4, 6)))
    _, line = export_run(told, tmp_path / "unet", "diffusers")
    assert line == "sample_size is 4, but the grid 4 x 6 tokens: give pipelines its height and width"
    assert UVit2DModel.from_pretrained(tmp_path / "unet").config.sample_size == 4
    assert len(export_run(told, tmp_path / "muse", "open-muse")) == 1


@pytest.fixture(scope="module")
def base(told, tmp_path_factory):
    """A folder of the network that adapters are trained beside."""
    folder = tmp_path_factory.mktemp("base") / "unet"
    export_run(told, folder, "diffusers")
    return folder


def test_a_run_of_lora_becomes_a_whole_network_a_file_or_a_pipeline(base, amused, tokenizer, tmp_path):
    settings = {"name": "lora", "rank": 3, "alpha": 6.0, "targets": ["attention"]}
    model = {**UVIT, "pretrained": str(base)}
    run = told_by(amused, tokenizer, tmp_path / "run", model=model, adapter=settings)
    module, variables = load_folder(base)
    found, adapters, scale = lora_of_run(run, 2)
    assert (found, scale) == (module, 2.0)
    assert max(abs(leaf).max() for leaf in jax.tree.leaves(adapters)) > 0
    again, whole = load_adapted(run)
    assert again == module
    same(whole, jax.tree.map(np.asarray, {"params": lora_merge(variables["params"], adapters, 2.0)}))
    export_run(run, tmp_path / "pipeline", pipeline=amused)
    same(load_folder(tmp_path / "pipeline" / "transformer")[1], whole)

    # other weights where the run's network was
    (path,) = base.glob("*.safetensors")
    kept = path.read_bytes()
    other_weights(base)
    for read in (load_adapted, lora_of_run, load_run):
        with pytest.raises(ConfigError, match="what is frozen .* is not what this run began with"):
            read(run)
    path.write_bytes(kept)
    load_adapted(run)


@pytest.mark.slow
def test_a_run_of_styledrop_becomes_a_network_as_open_muse_has_it(base, amused, tokenizer, tmp_path):
    settings = {"name": "styledrop", "size": 3, "shared": False}
    run = told_by(amused, tokenizer, tmp_path / "run", model={**UVIT, "pretrained": str(base)}, adapter=settings)
    module, whole = load_adapted(run)
    assert module == load_folder(base)[0].clone(use_adapter=True, adapter_proj_dim=3, is_adapter_shared=False)
    save_folder(module, whole, tmp_path / "whole", "open-muse")
    again, read = load_folder(tmp_path / "whole")
    assert again == module
    same(read, whole)
    with pytest.raises(ConfigError, match="use_adapter"):
        config_of(module, "diffusers")
    with pytest.raises(ConfigError, match="its adapter is styledrop, which no LoRA file holds"):
        lora_of_run(run)


def test_runs_without_an_adapter_and_folders_without_a_run_are_refused(told, tmp_path):
    with pytest.raises(ConfigError, match="no run is there"):
        load_adapted(tmp_path)
    with pytest.raises(ConfigError, match="the run of the task maskgit trained no adapter"):
        load_adapted(told)
