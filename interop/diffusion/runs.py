"""Runs of jaxkit's diffusion tasks, as folders of pipelines that torch's diffusers opens."""

import os
import shutil
from pathlib import Path

import jax
import numpy as np

from interop.configs import read_config, write_config
from interop.diffusion.folders import INDEX, SCHEDULER, Part, load_part, save_part
from interop.diffusion.hub import pipeline_folder
from interop.diffusion.weights import variant_of
from interop.engine import flatten, unflatten
from interop.files.atomic import publish, require_free, staged
from interop.starts import READERS
from jaxkit.config import Config, run_config
from jaxkit.data.captions import Tokenizer
from jaxkit.errors import ConfigError
from jaxkit.experiment import precision
from jaxkit.inference import Restored, restored
from jaxkit.tasks.diffusion_configs import configs

_TABLE = "params/text_model/embeddings/token_embedding/embedding"
_SD = {
    "_class_name": "StableDiffusionPipeline",
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}


def export_run(workdir: str | Path, path: str | Path, step: int | None = None, force: bool = False) -> list[str]:
    """Writes a run of the task ``text_to_image`` or ``textual_inversion`` as a pipeline's folder, whole or not at all.

    Of textual inversion it is the pipeline that the run was made with, whose text encoders and tokenizers have the new
    words; UNet and autoencoder are its own files, linked where the disk allows it, else copied.

    Args:
        workdir: of the run.
        path: the folder.
        step: of the checkpoint; None: the best.
        force: whether a pipeline's folder that is there is replaced.

    Returns:
        lines to print.

    Raises:
        CheckpointError: if there is no such step, or it is damaged.
        ConfigError: if there is no such run, it is of another task, something else is at ``path``, or torch has
            no place for what was trained: texts as bytes, or a pipeline of Flax classes; or the pipeline that the run
            was made with is not there any more.
    """
    workdir, path = Path(workdir), Path(path)
    config = run_config(workdir)
    write = {"text_to_image": _write_trained, "textual_inversion": _write_inverted}.get(config.task.name)
    if write is None:
        raise ConfigError(f"{workdir} is of the task {config.task.name}, and no text_to_image or textual_inversion")
    require_free([path], force)
    if path.exists() and not (path / INDEX).is_file():
        raise ConfigError(f"{path} is no pipeline, and is not replaced by one; remove it, or choose another")
    if config.task.name == "textual_inversion":
        _require_of_torch(pipeline_folder(config.task.pipeline, config.task.variant, config.task.revision), path)
    with precision(config):
        run = restored(workdir, config, step, READERS)
    with staged(path.parent, path, 0) as hidden:
        whole = hidden / path.name
        whole.mkdir()
        lines = write(config, run, whole)
        publish(hidden, {whole: path})
    return [f"{path}: step {run.step}", *lines]


def _write_trained(config: Config, run: Restored, whole: Path) -> list[str]:
    captions = run.source.captions
    if captions.folder is None:
        raise ConfigError(
            "data.captions.tokenizer: bytes is no tokenizer of other projects; train with clip, or a folder's"
        )
    parts = configs(config.task, run.source.image_shape, captions)
    variables = {
        **{name: {"params": run.variables.params[name]} for name in ("unet", "text_encoder")},
        "vae": run.variables.frozen["vae"],
    }
    for name, tree in variables.items():
        save_part(Part(parts[name], jax.tree.map(np.asarray, tree)), whole / name)
    scheduler = parts["scheduler"]
    (whole / "scheduler").mkdir()
    write_config(whole / "scheduler" / SCHEDULER, scheduler)
    classes = {
        "tokenizer": ["transformers", _write_tokenizer(captions, whole / "tokenizer")],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    write_config(whole / INDEX, _SD | classes)
    return [f"prompts as the run's captions, of at most {captions.length} tokens"]


def _write_tokenizer(captions: Tokenizer, folder: Path) -> str:
    """Writes a tokenizer that cuts and pads texts as the run did; its class."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(captions.folder, local_files_only=True, model_max_length=captions.length)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(captions.padding)
    tokenizer.save_pretrained(folder)
    return read_config(folder / "tokenizer_config.json")["tokenizer_class"]


def _require_of_torch(source: Path, path: Path) -> None:
    name = str(read_config(source / INDEX).get("_class_name"))
    if name.startswith("Flax"):
        raise ConfigError(
            f"{source} is a {name}, which torch does not open; load the run's learned_embeds files in what "
            "scripts/convert.py to-torch makes of it"
        )
    if path.exists() and path.samefile(source):
        raise ConfigError(f"{path} is the pipeline that the run was made with; choose another folder")


def _write_inverted(config: Config, run: Restored, whole: Path) -> list[str]:
    task = config.task
    source = pipeline_folder(task.pipeline, task.variant, task.revision)
    encoders = ("text_encoder", "text_encoder_2")[: len(run.variables.params["rows"])]
    changed = {*encoders, *(name.replace("text_encoder", "tokenizer") for name in encoders)}
    for name, library in read_config(source / INDEX).items():
        # a part that a pipeline leaves out is listed, and has no folder
        if isinstance(library, list) and name not in changed and (source / name).is_dir():
            _link_part(source / name, whole / name, task.variant)
    shutil.copy(source / INDEX, whole / INDEX)
    lines = []
    for name, rows in zip(encoders, run.variables.params["rows"], strict=True):
        tokenizer = name.replace("text_encoder", "tokenizer")
        numbers, end = _add_words(
            source / tokenizer, whole / tokenizer, [word.placeholder_token for word in task.words], task.vectors
        )
        part = load_part(source / name, task.variant)
        if task.pooling == "eos":
            part = part._replace(config={**part.config, "eos_token_id": end})
        save_part(_grown(part, numbers, np.asarray(rows).reshape(len(numbers), -1)), whole / name)
        lines.append(f"{name}: {len(numbers)} rows more, tokens {numbers[0]} to {numbers[-1]}")
    return lines


def _add_words(source: Path, destination: Path, words: list[str], vectors: int) -> tuple[list[int], int]:
    """Writes a tokenizer with the words, each vector a token as diffusers calls it; their ids, and that of the end."""
    from transformers import CLIPTokenizer, CLIPTokenizerFast

    kind = CLIPTokenizer if (source / "vocab.json").is_file() else CLIPTokenizerFast
    tokenizer = kind.from_pretrained(source, local_files_only=True)
    names = [name for word in words for name in (word, *(f"{word}_{k}" for k in range(1, vectors)))]
    tokenizer.add_tokens(names)
    tokenizer.save_pretrained(destination)
    return tokenizer.convert_tokens_to_ids(names), tokenizer.eos_token_id


def _grown(part: Part, numbers: list[int], rows: np.ndarray) -> Part:
    """A text encoder whose table has these rows; what lies between its own end and them, if anything, is 0."""
    flat = flatten(part.variables)
    table = flat[_TABLE]
    size = max(len(table), max(numbers) + 1)
    grown = np.zeros((size, table.shape[1]), table.dtype)
    grown[: len(table)] = table
    grown[numbers] = rows.astype(table.dtype)
    return Part({**part.config, "vocab_size": size}, unflatten(flat | {_TABLE: grown}))


def _link_part(source: Path, destination: Path, variant: str | None) -> None:
    """Links the files of a part; where some weights are of the variant, those alone, under plain names."""

    def plain(name: str) -> str:
        return name.replace(f".{variant}", "", 1) if variant and variant_of(name) == variant else name

    def others(_folder: str, names: list[str]) -> set[str]:
        weights = {name for name in names if name.endswith((".safetensors", ".bin", ".msgpack")) or ".index." in name}
        asked = {name for name in weights if variant and variant_of(name) == variant}
        return weights - asked if asked else set()

    def link(file: str, place: str) -> None:
        name = Path(place).name
        target = Path(place).with_name(plain(name))
        if name == target.name or ".index." not in name:
            _linked(file, str(target))
            return
        index = read_config(Path(file))
        renamed = {key: plain(shard) for key, shard in index["weight_map"].items()}
        write_config(target, index | {"weight_map": renamed})

    shutil.copytree(source, destination, copy_function=link, ignore=others)


def _linked(source: str, destination: str) -> None:
    """Links a file, or copies it where a link cannot be; what a link points to is linked, not the link."""
    try:
        os.link(os.path.realpath(source), destination)
    except OSError:
        shutil.copy2(source, destination)
