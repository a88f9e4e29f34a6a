"""Runs the frozen encoders of a config once over its data, and stores what they make of it in shards."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxkit.config import Config
from jaxkit.data import Rows, Source
from jaxkit.data.augment import make_preprocess
from jaxkit.data.encoded import EMPTY, INDEX, SPLITS, shard_folders
from jaxkit.data.loader import Batch, eval_batches, first_eval_batch
from jaxkit.data.sources import open_source
from jaxkit.errors import ConfigError
from jaxkit.experiment import DTYPES, load_weights, precision
from jaxkit.starts import digest
from jaxkit.tasks.inputs import encoding
from jaxkit.tasks.task import Context, Readers
from jaxkit.tracking import write_atomically

# What may lose precision: the others are integers, or sizes in pixels.
_STATES = ("encoder_hidden_states", "cond_embeds")


def pre_encode(
    config: Config,
    folder: Path,
    *,
    shard_size: int = 1024,
    half: bool = False,
    part: tuple[int, int] = (0, 1),
    readers: Readers | None = None,
) -> int:
    """Writes the encoded examples of both splits of ``config.data``, for ``data: {name: encoded, path: folder}``.

    A shard is there in full or not at all, and one that is there is not made again: the same call goes on where another
    was stopped, and arrives at the same bytes. Images are neither augmented nor shuffled.

    Args:
        config: of the task ``maskgit``.
        folder: made if need be.
        shard_size: examples of a shard.
        half: whether states of captions are stored in float16.
        part: this process's number and how many there are: each makes the shards of its own.
        readers: of other frameworks' files, for a tokenizer from a folder.

    Returns:
        The number of shards written.

    Raises:
        UserError: for a config that encodes nothing, or a folder of other encodings.
    """
    _require_encodable(config)
    with precision(config):
        source = open_source(config.data)
        encode, frozen = _encoder(config, source, readers)
        index = {
            "format": 1,
            "source": source.fingerprint,
            "encoders": digest(frozen),
            "shard_size": shard_size,
            "half": half,
            "image_shape": source.image_shape,
            "num_classes": source.num_classes,
            "vocabulary": source.captions and source.captions.vocabulary,
            "splits": {split: len(examples) for split, examples in zip(SPLITS, source[:2], strict=True)},
        }
        _claim(folder, json.dumps(index, indent=2) + "\n")
        if source.captions:
            empty = {name: array[None] for name, array in source.captions("").items()}
            _write(folder / EMPTY, [jax.device_get(encode(empty))], half)
        written = 0
        for split, examples in zip(SPLITS, source[:2], strict=True):
            shards = shard_folders(folder, split, len(examples), shard_size)
            for number, shard in enumerate(shards):
                if number % part[1] != part[0] or shard.is_dir():
                    continue
                rows = Rows(examples, range(number * shard_size, min((number + 1) * shard_size, len(examples))))
                _write(shard, _encoded(rows, encode, config), half)
                written += 1
    return written


def _require_encodable(config: Config) -> None:
    if config.task.name != "maskgit":
        raise ConfigError(f"task.name: {config.task.name} has nothing to encode before training; maskgit has")
    if config.data.name == "encoded":
        raise ConfigError("data.name: is encoded already; give the images that it comes from")
    if config.task.soft_code is not None:
        raise ConfigError("task.soft_code: takes the distances of each image to all codes, which are not stored")
    if config.data.augment != "none":
        raise ConfigError("data.augment: changes images in every epoch, encoded ones stay as they are; set it to none")


def _encoder(config: Config, source: Source, readers: Readers | None) -> tuple[Callable[[Batch], Batch], PyTree]:
    """``batch -> encoded batch`` in one program, and the variables of the encoders."""
    context = Context(
        num_classes=source.num_classes,
        image_shape=source.image_shape,
        load_weights=load_weights if readers is None else partial(load_weights, readers=readers),
        read_weights=readers and readers.weights,
        dtype=DTYPES[config.train.precision],
    )
    text = getattr(config.task.condition, "encoder", None)
    stage = encoding(config.task.tokenizer, text, context, config.task.encode_chunk)
    preprocess = make_preprocess(config.data, source.image_shape)
    first = first_eval_batch(source.train, min(config.data.eval_batch_size, len(source.train)), 0, 1)
    frozen = stage.init(jax.random.PRNGKey(config.train.seed), preprocess(jax.tree.map(jnp.asarray, first)))
    compiled = jax.jit(lambda frozen, batch: stage.encode(frozen, preprocess(batch)))
    return lambda batch: compiled(frozen, batch), frozen


def _encoded(rows: Rows, encode: Callable[[Batch], Batch], config: Config) -> list[Batch]:
    batches = []
    with closing(eval_batches(rows, config.data.eval_batch_size, 0, 1, config.data.threads)) as read:
        for batch in read:
            real = int(batch.pop("mask").sum())
            batches.append({name: array[:real] for name, array in jax.device_get(encode(batch)).items()})
    return batches


def _claim(folder: Path, index: str) -> None:
    path = folder / INDEX
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds other files; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, index)
    elif path.read_text() != index:
        old, new = json.loads(path.read_text()), json.loads(index)
        changes = [f"{name} was {old.get(name)!r}, is {new[name]!r}" for name in new if old.get(name) != new[name]]
        raise ConfigError(f"{folder} was begun with other encodings: {'; '.join(changes)}; choose another folder")


def _write(shard: Path, batches: list[dict[str, Any]], half: bool) -> None:
    """Writes an array a file, in a folder that takes its name when all are on disk."""
    part = shard.with_name(f"{shard.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in batches[0]:
        array = np.concatenate([batch[name] for batch in batches])
        with (part / f"{name}.npy").open("wb") as file:
            np.save(file, array.astype(np.float16) if half and name in _STATES else array)
            file.flush()
            os.fsync(file.fileno())
    if shard.is_dir():
        shutil.rmtree(part)
    else:
        part.rename(shard)
