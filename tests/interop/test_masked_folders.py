"""Folders of masked-image models: read, written, converted, trained from, and refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import thinned
from flax import serialization
from masked_samples import FOLDERS, MODULES, VQ, contents, random_variables, rewritten, same, written

import interop
from interop.engine import flatten
from interop.files import FileError, open_weights
from interop.listing import explain, inspect
from interop.masked.folders import load_folder, save_folder
from interop.masked.layouts import config_of, module_of, shapes
from interop.problems import WeightsError
from interop.starts import read_weights
from jaxkit.errors import ConfigError
from jaxkit.models import tokenizers
from jaxkit.models.masked.uvit import uvit_tiny

pytestmark = pytest.mark.level(1)

CONVERT = Path(__file__).parents[2] / "scripts" / "convert.py"

# of each network
ONE_LAYOUT = list(dict(FOLDERS).items())


@pytest.mark.parametrize(("name", "layout"), FOLDERS)
def test_a_folder_comes_back_as_the_module_and_variables_it_was_written_from(name, layout, tmp_path):
    path, variables = written(tmp_path, name, layout)
    stem = {"open-muse": "pytorch_model", "diffusers": "diffusion_pytorch_model", "transformers": "model"}[layout]
    assert sorted(file.name for file in path.iterdir()) == ["config.json", f"{stem}.safetensors"]
    module, found = load_folder(path)
    if layout == "diffusers" and name in ("vqgan", "movq"):
        # sides of 256 x 256 images stand for levels there, and open-muse's default is the same side
        assert config_of(module, layout) == config_of(MODULES[name], layout)
    else:
        assert module == MODULES[name]
    same(found, variables)
    save_folder(module, found, tmp_path / "again", layout)
    assert contents(tmp_path / "again") == contents(path)


def muse_folder(folder, name, **config):
    """A folder as open-muse's training leaves it: a pickle of tensors, and averages' settings in its config."""
    path, variables = written(folder, name, "open-muse")
    with open_weights(path) as weights:
        state = {key: torch.from_numpy(np.array(weights.read(key))) for key in weights.specs}
    torch.save(state, path / "pytorch_model.bin")
    (path / "pytorch_model.safetensors").unlink()
    return rewritten(path, _version="0.0.1", **config), variables


def test_a_folder_of_averaged_weights_of_open_muse_is_read(tmp_path):
    average = {"decay": 0.9999, "min_decay": 0.0, "optimization_step": 7, "update_after_step": 0}
    average |= {"use_ema_warmup": False, "inv_gamma": 1.0, "power": 2 / 3}
    path, variables = muse_folder(tmp_path, "uvit", **average)
    module, found = load_folder(path)
    assert module == MODULES["uvit"]
    same(found, variables)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    path, _ = muse_folder(tmp_path, "vqgan", commitment_cost=0.25, num_resolutions=2)
    load_folder(path)
    torch.save({"encoder.conv_in.weight": subprocess.Popen}, path / "pytorch_model.bin")
    with pytest.raises(FileError, match="Popen"):
        load_folder(path)


def run(*arguments):
    done = subprocess.run([sys.executable, CONVERT, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "layout"), thinned(FOLDERS, ONE_LAYOUT))
def test_convert_takes_a_folder_to_flax_and_back_bit_for_bit(name, layout, tmp_path):
    path, variables = written(tmp_path, name, layout)
    done = interop.convert(path, tmp_path / "flax.safetensors", "flax", check=True)
    assert done.model == json.loads((path / "config.json").read_text()).get("_class_name", "BertForMaskedLM")
    module, found = load_folder(tmp_path / "flax.safetensors")
    assert config_of(module, layout) == config_of(load_folder(path)[0], layout)
    same(found, variables)
    interop.convert(tmp_path / "flax.safetensors", tmp_path / "back", "torch", check=True)
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((path / "config.json").read_text())
    with open_weights(path) as a, open_weights(tmp_path / "back") as b:
        assert a.path.name == b.path.name
        same({name: a.read(name) for name in a.specs}, {name: b.read(name) for name in b.specs})
        assert json.loads(b.metadata["jaxkit"])["tensors"].keys() == flatten(variables).keys()


def test_the_commands_know_a_folder_by_its_config(tmp_path):
    path, variables = written(tmp_path, "uvit", "diffusers", sample_size=4)
    assert "UVit2DModel: " in run("to-flax", path, tmp_path / "orbax", "--check")
    same(load_folder(tmp_path / "orbax")[1], variables)
    run("to-torch", tmp_path / "orbax", tmp_path / "back")
    assert json.loads((tmp_path / "back/config.json").read_text())["sample_size"] == 4
    assert any(line.startswith("  jaxkit.config: ") for line in inspect(tmp_path / "orbax"))


def test_a_config_names_the_model_where_the_file_cannot_and_where_another_layout_is_wanted(tmp_path):
    path, variables = written(tmp_path, "uvit", "diffusers")
    save_folder(MODULES["uvit"], variables, tmp_path / "muse", "open-muse")
    # msgpack has no metadata
    interop.convert(path, tmp_path / "net.msgpack", "flax")
    interop.convert(tmp_path / "net.msgpack", tmp_path / "back", "torch", str(path / "config.json"))
    assert contents(tmp_path / "back").keys() == contents(path).keys()
    interop.convert(tmp_path / "net.msgpack", tmp_path / "other", "torch", str(tmp_path / "muse/config.json"))
    for folder in ("back", "other"):
        same(load_folder(tmp_path / folder)[1], variables)
    lines = explain(str(path / "config.json"), "transformer_layers.0.ff.net.0.proj.weight")
    assert any("ffn/wi_1/kernel" in line for line in lines)


def test_a_copy_of_a_folder_has_its_config_though_jaxkit_has_not_its_network(tmp_path):
    path, _ = written(tmp_path, "vqgan", "diffusers")
    rewritten(path, act_fn="gelu")
    interop.convert(path, tmp_path / "copy", "torch", dtype="bf16")
    assert json.loads((tmp_path / "copy/config.json").read_text())["act_fn"] == "gelu"
    assert (tmp_path / "copy/diffusion_pytorch_model.safetensors").is_file()


def test_googles_file_becomes_a_folder_of_open_muse_by_way_of_flax(tmp_path):
    path, variables = written(tmp_path, "maskgit_vqgan", "google")
    interop.convert(path, tmp_path / "flax.safetensors", "flax", check=True)
    interop.convert(tmp_path / "flax.safetensors", tmp_path / "muse", "torch", check=True)
    module, found = load_folder(tmp_path / "muse")
    assert module == MODULES["maskgit_vqgan"]
    same(found, variables)
    with pytest.raises(ConfigError, match="has Google's names: convert it to-flax"):
        interop.convert(path, tmp_path / "net.pt", "torch")


@pytest.mark.parametrize(
    ("name", "layout"),
    thinned([case for case in FOLDERS if case[0] != "uvit of half size"], ONE_LAYOUT),
)
def test_training_starts_from_a_folder(name, layout, tmp_path):
    path, variables = written(tmp_path, name, layout)
    initial = random_variables(MODULES[name], seed=1)
    found, (line,) = read_weights(str(path), name.split()[0], initial)
    same(jax.tree.map(np.asarray, found), variables)
    assert line.startswith(f"{path}: ")
    assert line.endswith(f"{len(flatten(variables))} arrays")


def test_a_codebook_of_moving_averages_starts_from_a_folders(tmp_path):
    path, variables = written(tmp_path, "vqgan", "open-muse")
    initial = jax.eval_shape(
        MODULES["vqgan"].clone(codebook_decay=0.9).init, jax.random.key(0), jnp.zeros((1, 2, 2, 3))
    )
    initial = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), initial)
    found, _ = read_weights(str(path), "vqgan", initial)
    assert "quantize" not in found["params"]
    moving = found["codebook"]["quantize"]
    codes = variables["params"]["quantize"]["embedding"]
    assert np.array_equal(moving["embedding"], codes)
    assert np.array_equal(moving["sums"], codes)
    assert np.array_equal(moving["sizes"], np.ones(64))
    save_folder(MODULES["vqgan"], found, tmp_path / "again")
    same(load_folder(tmp_path / "again")[1], variables)


def test_training_refuses_a_folder_of_other_shapes_or_of_another_network(tmp_path):
    path, _ = written(tmp_path, "vqgan", "open-muse")
    wide = tokenizers.build("vqgan", **VQ | {"num_embeddings": 32}, quantized_embed_dim=6, attn_resolutions=())
    with pytest.raises(WeightsError) as caught:
        read_weights(str(path), "vqgan", random_variables(wide))
    assert "params/quantize/embedding [64, 6] in config.json for [32, 6]" in str(caught.value)
    assert "unexpected  params/encoder/level1_attn0/k/bias" in str(caught.value)
    with pytest.raises(ConfigError, match="holds a VQGANModel, which is vqgan here, and no movq"):
        read_weights(str(path), "movq", random_variables(MODULES["movq"]))


def test_training_refuses_as_many_weights_in_other_heads(tmp_path):
    path, _ = written(tmp_path, "uvit", "diffusers")
    with pytest.raises(WeightsError, match=r"query/kernel \[32, 4, 8\] in config.json for \[32, 2, 16\]"):
        read_weights(str(path), "uvit", random_variables(uvit_tiny(num_attention_heads=2)))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("uvit", {"_class_name": "MaskGitUViT"}, "names the class 'MaskGitUViT', which jaxkit has not, did you mean"),
        ("uvit", {"_class_name": ["a"]}, "names the class None"),
        ("uvit", {"hidden_sise": 3}, "hidden_sise: unknown key, did you mean 'hidden_size'?"),
        ("uvit", {"num_attention_heads": "four"}, "the config describes no"),
        ("uvit", {"num_attention_heads": 5}, "the config describes no"),
        ("uvit", {"add_cond_embeds": False}, "add_cond_embeds False is not offered"),
        ("vqgan", {"z_chanels": 3}, "z_chanels: unknown key, did you mean 'z_channels'?"),
        ("vqgan", {"channel_mult": 3}, "the config describes no VQGAN"),
        ("movq", {"out_channels": 1}, "out_channels 1 contradicts num_channels 3"),
        ("movq", {"double_z": True}, "double_z True is not offered, only False"),
        ("maskgit_vqgan", {"quantized_embed_dim": 8}, "quantized_embed_dim 8 contradicts z_channels 4"),
        ("paella_vq", {"embed_dim": 8}, "c_hidden: unknown key"),
    ],
)
def test_a_config_that_describes_nothing_here_is_refused_in_one_message(name, changes, message, tmp_path):
    path, _ = written(tmp_path, name, "open-muse")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_folder(rewritten(path, **changes))


def test_weights_that_are_not_what_the_config_describes_are_refused(tmp_path):
    path, _ = written(tmp_path, "maskgit_transformer of classes", "open-muse")
    with pytest.raises(WeightsError, match="missing"):
        load_folder(rewritten(path, num_hidden_layers=3))
    with pytest.raises(WeightsError, match="72"):
        load_folder(rewritten(path, num_hidden_layers=2, vocab_size=73, mask_token_id=72))


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_folder(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FileError, match="the config is no valid JSON"):
        load_folder(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "net.msgpack").write_bytes(serialization.msgpack_serialize({"params": {"a": np.zeros(2)}}))
    with pytest.raises(ConfigError, match="neither a config.json nor names of Google's checkpoints"):
        load_folder(tmp_path / "net.msgpack")


def test_a_folder_is_replaced_by_force_alone_and_never_mixed_with_other_weights(tmp_path):
    path, variables = written(tmp_path, "vqgan", "open-muse")
    before = contents(path)
    with pytest.raises(ConfigError, match="exists already; --force overwrites it"):
        save_folder(MODULES["vqgan"], variables, path)
    with pytest.raises(ConfigError, match=r"holds other weights, pytorch_model.safetensors: remove them"):
        save_folder(MODULES["vqgan"], variables, path, "diffusers", force=True)
    assert contents(path) == before
    save_folder(MODULES["vqgan"], random_variables(MODULES["vqgan"], seed=1), path, force=True)
    assert contents(path).keys() == before.keys()
    assert contents(path) != before


@pytest.mark.parametrize(
    ("module", "layout", "message"),
    [
        (MODULES["maskgit_transformer of classes"], "diffusers", "has no layout 'diffusers'; choose one of open-muse"),
        (uvit_tiny(use_fused_mlp=True), "diffusers", "UVit2DModel has use_fused_mlp False only"),
        (tokenizers.build("vqgan", norm_num_groups=8), "open-muse", "has norm_num_groups 32 only, not 8"),
        (tokenizers.build("movq", no_attn_mid_block=True), "open-muse", "has no_attn_mid_block False only"),
        (tokenizers.build("paella_vq"), "google", "has no layout 'google'; choose one of open-muse, diffusers"),
    ],
)
def test_a_layout_without_a_place_for_a_module_is_refused(module, layout, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_of(module, layout)


def test_open_muses_published_configs_are_read():
    amused = {"_class_name": "VQGANModel", "_version": "0.0.1", "channel_mult": [1, 2, 2, 4, 6], "latent_size": 16}
    amused |= {"attn_resolutions": [], "no_attn_mid_block": True, "z_channels": 64, "quantized_embed_dim": 64}
    amused |= {"num_embeddings": 8192, "commitment_cost": 0.25, "reduction_factor": 16, "num_resolutions": 5}
    leaves = flatten(shapes(module_of(amused))).values()
    # the count that the tokenizer of aMUSEd has
    assert sum(leaf.size for leaf in leaves) == 146_244_675
