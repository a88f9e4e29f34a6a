"""Configs of open-muse: what jaxkit trains by them, what is said to be different, what is refused."""

import json
import re

import pytest
import yaml
from conftest import ROOT, script
from masked_samples import MODULES

from interop.engine import flatten, plan_to_torch
from interop.layout import spec
from interop.masked.layouts import architecture_of, config_of, shapes
from interop.open_muse import convert_config, translate
from interop.open_muse.keys import KEYS, page
from jaxkit.config import parse
from jaxkit.errors import ConfigError
from jaxkit.models.masked import transformer_class
from jaxkit.optimizer import decay_mask

SHARDS = "pipe:aws s3 cp s3://bucket/set/{00000..00010}.tar -"
BASE = {
    "experiment": {"project": "muse", "name": "x", "save_every": 2000, "eval_every": 1000, "log_every": 50},
    "model": {"gradient_checkpointing": True},
    "dataset": {
        "params": {"train_shards_path_or_url": SHARDS, "eval_shards_path_or_url": SHARDS, "num_workers": 4},
        "preprocessing": {"resolution": 256, "center_crop": True, "random_flip": False},
    },
    "optimizer": {"name": "fused_adamw", "params": {"learning_rate": 1e-4, "weight_decay": 0.01}},
    "lr_scheduler": {
        "scheduler": "constant_with_warmup",
        "params": {"learning_rate": "${optimizer.params.learning_rate}", "warmup_steps": 2000},
    },
    "training": {
        "batch_size": 64,
        "mixed_precision": "bf16",
        "enable_tf32": True,
        "max_train_steps": 50000,
        "seed": 42,
    },
}
GOOGLES = {"type": "maskgit_vqgan", "pretrained": "openMUSE/maskgit-vqgan-imagenet-f16-256"}
LAIONS = {"type": "vqgan", "pretrained": "openMUSE/vqgan-f16-8192-laion"}
CLIP = {"type": "clip", "pretrained": "openMUSE/clip-vit-large-patch14-text-enc", "pad_token_id": 49407}
V2 = {
    "vocab_size": 8256, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 22,
    "num_attention_heads": 16, "in_channels": 768, "block_out_channels": [768], "block_has_attention": [True],
    "block_num_heads": 12, "num_res_blocks": 3, "res_ffn_factor": 4, "patch_size": 1, "encoder_hidden_size": 768,
    "add_cross_attention": True, "project_encoder_hidden_states": True, "codebook_size": 8192, "num_vq_tokens": 1024,
    "initializer_range": 0.02, "norm_type": "rmsnorm", "layer_norm_eps": 1e-6, "ln_elementwise_affine": True,
    "use_encoder_layernorm": False, "use_bias": False, "hidden_dropout": 0.0, "attention_dropout": 0.0,
    "use_codebook_size_for_output": True, "use_empty_embeds_for_uncond": True, "add_cond_embeds": True,
    "cond_embed_dim": 768, "add_micro_cond_embeds": True, "micro_cond_encode_dim": 256, "micro_cond_embed_dim": 1280,
    "force_down_up_sample": True,
}  # fmt: skip


def merged(base, changes):
    """Nested dicts, changed at dotted paths."""
    raw = json.loads(json.dumps(base))
    for path, value in changes.items():
        *above, last = path.split(".")
        node = raw
        for key in above:
            node = node.setdefault(key, {})
        node[last] = json.loads(json.dumps(value))
    return raw


def classes(**changes):
    network = {"vocab_size": 2048, "max_position_embeddings": 264, "num_hidden_layers": 24, "num_attention_heads": 16}
    network |= {"codebook_size": 1024, "num_vq_tokens": 256, "num_classes": 1000, "layer_norm_eps": 1e-6}
    return merged(BASE, {"model.vq_model": GOOGLES, "model.transformer": network, **changes})


def research(**changes):
    found = {
        "model.vq_model": LAIONS,
        "model.text_encoder": CLIP,
        "model.architecture": "uvit",
        "model.transformer": V2,
        "dataset.type": "text2image",
        "dataset.preprocessing.resolution": 512,
        "dataset.preprocessing.max_seq_length": 77,
        "dataset.params.use_filtered_dataset": True,
        "dataset.params.max_pnsfw": 0.45,
        "training.cond_dropout_prob": 0.1,
        "training.guidance_scale": 8,
        "training.generation_timesteps": 16,
        "training.use_ema": True,
        "training.ema_decay": 0.9999,
        "training.mask_contiguous_region_prob": 0.15,
    }
    return merged(BASE, {**found, **changes})


def test_a_class_conditional_config_trains_by_the_classes_of_shards(tmp_path):
    raw, told = translate(classes(), tmp_path, devices=8)
    config = parse(raw, "ours")
    assert config.data.batch_size == 64 * 8
    assert (config.data.crop, config.data.captions) == ("center", None)
    assert config.task.condition.name == "class"
    assert config.task.model.vocab_size == 2048
    assert config.task.model.max_position_embeddings == 264
    assert config.task.model.remat
    assert config.optimizer.learning_rate == 1e-4
    assert config.data.train == ("shards/set/{00000..00010}.tar",)
    assert "download openMUSE/maskgit-vqgan-imagenet-f16-256 to weights/maskgit-vqgan-imagenet-f16-256" in " ".join(
        told
    )


def test_the_muse_of_512_pixels_is_uvit_told_by_clip_with_its_pooled_states(tmp_path):
    raw, told = translate(research(), tmp_path)
    config = parse(raw, "ours")
    assert (config.task.model.name, config.task.model.force_down_up_sample) == ("uvit", True)
    encoder = config.task.condition.encoder
    assert (encoder.kind, encoder.penultimate, config.data.captions.pad_token) == ("clip_projection", True, 49407)
    assert config.task.sampler.guidance.strength == 8
    assert config.task.masking.rectangle_probability == 0.15
    assert config.data.select.max_pnsfw == 0.45
    assert config.task.tokenizer.model.num_embeddings == 8192
    # open-muse's never reads center_crop of what is told by texts
    assert config.data.crop == "random"
    assert any("task.condition.parity=open-muse has that" in line for line in told)


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ({"optimizer.name": "8bit_adamw"}, "optimizer.name", "adamw_8bit"),
        ({"optimizer.params.scale_lr": True}, "optimizer.learning_rate", 64e-4),
        ({"training.gradient_accumulation_steps": 2}, "optimizer.accumulate", 2),
        ({"training.noise_type": "random_replace"}, "task.masking.noise", "random_replace"),
        ({"training.use_soft_code_target": True, "training.soft_code_temp": 2.0}, "task.soft_code.temperature", 2.0),
        ({"training.overfit_one_batch": True}, "data.one_batch", True),
        ({"training.split_vae_encode": 4}, "task.encode_chunk", 4),
        ({"training.max_grad_norm": 1.5}, "optimizer.clip_norm", 1.5),
        ({"experiment.max_eval_examples": 5000}, "data.eval_examples", 5000),
        ({"experiment.checkpoints_total_limit": 10}, "train.keep_last", 10),
        ({"experiment.log_grad_norm_every": 500}, "train.log_gradients", True),
        ({"dataset.params.is_sdxl_synthetic_dataset": True}, "data.variant", "sdxl_synthetic"),
        (
            {"mask_schedule.params": {"tau": 0.9}, "mask_schedule.schedule": "sigmoid"},
            "task.masking.schedule.constants",
            {"tau": 0.9},
        ),
        ({"training.pre_encode": True}, "data.name", "encoded"),
        ({"training.enable_tf32": False}, "train.matmul_precision", "highest"),
        ({"model.pretrained_model_path": "/x/unwrapped_model"}, "task.model.pretrained", "/x/unwrapped_model"),
    ],
    ids=str,
)
def test_a_key_is_found_where_the_table_says(change, key, value, tmp_path):
    raw, _ = translate(research(**change), tmp_path)
    node = parse(raw, "ours").model_dump()
    for part in key.split("."):
        node = node[part]
    assert node == pytest.approx(value) if isinstance(value, float) else node == value
    theirs = next(iter(change))
    assert key.startswith(KEYS[theirs].ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"training.label_smothing": 0.1},
            "training.label_smothing: unknown key, did you mean 'training.label_smoothing'",
        ),
        (
            {"training.ema_update_every": 10},
            "training.ema_update_every: 10 is not offered: the average takes every update",
        ),
        ({"training.max_train_steps": "???"}, "training.max_train_steps: is to be filled in"),
        ({"optimizer.name": "sgd"}, "optimizer.name: 'sgd' is none of adamw, fused_adamw, 8bit_adamw, lion"),
        (
            {"model.transformer.use_normformer": True},
            "use_normformer True is not offered, only False; this is MaskGiTUViT",
        ),
        ({"model.transformer.block_out_channels": [512, 1024]}, "has 2 levels, only one is offered"),
        ({"model.vq_model.pretrained": "openMUSE/paella"}, "download it, and name the folder, whose config.json says"),
        ({"dataset.params.train_shards_path_or_url": "laion"}, "laion.yaml, the list of shards, is not there"),
        ({"dataset.params.num_workers": "???"}, "dataset.params.num_workers: is to be filled in"),
        ({"model.text_encoder.type": "t5"}, "t5 has no pooled states, which add_cond_embeds needs"),
        ({"training.batch_size": "${training.size}"}, "${training.size} refers to a key that is not there"),
    ],
    ids=str,
)
def test_what_has_no_place_here_is_refused_by_name(change, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        translate(research(**change), tmp_path)
    assert message in str(error.value)


def test_lists_of_shards_prompts_and_sizes_are_read_from_beside_the_config(tmp_path):
    (tmp_path / "laion.yaml").write_text(yaml.safe_dump([SHARDS, "/data/{0..3}.tar"]))
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    vq = {"_class_name": "VQGANModel", "resolution": 64, "channel_mult": [1, 2], "num_embeddings": 32}
    (tmp_path / "vq").mkdir()
    (tmp_path / "vq" / "config.json").write_text(json.dumps(vq))
    raw, _ = translate(
        research(
            **{
                "dataset.params.train_shards_path_or_url": "laion",
                "dataset.params.validation_prompts_file": "prompts.txt",
                "model.vq_model.pretrained": str(tmp_path / "vq"),
            }
        ),
        tmp_path,
    )
    config = parse(raw, "ours")
    assert config.data.train == ("shards/set/{00000..00010}.tar", "/data/{0..3}.tar")
    assert config.task.condition.prompts == ("a cat", "a dog")
    assert config.task.tokenizer.model.num_embeddings == 32
    assert config.task.tokenizer.model.pretrained == str(tmp_path / "vq")


@pytest.mark.parametrize("made", [classes, research])
def test_its_decay_finds_the_parameters_of_the_network(made, tmp_path):
    raw, _ = translate(made(), tmp_path)
    config = parse(raw, "ours")
    fields = config.task.model.model_dump(exclude={"name", "pretrained"})
    fields |= {"num_hidden_layers": 1, "vocab_size": 2048 + 8192}
    fields = {name: value for name, value in fields.items() if value is not None}
    module = transformer_class(config.task.model.name)(**fields, codebook_size=1024)
    params = shapes(module)["params"]
    mask = decay_mask(params, config.optimizer.no_decay)
    found = flatten(mask)
    assert not any(kept for path, kept in found.items() if path.endswith(("scale", "bias", "embedding")))
    assert all(kept for path, kept in found.items() if path.endswith("kernel"))


@pytest.mark.parametrize(
    "name", ["uvit", "uvit of half size", *(f"maskgit_transformer of {k}" for k in ("classes", "texts"))]
)
def test_the_decay_of_open_muse_is_that_of_the_pattern_in_the_docs(name):
    (pattern,) = re.findall(r'`no_decay: \["(.*)"\]`', (ROOT / "docs" / "maskgit.md").read_text())
    module = MODULES[name]
    variables = shapes(module)
    decayed = flatten({"params": decay_mask(variables["params"], (pattern.replace("\\|", "|"),))})
    table = architecture_of(config_of(module, "open-muse")).table
    specs = {path: spec(leaf) for path, leaf in flatten(variables).items()}
    spared = ("bias", "layer_norm.weight", "mlm_ln.weight", "embeddings.weight")
    for move in plan_to_torch(specs, table).moves:
        theirs = {not any(part in key for part in spared) for key in move.torch}
        assert {decayed[path] for path in move.flax} == theirs, move.torch


def test_what_a_config_says_of_resuming_is_said_by_the_flag_that_has_it(tmp_path):
    left = {"experiment.resume_lr_scheduler": False, "experiment.dont_resume_optimizer": True}
    _, told = translate(research(**left, **{"experiment.resume_from_checkpoint": "runs/a/checkpoint-9"}), tmp_path)
    (line,) = [line for line in told if "resume_from_checkpoint" in line]
    assert "runs/a/checkpoint-9" in line
    assert "--start-from DIR --fresh schedule --fresh optimizer" in line
    for usual in ({"resume_from_checkpoint": "latest", "resume_lr_scheduler": True}, {}):
        _, told = translate(research(**{f"experiment.{key}": value for key, value in usual.items()}), tmp_path)
        assert not any("resume" in line for line in told)


def test_a_config_without_prompts_says_that_the_empty_caption_is_drawn(tmp_path):
    _, told = translate(research(), tmp_path)
    assert any(line.startswith("dataset.params.validation_prompts_file: none is given") for line in told)


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"broken\.yaml: is no YAML"):
        convert_config(tmp_path / "broken.yaml", tmp_path / "ours.yaml")


def test_the_command_writes_a_config_once(tmp_path):
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(research()))
    arguments = (tmp_path / "theirs.yaml", tmp_path / "ours.yaml", "--devices", "4")
    finished = script("translate.py", *arguments)
    assert finished.stdout.endswith(f"train with python scripts/train.py --config {tmp_path}/ours.yaml\n")
    assert yaml.safe_load((tmp_path / "ours.yaml").read_text())["data"]["batch_size"] == 256
    again = script("translate.py", *arguments, check=False)
    assert (again.returncode, again.stderr) == (
        2,
        f"{tmp_path}/ours.yaml is there already; overwrite it with --force\n",
    )


def test_the_page_in_the_docs_is_the_table():
    assert (ROOT / "docs" / "open_muse.md").read_text() == page()
