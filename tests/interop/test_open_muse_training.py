"""A config of open-muse's, translated, and trained by: from its file to a checkpoint."""

import io
import json
import tarfile

import numpy as np
import pytest
import yaml
from masked_samples import written
from PIL import Image

from interop.masked.runs import load_run
from interop.open_muse import convert_config
from interop.starts import READERS
from jaxkit.config import load
from jaxkit.experiment import run

pytestmark = pytest.mark.level(1)

THEIRS = {
    "experiment": {"project": "muse", "name": "x", "save_every": 2, "eval_every": 2, "log_every": 1},
    "model": {
        "vq_model": {"type": "maskgit_vqgan", "pretrained": "???"},
        "transformer": {
            "vocab_size": 72, "codebook_size": 64, "num_classes": 4, "num_vq_tokens": 16, "max_position_embeddings": 17,
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
        },
        "gradient_checkpointing": True,
    },
    "dataset": {
        "params": {"train_shards_path_or_url": "???", "eval_shards_path_or_url": "???", "num_workers": 1},
        "preprocessing": {"resolution": 8, "center_crop": True, "random_flip": True},
    },
    "optimizer": {"name": "fused_adamw", "params": {"learning_rate": 1e-2, "weight_decay": 0.01}},
    "lr_scheduler": {"scheduler": "constant_with_warmup", "params": {"warmup_steps": 1}},
    "training": {
        "batch_size": 8, "gradient_accumulation_steps": 2, "mixed_precision": "no", "max_train_steps": 4, "seed": 1,
        "cond_dropout_prob": 0.1, "label_smoothing": 0.1, "use_ema": True, "ema_decay": 0.9, "max_grad_norm": 1.0,
        "guidance_scale": 2, "generation_timesteps": 2, "eval_mask_ratios": [0.5, 1.0],
    },
}  # fmt: skip


def shard(path, count):
    """Pictures of 8 x 12 pixels, of four classes in turn."""
    rng = np.random.default_rng(count)
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).save(picture, "PNG")
            for name, data in (("png", picture.getvalue()), ("cls", str(number % 4).encode())):
                member = tarfile.TarInfo(f"{number:03d}.{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def test_a_config_that_was_translated_trains_evaluates_and_leaves_a_network_of_its_sizes(tmp_path):
    for name, count in (("train", 32), ("test", 8)):
        shard(tmp_path / f"{name}.tar", count)
    folder, _ = written(tmp_path, "maskgit_vqgan", "open-muse")
    theirs = json.loads(json.dumps(THEIRS))
    theirs["model"]["vq_model"]["pretrained"] = str(folder)
    for kind, name in (("train", "train"), ("eval", "test")):
        theirs["dataset"]["params"][f"{kind}_shards_path_or_url"] = str(tmp_path / f"{name}.tar")
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(theirs))
    convert_config(tmp_path / "theirs.yaml", tmp_path / "ours.yaml")

    config = load(
        tmp_path / "ours.yaml", ("tracking.progress=false", "tracking.tensorboard=false", "tracking.wandb=null")
    )
    results = run(config, tmp_path / "run", readers=READERS)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    # what a network costs that knows nothing yet
    assert abs(losses[0] - np.log(64)) < 0.3
    assert len(losses) == config.train.steps == 4
    assert np.isfinite(losses).all()
    assert results["best"]["loss"] > 0
    module, variables, grid = load_run(tmp_path / "run")
    assert grid == (4, 4)
    assert (module.vocab_size, module.hidden_size, module.codebook_size) == (72, 16, 64)
    assert variables["params"]["word_embeddings"]["embedding"].shape == (72, 16)
