import json
import subprocess
import sys
import warnings
from dataclasses import fields

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT
from diffusion_samples import TEXTS, UNETS, VAE, config_of, pipeline, text, unet, vae
from masked_samples import rewritten, same
from safetensors.torch import load_file, save_file
from twins import arrays

from interop.diffusion.folders import Part, load_part, load_pipeline, save_part
from interop.diffusion.hub import needed, pipeline_folder
from interop.diffusion.layouts import architecture_of
from interop.engine import to_flax
from interop.files import FileError
from interop.problems import WeightsError
from jaxkit.errors import ConfigError, UserError
from jaxkit.models.diffusion.config import from_config, shapes

pytestmark = pytest.mark.level(1)

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def converted(net):
    config = config_of(net)
    return to_flax(arrays(net), architecture_of(config).table, shapes(from_config(config)))


@pytest.mark.parametrize("name", UNETS)
def test_a_pipelines_folder_is_read_with_all_that_is_in_it(tmp_path, name):
    theirs = pipeline(name, tmp_path)
    theirs.save_pretrained(tmp_path / name)
    found = load_pipeline(tmp_path / name)
    encoders = [theirs.text_encoder, theirs.text_encoder_2] if name == "sdxl" else [theirs.text_encoder]
    parts, nets = (*found.text_encoders, found.unet, found.vae), (*encoders, theirs.unet, theirs.vae)
    for part, net in zip(parts, nets, strict=True):
        same(part.variables, converted(net))
    assert found.scheduler["beta_schedule"] == "scaled_linear"
    assert [path.name for path in found.tokenizers] == ["tokenizer", "tokenizer_2"][: len(encoders)]
    assert all((path / "vocab.json").is_file() for path in found.tokenizers)


@pytest.mark.parametrize(
    "options",
    [{"safe_serialization": False}, {"max_shard_size": "300KB"}, {"max_shard_size": "300KB", "variant": "fp16"}],
    ids=["bin", "shards", "shards of a variant"],
)
def test_a_unets_weights_are_read_however_diffusers_writes_them(tmp_path, options):
    net = unet(**UNETS["sd1"])
    net.save_pretrained(tmp_path, **options)
    same(load_part(tmp_path, options.get("variant")).variables, converted(net))


def test_a_variant_keeps_its_type_and_is_read_only_when_it_is_asked_for(tmp_path):
    net = text(**TEXTS["sd1"][0]).half()
    net.save_pretrained(tmp_path, variant="fp16")
    found = load_part(tmp_path, "fp16").variables
    same(found, converted(net))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float16)}
    with pytest.raises(FileError, match="all weights are of a variant, fp16; ask for it"):
        load_part(tmp_path)
    with pytest.raises(FileError, match="no weights of the variant 'bf16' are there, but fp16"):
        load_part(tmp_path, "bf16")
    text(**TEXTS["sd1"][0]).save_pretrained(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(load_part(tmp_path).variables)} == {np.dtype(np.float32)}


def test_bfloat16_weights_keep_their_type(tmp_path):
    net = vae(**VAE).to(torch.bfloat16)
    net.save_pretrained(tmp_path)
    found = load_part(tmp_path).variables
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    back = found["params"]["quant_conv"]["bias"].astype(np.float32)
    np.testing.assert_array_equal(back, net.quant_conv.bias.detach().float().numpy())


def test_old_names_of_the_autoencoders_attention_are_read(tmp_path):
    net = vae(**VAE)
    net.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for new, old in OLD_NAMES.items():
        tensors = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value for key, value in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    assert any("query" in key for key in tensors)
    same(load_part(tmp_path).variables, converted(net))


def test_a_buffer_of_older_text_encoders_is_left_out(tmp_path):
    net = text(**TEXTS["sd1"][0])
    net.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    positions = {"text_model.embeddings.position_ids": torch.arange(9)[None]}
    save_file(load_file(file) | positions, file, metadata={"format": "pt"})
    same(load_part(tmp_path).variables, converted(net))


def flax_twin(net):
    """The Flax class of diffusers or transformers of a torch network."""
    diffusers.utils.logging.set_verbosity_error()
    config = config_of(net)
    if isinstance(net, transformers.PreTrainedModel):
        return transformers.FlaxCLIPTextModel(net.config, _do_init=False)
    kind = getattr(diffusers, f"Flax{type(net).__name__}")
    names = {field.name for field in fields(kind)}
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key in names})


@pytest.mark.parametrize(
    "build",
    [lambda: unet(**UNETS["sdxl"]), lambda: vae(**VAE), lambda: text(**TEXTS["sd2"][0])],
    ids=["unet", "vae", "text"],
)
def test_folders_of_flax_classes_are_read(tmp_path, build):
    net = build()
    expected = converted(net)
    with warnings.catch_warnings():
        # they announce their own end
        warnings.simplefilter("ignore")
        flax_twin(net).save_pretrained(tmp_path, params=expected["params"])
    assert list(tmp_path.glob("*.msgpack"))
    found = load_part(tmp_path)
    same(found.variables, expected)
    from_config(found.config)


def test_weights_that_are_not_their_configs_are_refused(tmp_path):
    unet(**UNETS["sd1"]).save_pretrained(tmp_path)
    rewritten(tmp_path, layers_per_block=2)
    with pytest.raises(WeightsError, match=r"resnets\.1"):
        load_part(tmp_path)


def test_not_a_number_is_refused(tmp_path):
    net = vae(**VAE)
    with torch.no_grad():
        net.quant_conv.bias[0] = torch.nan
    net.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="params/quant_conv/bias holds not-a-numbers"):
        load_part(tmp_path)


def test_other_pipelines_and_pipelines_in_part_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_pipeline(tmp_path / "nowhere")
    index = {"_class_name": "FluxPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="holds a FluxPipeline; there are StableDiffusionPipeline"):
        load_pipeline(tmp_path)
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(FileError, match="the pipeline has no folder text_encoder"):
        load_pipeline(tmp_path)


def test_safetensors_are_read_without_torch(tmp_path):
    vae(**VAE).save_pretrained(tmp_path)
    code = (
        "import sys\n"
        "from interop.diffusion.folders import load_part\n"
        f"print(len(load_part({str(tmp_path)!r}).variables['params']))\n"
        "print({'torch', 'diffusers', 'transformers'} & sys.modules.keys())"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.stdout == "4\nset()\n", finished.stderr


@pytest.mark.parametrize(
    "build",
    [
        lambda: unet(**UNETS["sdxl"]),
        lambda: unet(**UNETS["sd1"]),
        lambda: vae(**VAE),
        lambda: text(projection=True, **TEXTS["sdxl"][1]),
    ],
    ids=["sdxl unet", "sd1 unet", "vae", "text"],
)
def test_a_saved_part_opens_in_torch_with_every_bit(tmp_path, build):
    net = build()
    config = config_of(net)
    if config.get("_class_name") == "AutoencoderKL":
        config["_class_name"] = "FlaxAutoencoderKL"
    save_part(Part(config, converted(net)), tmp_path / "part")
    found = arrays(type(net).from_pretrained(tmp_path / "part"))
    expected = arrays(net)
    assert found.keys() == expected.keys()
    assert all(found[key].tobytes() == expected[key].tobytes() for key in found)


def test_only_what_is_read_of_a_hubs_pipeline_is_downloaded():
    files = ["README.md", "model_index.json", "v1-5-pruned.ckpt", "scheduler/scheduler_config.json"]
    files += [f"tokenizer/{name}" for name in ("vocab.json", "merges.txt")]
    files += ["safety_checker/model.safetensors", "unet/config.json", "vae/config.json"]
    single = [f"unet/diffusion_pytorch_model.{end}" for end in ("bin", "safetensors", "fp16.bin", "fp16.safetensors")]
    shard = "vae/diffusion_pytorch_model"
    sharded = [f"{shard}.fp16-00001-of-00002.safetensors", f"{shard}.safetensors.index.fp16.json"]
    old = ["vae/diffusion_pytorch_model.bin"]
    common = {*files[1:2], *files[3:6], *files[7:]}
    assert set(needed([*files, *single, *sharded, *old])) == common | {single[1], *old}
    assert set(needed([*files, *single, *sharded, *old], "fp16")) == common | {single[3], *sharded}


def test_a_pipeline_is_a_folder_or_a_name_of_the_hub(tmp_path, monkeypatch):
    assert pipeline_folder(str(tmp_path)) == tmp_path
    with pytest.raises(ConfigError, match="there is no such folder, and names of the model hub are like owner/name"):
        pipeline_folder(str(tmp_path / "nowhere"))
    # read by huggingface_hub as it is imported, which this process has done
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="owner/name: cannot be downloaded .*; give the path of a folder") as error:
        pipeline_folder("owner/name")
    assert "\n" not in str(error.value)
    # what was once downloaded, as the hub's cache has it
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--owner--name"
    (cached / "snapshots" / "0123").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    assert pipeline_folder("owner/name") == cached / "snapshots" / "0123"
