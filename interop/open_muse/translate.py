"""From a config of open-muse's trainer to one of jaxkit's task ``maskgit``."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interop.open_muse.settings import NETWORK, Settings
from jaxkit import yaml12
from jaxkit.config import parse
from jaxkit.errors import ConfigError

Raw = dict[str, Any]

_OPTIMIZERS = {"adamw": "adamw", "fused_adamw": "adamw", "8bit_adamw": "adamw_8bit", "lion": "lion"}
# biases, scales and shifts of norms, embeddings: what a decay of weights is not meant for
_NO_DECAY = ["(^|/)(bias|scale|gamma|beta|embedding)$"]
_FILTERS = (
    "min_size", "max_pwatermark", "min_aesthetic_score", "max_pnsfw", "require_marked_as_ok_by_spawning",
    "require_marked_as_not_getty",
)  # fmt: skip


def convert_config(source: Path, destination: Path, devices: int = 1, force: bool = False) -> list[str]:
    """Writes the config that ``source`` comes to; returns lines that say what is different and what is to be fetched.

    Raises:
        ConfigError: if there is no such file, something is there already, or :func:`translate` refuses it.
    """
    if not source.is_file():
        raise ConfigError(f"{source}: no such file")
    if destination.exists() and not force:
        raise ConfigError(f"{destination} is there already; overwrite it with --force")
    raw, told = translate(_read(source), source.parent, devices)
    part = destination.with_name(f"{destination.name}.part")
    part.write_text(yaml12.write(raw))
    part.replace(destination)
    return [*told, f"{destination}: train with python scripts/train.py --config {destination}"]


def _read(path: Path) -> Any:
    try:
        return yaml12.read(path.read_text())
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no YAML: {error}") from None


def translate(raw: Mapping[str, Any], folder: Path, devices: int = 1) -> tuple[Raw, list[str]]:
    """Translates a config.

    Args:
        raw: nested dicts, as in open-muse's YAML files.
        folder: where the file lies, and the lists of shards and prompts that it names.
        devices: how many the original ran on: its batch is that of one.

    Returns:
        A config that :func:`jaxkit.config.parse` takes, and lines to print.

    Raises:
        ConfigError: with every key and value that jaxkit has no place for, and what a config lacks.
    """
    settings = Settings(raw, folder, devices)
    settings.raise_any()  # what is not filled in is no number
    found = {
        "task": _task(settings),
        "data": _data(settings),
        "optimizer": _optimizer(settings),
        "train": _train(settings),
        "tracking": _tracking(settings),
    }
    settings.raise_any()
    parse(found, "the config that this one comes to")
    return found, list(dict.fromkeys(settings.told))


def _task(settings: Settings) -> Raw:
    from interop.open_muse.networks import network_of, tokenizer_of

    get, told = settings.get, settings.told
    pooled = bool(get(f"{NETWORK}add_cond_embeds"))
    task = {"name": "maskgit", "tokenizer": {"model": tokenizer_of(settings)}, "model": network_of(settings)}
    dropout = get("training.cond_dropout_prob") or 0.0
    if get("model.text_encoder.pretrained") is None:
        task["condition"] = {"name": "class", "dropout": dropout}
    else:
        kind = settings.one("model.text_encoder.type", {"clip": "clip", "t5": "t5"}, "clip")
        if pooled and kind == "t5":
            settings.problems.append("model.text_encoder.type: t5 has no pooled states, which add_cond_embeds needs")
        encoder = {
            "kind": "clip_projection" if pooled else kind,
            "folder": settings.local("model.text_encoder.pretrained"),
        }
        encoder |= {"penultimate": True} if pooled else {}
        task["condition"] = {"name": "text", "encoder": encoder, "dropout": dropout, "prompts": _prompts(settings)}
    if dropout:
        told.append(
            f"training.cond_dropout_prob: {dropout:g} lose their condition, where open-muse has as many keep it; "
            "task.condition.parity=open-muse has that"
        )
    task["masking"], task["sampler"] = _masking(settings)
    if get("training.guidance_scale") and dropout:
        task["sampler"]["guidance"] = {"strength": float(get("training.guidance_scale"))}
    elif get("training.guidance_scale"):
        told.append("training.guidance_scale: left out, for no image loses its condition (training.cond_dropout_prob)")
    task["label_smoothing"] = get("training.label_smoothing", 0.0)
    if get("training.use_soft_code_target"):
        how = {"temperature": float(get("training.soft_code_temp", 1.0))}
        task["soft_code"] = how | {"stochastic": bool(get("training.use_stochastic_code"))}
    if get("training.split_vae_encode"):
        task["encode_chunk"] = get("training.split_vae_encode")
    return task


def _masking(settings: Settings) -> tuple[Raw, Raw]:
    """What is masked in training, and how samples are decoded, by the same schedule."""
    get = settings.get
    schedule = {"name": get("mask_schedule.schedule") or get("training.mask_schedule") or "cosine"}
    constants = {
        key.removeprefix("mask_schedule.params."): float(value)
        for key, value in settings.values.items()
        if key.startswith("mask_schedule.params.")
    }
    schedule |= {"constants": constants} if constants else {}
    replaced, everywhere = get("training.noise_type") == "random_replace", bool(get("training.predict_all_tokens"))
    if replaced:
        settings.told.append(
            "training.noise_type: tokens are replaced, where open-muse masks them all the same and weighs all tokens; "
            "task.masking.noise=mask task.masking.predict_all=true task.sampler.method=predict_all has that"
        )
    masking = {
        "schedule": schedule,
        "min_rate": get("training.min_masking_rate", 0.0),
        "rectangle_probability": get("training.mask_contiguous_region_prob") or 0.0,
        "noise": "random_replace" if replaced else "mask",
        "predict_all": everywhere,
        "eval_ratios": get("training.eval_mask_ratios"),
    }
    method = "random_replace" if replaced else "predict_all" if everywhere else "maskgit"
    sampler = {"method": method, "steps": get("training.generation_timesteps", 12), "schedule": schedule}
    if method != "maskgit" and "training.generation_temperature" in settings.values:
        settings.told.append(f"training.generation_temperature: left out, the sampler {method} has none")
    if method == "maskgit":
        sampler["choice_temperature"] = [float(get("training.generation_temperature", 1.0)), 0.01]
    return masking, sampler


def _prompts(settings: Settings) -> list[str]:
    name = settings.get("dataset.params.validation_prompts_file")
    if name is None:
        settings.told.append(
            "dataset.params.validation_prompts_file: none is given: open-muse draws 16 classes of ImageNet, here it is "
            "the empty caption; set task.condition.prompts"
        )
        return []
    path = settings.folder / name
    if not path.is_file():
        settings.told.append(f"dataset.params.validation_prompts_file: {path} is not there: set task.condition.prompts")
        return []
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def _data(settings: Settings) -> Raw:
    get, captioned = settings.get, settings.get("model.text_encoder.pretrained") is not None
    pieces = get("training.gradient_accumulation_steps", 1)
    size = (settings.need("training.batch_size") or 1) * settings.devices * pieces
    data = {"batch_size": size, "eval_batch_size": size // pieces, "one_batch": bool(get("training.overfit_one_batch"))}
    if get("experiment.max_eval_examples"):
        data["eval_examples"] = get("experiment.max_eval_examples")
    if get("training.pre_encode"):
        settings.told.append(
            "training.pre_encode: run scripts/pre_encode.py on this config without it, and set data.path to its --out"
        )
        return {"name": "encoded", "path": "encoded", **data}
    named = get("dataset.type") == "classification"
    data |= {
        "name": "webdataset",
        "train": _shards(settings, "dataset.params.train_shards_path_or_url"),
        "test": _shards(settings, "dataset.params.eval_shards_path_or_url"),
        "image_size": settings.need("dataset.preprocessing.resolution"),
        # of what is told by texts, open-muse never reads center_crop
        "crop": "center" if get("dataset.preprocessing.center_crop") and (named or not captioned) else "random",
        "threads": max(1, get("dataset.params.num_workers") or 1),
        "captions": None,
    }
    if captioned:
        captions = {"tokenizer": settings.local("model.text_encoder.pretrained"), "name_persons": True}
        captions["max_length"] = get("dataset.preprocessing.max_seq_length") or 77
        captions["pad_token"] = get("model.text_encoder.pad_token_id")
        data["captions"] = captions
    if named and captioned:
        data["class_names"] = settings.need("dataset.params.imagenet_class_mapping_path")
    if get("dataset.preprocessing.random_flip") and (named or not captioned):
        data["augment"] = {"flip": 0.5}
    if get("dataset.params.use_filtered_dataset"):
        data["select"] = {
            key: get(f"dataset.params.{key}") for key in _FILTERS if f"dataset.params.{key}" in settings.values
        }
    variants = [key for key in ("sdxl_synthetic", "clean_upscaled", "clean") if get(f"dataset.params.{_variant(key)}")]
    return data | ({"variant": variants[0]} if variants else {})


def _variant(name: str) -> str:
    return "is_sdxl_synthetic_dataset" if name == "sdxl_synthetic" else f"is_ds_{name}"


def _shards(settings: Settings, key: str) -> list[str]:
    """Paths on disk of shards, which open-muse reads from elsewhere, by one path, several, or a list in a file."""
    value = settings.need(key)
    if isinstance(value, str) and not value.endswith((".tar", "-")) and "/" not in value:
        path = settings.folder / f"{value}.yaml"
        if not path.is_file():
            settings.problems.append(f"{key}: {path}, the list of shards, is not there")
            return ["none"]
        value = yaml12.read(path.read_text())
    found = []
    for one in value if isinstance(value, list) else [str(value)]:
        url = re.search(r"\S+://\S+", one)
        found.append(f"shards/{'/'.join(url[0].split('/')[3:])}" if url else one)
        if url:
            settings.told.append(f"{key}: copy {url[0]} to {found[-1]}")
    return found


def _optimizer(settings: Settings) -> Raw:
    get = settings.get
    name = settings.one("optimizer.name", _OPTIMIZERS, "adamw")
    rate = settings.need("optimizer.params.learning_rate") or 1.0
    pieces = get("training.gradient_accumulation_steps", 1)
    if get("optimizer.params.scale_lr"):
        rate *= (get("training.batch_size") or 1) * settings.devices * pieces
        settings.told.append(f"optimizer.params.scale_lr: the rate is {rate:g}, where open-muse leaves it as it was")
    schedule = {"name": get("lr_scheduler.scheduler", "constant")}
    if schedule["name"] != "constant":
        schedule["warmup_steps"] = get("lr_scheduler.params.warmup_steps") or 0
    found = {
        "name": name,
        "learning_rate": float(rate),
        "weight_decay": float(get("optimizer.params.weight_decay", 0.01)),
        "b1": float(get("optimizer.params.beta1", 0.9)),
        "b2": float(get("optimizer.params.beta2", 0.999)),
        "accumulate": pieces,
        "clip_norm": get("training.max_grad_norm"),
        "schedule": schedule,
    }
    found |= {"no_decay": _NO_DECAY} if found["weight_decay"] else {}
    found |= {"eps": float(get("optimizer.params.epsilon", 1e-8))} if name != "lion" else {}
    return found | ({"ema": {"decay": settings.need("training.ema_decay")}} if get("training.use_ema") else {})


def _train(settings: Settings) -> Raw:
    get = settings.get
    _tell_how_to_resume(settings)
    found = {
        "steps": settings.need("training.max_train_steps"),
        "seed": get("training.seed") or 0,
        "log_every": get("experiment.log_every", 50),
        "log_gradients": bool(get("experiment.log_grad_norm_every")),
        "eval_every": get("experiment.eval_every", 500),
        "checkpoint_every": get("experiment.save_every", 1000),
        "precision": get("training.mixed_precision", "no"),
        "matmul_precision": "default" if get("training.enable_tf32") else "highest",
    }
    return found | ({"keep_last": limit} if (limit := get("experiment.checkpoints_total_limit")) else {})


def _tell_how_to_resume(settings: Settings) -> None:
    """Says what is a flag of the command here: where a run goes on from, and what it leaves behind."""
    origin = settings.get("experiment.resume_from_checkpoint")
    left = {"schedule": not settings.get("experiment.resume_lr_scheduler", True)}
    left["optimizer"] = bool(settings.get("experiment.dont_resume_optimizer"))
    fresh = "".join(f" --fresh {part}" for part, wanted in left.items() if wanted)
    if fresh or origin not in (None, False, True, "latest"):
        settings.told.append(
            f"experiment.resume_from_checkpoint: is {origin}: give scripts/train.py --start-from DIR{fresh}, "
            "with the folder of a run of jaxkit"
        )


def _tracking(settings: Settings) -> Raw:
    project = settings.get("experiment.project")
    return {"wandb": {"project": project, "entity": settings.get("wandb.entity")}} if project else {}
