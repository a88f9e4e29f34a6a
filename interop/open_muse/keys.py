"""The keys of open-muse's configs: where each is in jaxkit's, or why it is not.

Source: open-muse, ``training/train_muse.py`` and ``configs/``.
"""

from typing import Any, NamedTuple


class Key(NamedTuple):
    """What becomes of a key of open-muse's."""

    ours: str
    """The key of jaxkit's config that has its value, a flag of a script, or "" where there is none."""
    why: str = ""
    """What is different about it, or why there is no such key."""
    only: tuple[Any, ...] | None = None
    """The values that mean what jaxkit does anyway; others are refused, for the reason given."""


_LOADER = "examples are shuffled over the whole split and decoded ahead of need, without a loader's knobs"
_PICTURES = "drawn at every evaluation (train.eval_every)"
_FILTER = "a sample that does not say is left out, as there"

# by section, in the order of open-muse's own files
KEYS: dict[str, Key] = {
    "wandb.entity": Key("tracking.wandb.entity"),
    "wandb.run_id": Key("", "the run in a workdir is resumed under its own id", (None,)),
    "experiment.project": Key("tracking.wandb.project"),
    "experiment.name": Key("--workdir", "runs/<name of the config's file> by default"),
    "experiment.output_dir": Key("--workdir"),
    "experiment.max_train_examples": Key("", "the examples are counted"),
    "experiment.max_eval_examples": Key("data.eval_examples"),
    "experiment.save_every": Key("train.checkpoint_every"),
    "experiment.eval_every": Key("train.eval_every"),
    "experiment.generate_every": Key("", _PICTURES),
    "experiment.log_every": Key("train.log_every"),
    "experiment.log_grad_norm_every": Key("train.log_gradients", "at every train.log_every"),
    "experiment.log_pixel_entropy_every": Key("", _PICTURES),
    "experiment.log_image_entropy_every": Key("", _PICTURES),
    "experiment.log_cross_entropy_every": Key("", _PICTURES),
    "experiment.log_token_probability_distributions_every": Key("", _PICTURES),
    "experiment.resume_from_checkpoint": Key("--resume", "latest is the default; another run's is --start-from"),
    "experiment.resume_lr_scheduler": Key("--start-from DIR --fresh schedule", "for False"),
    "experiment.dont_resume_optimizer": Key("--start-from DIR --fresh optimizer", "for True"),
    "experiment.checkpoints_total_limit": Key("train.keep_last"),
    "model.architecture": Key("task.model.name", "transformer is maskgit_transformer"),
    "model.vq_model.type": Key("task.tokenizer.model.name"),
    "model.vq_model.pretrained": Key("task.tokenizer.model.pretrained", "a folder on disk"),
    "model.text_encoder.type": Key("task.condition.encoder.kind"),
    "model.text_encoder.pretrained": Key("task.condition.encoder.folder", "a folder on disk"),
    "model.text_encoder.pad_token_id": Key("data.captions.pad_token"),
    "model.gradient_checkpointing": Key("task.model.remat", "there it is never read"),
    "model.enable_xformers_memory_efficient_attention": Key(
        "task.model.attention", "XLA chooses; cudnn asks for flash attention, in half precision"
    ),
    "model.pretrained_model_path": Key("task.model.pretrained", "a folder on disk"),
    "model.transformer.use_empty_embeds_for_uncond": Key(
        "", "the empty caption stands for none, in training and in guidance", (True, False)
    ),
    "model.transformer.add_micro_cond_embeds": Key("", "part of uvit, and of nothing else", (True, False)),
    "model.transformer.add_cond_embeds": Key("task.condition.encoder.kind", "clip_projection, part of uvit"),
    "dataset.type": Key("data.class_names", "classification has the names of classes for captions"),
    "dataset.params.train_shards_path_or_url": Key("data.train", "files on disk"),
    "dataset.params.eval_shards_path_or_url": Key("data.test", "files on disk"),
    "dataset.params.imagenet_class_mapping_path": Key("data.class_names"),
    "dataset.params.validation_prompts_file": Key("task.condition.prompts", "its lines"),
    "dataset.params.batch_size": Key("", "training.batch_size counts"),
    "dataset.params.resolution": Key("", "dataset.preprocessing.resolution counts"),
    "dataset.params.shuffle_buffer_size": Key("", _LOADER),
    "dataset.params.num_workers": Key("data.threads"),
    "dataset.params.pin_memory": Key("", _LOADER),
    "dataset.params.persistent_workers": Key("", _LOADER),
    "dataset.params.use_filtered_dataset": Key("data.select", _FILTER),
    "dataset.params.max_pwatermark": Key("data.select.max_pwatermark"),
    "dataset.params.min_aesthetic_score": Key("data.select.min_aesthetic_score"),
    "dataset.params.max_pnsfw": Key("data.select.max_pnsfw"),
    "dataset.params.min_size": Key("data.select.min_size"),
    "dataset.params.require_marked_as_ok_by_spawning": Key("data.select.require_marked_as_ok_by_spawning"),
    "dataset.params.require_marked_as_not_getty": Key("data.select.require_marked_as_not_getty"),
    "dataset.params.is_sdxl_synthetic_dataset": Key("data.variant", "sdxl_synthetic"),
    "dataset.params.is_ds_clean_upscaled": Key("data.variant", "clean_upscaled"),
    "dataset.params.is_ds_clean": Key("data.variant", "clean"),
    "dataset.preprocessing.resolution": Key("data.image_size"),
    "dataset.preprocessing.max_seq_length": Key("data.captions.max_length"),
    "dataset.preprocessing.center_crop": Key("data.crop", "text2image never reads it there: it crops at random"),
    "dataset.preprocessing.random_flip": Key("data.augment.flip", "0.5 for True; text2image never reads it there"),
    "optimizer.name": Key("optimizer.name", "fused_adamw is adamw; 8bit_adamw is adamw_8bit"),
    "optimizer.params.learning_rate": Key("optimizer.learning_rate"),
    "optimizer.params.scale_lr": Key(
        "optimizer.learning_rate", "multiplied by the batch; there the product is not used"
    ),
    "optimizer.params.beta1": Key("optimizer.b1"),
    "optimizer.params.beta2": Key("optimizer.b2"),
    "optimizer.params.weight_decay": Key("optimizer.weight_decay", "of kernels; there of most norms too (no_decay)"),
    "optimizer.params.epsilon": Key("optimizer.eps"),
    "lr_scheduler.scheduler": Key("optimizer.schedule.name"),
    "lr_scheduler.params.learning_rate": Key("", "optimizer.params.learning_rate counts"),
    "lr_scheduler.params.warmup_steps": Key("optimizer.schedule.warmup_steps"),
    "mask_schedule.schedule": Key("task.masking.schedule.name", "and that of task.sampler"),
    "mask_schedule.params": Key("task.masking.schedule.constants", "and those of task.sampler"),
    "training.mask_schedule": Key("task.masking.schedule.name", "and that of task.sampler"),
    "training.batch_size": Key("data.batch_size", "of an update: times --devices and gradient_accumulation_steps"),
    "training.gradient_accumulation_steps": Key("optimizer.accumulate", "means are over the tokens of all pieces"),
    "training.mixed_precision": Key("train.precision"),
    "training.enable_tf32": Key("train.matmul_precision", "default for True, highest for False"),
    "training.use_ema": Key("optimizer.ema"),
    "training.ema_decay": Key("optimizer.ema.decay"),
    "training.ema_update_after_step": Key("", "the average begins with the first update", (0,)),
    "training.ema_update_every": Key("", "the average takes every update; a larger decay slows it", (1,)),
    "training.seed": Key("train.seed"),
    "training.max_train_steps": Key("train.steps"),
    "training.overfit_one_batch": Key("data.one_batch"),
    "training.pre_encode": Key("data.name", "encoded, by scripts/pre_encode.py: the .pth of those shards are pickles"),
    "training.cond_dropout_prob": Key(
        "task.condition.dropout", "there as many keep their condition; task.condition.parity: open-muse has that"
    ),
    "training.min_masking_rate": Key("task.masking.min_rate"),
    "training.eval_mask_ratios": Key("task.masking.eval_ratios"),
    "training.mask_contiguous_region_prob": Key("task.masking.rectangle_probability"),
    "training.noise_type": Key(
        "task.masking.noise", "there random_replace masks as ever and weighs all tokens: mask and predict_all here"
    ),
    "training.predict_all_tokens": Key("task.masking.predict_all"),
    "training.label_smoothing": Key("task.label_smoothing"),
    "training.max_grad_norm": Key("optimizer.clip_norm"),
    "training.guidance_scale": Key("task.sampler.guidance.strength"),
    "training.generation_timesteps": Key("task.sampler.steps"),
    "training.generation_temperature": Key("task.sampler.choice_temperature", "falls linearly to 0.01"),
    "training.use_soft_code_target": Key("task.soft_code"),
    "training.soft_code_temp": Key("task.soft_code.temperature", "of squared distances, for all tokenizers"),
    "training.use_stochastic_code": Key("task.soft_code.stochastic"),
    "training.split_vae_encode": Key("task.encode_chunk"),
}


def page() -> str:
    """Writes the table as a page of the documentation."""
    rows = [f"| `{theirs}` | {f'`{key.ours}`' if key.ours else '-'} | {_said(key)} |" for theirs, key in KEYS.items()]
    return f"{_HEAD}{chr(10).join(rows)}\n"


def _said(key: Key) -> str:
    if key.only is None:
        return key.why
    return f"{key.why}; only {', '.join(map(str, key.only))}"


_HEAD = """# open-muse's configs here

```bash
python scripts/translate.py research_run_512.yaml ours.yaml --devices 8
```

writes what `scripts/train.py --config ours.yaml` trains, and prints what is different and what has to be downloaded.
A key that jaxkit has no place for is refused by name; so are options of `MaskGiTUViT` version 1. `--devices` is how
many the original ran on: its batch is that of one device. This table is written by `interop.open_muse.keys.page`.

Keys of `model.transformer` that are not in it have the same names in `task.model`; sizes that follow from others
(`codebook_size`, `num_vq_tokens`, `num_classes`, `add_cross_attention`) are not given.

| open-muse | jaxkit | |
|---|---|---|
"""
