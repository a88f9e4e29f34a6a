"""Networks and whole pipelines of Stable Diffusion, from torch's classes to those of diffusers' Flax and back."""

import json
import shutil
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import ROOT, thinned
from diffusion_samples import TEXTS, TOKENS, UNETS, VAE, config_of, pipeline, text, unet, vae
from safetensors.numpy import load_file

with warnings.catch_warnings():
    # both warn of their own deprecations
    warnings.simplefilter("ignore")
    import diffusers
    import transformers

from interop.conversion import convert, load, save
from interop.diffusion.layouts import architecture_of
from interop.diffusion.pipelines import convert_any, convert_pipeline
from interop.files import FileError
from jaxkit.errors import ConfigError

pytestmark = [pytest.mark.level(1), pytest.mark.filterwarnings("ignore")]
diffusers.utils.logging.set_verbosity_error()
PARTS = {
    "unet": lambda: unet(**UNETS["sd1"]),
    "vae": lambda: vae(**VAE),
    "text": lambda: text(**TEXTS["sd1"][0]),
    "projection": lambda: text(True, **TEXTS["sdxl"][1]),
}
CLASSES = {
    "unet": diffusers.FlaxUNet2DConditionModel, "vae": diffusers.FlaxAutoencoderKL,
    "text": transformers.FlaxCLIPTextModel, "projection": transformers.FlaxCLIPTextModelWithProjection,
}  # fmt: skip


def opened_by_flax(kind, folder):
    """The variables that a Flax class of another project reads."""
    model = kind.from_pretrained(folder)
    return model.params if isinstance(model, transformers.FlaxPreTrainedModel) else model[1]


def of_torch(name, folder):
    made = folder.parent / "made"
    made.mkdir()
    pipeline(name, made).save_pretrained(folder)
    shutil.rmtree(made)


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", PARTS)
def test_a_torch_folder_becomes_one_that_the_flax_class_opens_and_comes_back_bit_for_bit(tmp_path, name):
    net = PARTS[name]()
    net.save_pretrained(tmp_path / "torch")
    done = convert(tmp_path / "torch", tmp_path / "flax", "flax", check=True)
    assert done.model == type(net).__name__
    assert any("come back bit for bit" in note for note in done.notes)
    same(opened_by_flax(CLASSES[name], tmp_path / "flax"), load(tmp_path / "torch")["params"])
    convert(tmp_path / "flax", tmp_path / "back", "torch", check=True)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config_of(net)
    again = type(net).from_pretrained(tmp_path / "back")
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_old_names_are_converted_and_types_are_cast(tmp_path):
    net = vae(**VAE)
    net.save_pretrained(tmp_path / "torch", safe_serialization=False)
    file = tmp_path / "torch" / "diffusion_pytorch_model.bin"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = torch.load(file, weights_only=True)
    for new, before in old.items():
        tensors = {key.replace(f"attentions.0.{new}.", f"attentions.0.{before}."): x for key, x in tensors.items()}
    torch.save(tensors, file)
    convert(tmp_path / "torch", tmp_path / "flax", "flax", dtype="bf16")
    found = load(tmp_path / "flax", architecture_of(config_of(net)))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(jnp.bfloat16)}
    convert(tmp_path / "flax", tmp_path / "narrow", "flax", dtype="f32")
    assert {leaf.dtype for leaf in jax.tree.leaves(load(tmp_path / "narrow"))} == {np.dtype(np.float32)}


def test_variables_are_saved_as_the_flax_class_reads_them(tmp_path):
    net = unet(**UNETS["sd2"])
    net.save_pretrained(tmp_path / "torch")
    variables = load(tmp_path / "torch")
    save(variables, tmp_path / "flax", architecture_of(config_of(net)), "flax")
    same(opened_by_flax(diffusers.FlaxUNet2DConditionModel, tmp_path / "flax"), variables["params"])
    with pytest.raises(ConfigError, match="exists already"):
        save(variables, tmp_path / "flax", architecture_of(config_of(net)), "flax")


def test_a_variant_is_converted_when_it_is_asked_for(tmp_path):
    text(**TEXTS["sd1"][0]).half().save_pretrained(tmp_path / "torch", variant="fp16")
    convert(tmp_path / "torch", tmp_path / "flax", "flax", variant="fp16")
    assert {leaf.dtype for leaf in jax.tree.leaves(load(tmp_path / "flax"))} == {np.dtype(np.float16)}
    with pytest.raises(FileError, match="no weights of the variant 'bf16' are there, but fp16"):
        convert(tmp_path / "torch", tmp_path / "other", "flax", variant="bf16")
    file = tmp_path / "torch" / "model.fp16.safetensors"
    with pytest.raises(ConfigError, match="is no folder, which has files of the variant"):
        convert(file, tmp_path / "other", "flax", variant="fp16")


@pytest.mark.parametrize("name", thinned(["sd1", "sd2", "sdxl"], ["sd1", "sdxl"]))
def test_a_pipeline_opens_in_diffusers_flax_and_comes_back_as_it_was(tmp_path, name):
    of_torch(name, tmp_path / "torch")
    done = convert_any(tmp_path / "torch", tmp_path / "flax", "flax", check=True)
    kind = getattr(diffusers, done.model)
    _, params = kind.from_pretrained(tmp_path / "flax")
    encoders = [part for part in params if part.startswith("text_encoder")]
    assert len(encoders) == len(TEXTS[name])
    for part in ("unet", "vae", *encoders):
        same(params[part], load(tmp_path / "torch" / part)["params"])
    convert_any(tmp_path / "flax", tmp_path / "back", "torch", check=True)
    again = getattr(diffusers, done.model.removeprefix("Flax")).from_pretrained(tmp_path / "back")
    assert type(again.unet).__name__ == "UNet2DConditionModel"
    for file in sorted((tmp_path / "torch").rglob("*.safetensors")):
        expected, found = load_file(file), load_file(tmp_path / "back" / file.relative_to(tmp_path / "torch"))
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)
    for file in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"):
        before, after = (json.loads((tmp_path / folder / file).read_text()) for folder in ("torch", "back"))
        assert after == before, file


def test_a_converted_pipeline_draws_what_torch_draws(tmp_path):
    """The pipelines' own code, step by step: DDIM without noise, from the same latents."""
    of_torch("sd1", tmp_path / "torch")
    convert_pipeline(tmp_path / "torch", tmp_path / "flax", "flax")
    there, params = diffusers.FlaxStableDiffusionPipeline.from_pretrained(tmp_path / "flax")
    here = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "torch")
    here.set_progress_bar_config(disable=True)
    here.scheduler = diffusers.DDIMScheduler.from_config(here.scheduler.config)
    there.scheduler = diffusers.FlaxDDIMScheduler.from_config(there.scheduler.config)
    params["scheduler"] = there.scheduler.create_state()
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    given = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 16, "width": 16}
    ids = there.prepare_inputs(["a cat"])[:, :TOKENS]
    with jax.default_matmul_precision("highest"):
        drawn = there._generate(ids, params, jax.random.key(0), 4, 16, 16, 3.0, jnp.asarray(latents))
    expected = here("a cat", latents=torch.from_numpy(latents), output_type="np", **given).images
    # measured 7.5e-6; UNets of the Flax classes are within 6e-5 of torch (tanh GELU)
    np.testing.assert_allclose(np.asarray(drawn), expected, atol=1e-4)


def test_what_a_pipeline_has_beside_its_networks_is_kept_or_named(tmp_path):
    of_torch("sd1", tmp_path / "torch")
    index = json.loads((tmp_path / "torch" / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (tmp_path / "torch" / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "torch" / "safety_checker").mkdir()
    scheduler = tmp_path / "torch" / "scheduler" / "scheduler_config.json"
    config = json.loads(scheduler.read_text()) | {"_class_name": "EulerAncestralDiscreteScheduler"}
    scheduler.write_text(json.dumps(config))
    done = convert_pipeline(tmp_path / "torch", tmp_path / "flax", "flax")
    assert any("left out safety_checker, a StableDiffusionSafetyChecker" in note for note in done.notes)
    assert any(note.startswith("EulerAncestralDiscreteScheduler is none of Flax's") for note in done.notes)
    kept = json.loads((tmp_path / "flax" / "scheduler" / "scheduler_config.json").read_text())
    assert kept == config | {"_class_name": "FlaxDDIMScheduler"}
    assert not (tmp_path / "flax" / "safety_checker").exists()
    names = sorted(path.name for path in (tmp_path / "torch" / "tokenizer").iterdir())
    assert sorted(path.name for path in (tmp_path / "flax" / "tokenizer").iterdir()) == names


def test_a_pipeline_is_converted_whole_or_not_at_all(tmp_path):
    of_torch("sd1", tmp_path / "torch")
    assert convert_pipeline(tmp_path / "torch", tmp_path / "flax", "flax", dry_run=True).tensors > 100
    with pytest.raises(ConfigError, match="--model: .* is a whole pipeline, which says it; leave it out"):
        convert_any(tmp_path / "torch", tmp_path / "flax", "flax", model="cnn")
    shutil.copytree(tmp_path / "torch", tmp_path / "half")
    (tmp_path / "half" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileError, match="no weights are in this folder"):
        convert_pipeline(tmp_path / "half", tmp_path / "flax", "flax")
    assert not (tmp_path / "flax").exists()
    (tmp_path / "flax").mkdir()
    (tmp_path / "flax" / "thesis.txt").write_text("of years")
    with pytest.raises(ConfigError, match="exists already"):
        convert_pipeline(tmp_path / "torch", tmp_path / "flax", "flax")
    with pytest.raises(ConfigError, match="is no pipeline, and is not replaced by one"):
        convert_pipeline(tmp_path / "torch", tmp_path / "flax", "flax", force=True)
    assert (tmp_path / "flax" / "thesis.txt").read_text() == "of years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flax", "half", "torch"]
    before = sorted(path for path in (tmp_path / "torch").rglob("*") if path.is_file())
    with pytest.raises(ConfigError, match="is the pipeline that is to be converted; choose another folder"):
        convert_pipeline(tmp_path / "torch", tmp_path / "torch", "flax", force=True)
    with pytest.raises(ConfigError, match="holds diffusion_pytorch_model.safetensors, which would be lost"):
        convert(tmp_path / "torch" / "unet", tmp_path / "torch" / "unet", "flax", force=True)
    assert sorted(path for path in (tmp_path / "torch").rglob("*") if path.is_file()) == before


def test_the_command_converts_a_pipeline(tmp_path):
    of_torch("sd1", tmp_path / "torch")
    command = [sys.executable, "scripts/convert.py", "to-flax", tmp_path / "torch", tmp_path / "flax", "--check"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("FlaxStableDiffusionPipeline: ")
    assert finished.stdout.count(f"read from {tmp_path / 'flax'}") == 3
    refused = subprocess.run([*command, "--container", "ema"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert refused.returncode == 2
    assert "--container" in refused.stderr
