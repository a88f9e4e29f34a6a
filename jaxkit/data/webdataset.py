"""Tar shards of the webdataset layout, read at any place by an index of each."""

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np

from jaxkit.data import DataError, Source
from jaxkit.data.captions import AESTHETIC_SCORE, CaptionedExamples, Record, open_tokenizer
from jaxkit.data.shard_index import METADATA, Index, shard_index
from jaxkit.schema.data import Select, WebDataset

# Of images made by another model, or cleaned, nobody has measured it.
CLEAN_SCORE = 5.0


class Shards:
    """Records of several shards, those that ``select`` takes. ``counts`` says of how many samples, and why not all."""

    def __init__(self, paths: list[Path], config: WebDataset, names: dict[str, str]):
        self.paths, self.names = paths, names
        indexes = [shard_index(path, _index_file(path, config), config.variant == "sdxl_synthetic") for path in paths]
        index = Index(*(np.concatenate(parts) for parts in zip(*indexes, strict=True)))
        taken, self.counts = selected(index.metadata, config.select)
        self.places, self.metadata = index.places[taken], index.metadata[taken]
        self.shard = np.repeat(np.arange(len(paths)), [len(one.places) for one in indexes])[taken]
        self.score = CLEAN_SCORE if config.variant != "plain" else None
        if not len(self.places):
            raise DataError(f"no sample of {paths[0]} and the other shards is taken: {self.counts}")
        self.with_texts = config.captions is not None
        captioned = (self.places[:, 2] >= 0) | ((self.places[:, 4] >= 0) & bool(names))
        if self.with_texts and not captioned.all():
            first = self.paths[self.shard[captioned.argmin()]]
            raise DataError(
                f"{(~captioned).sum()} samples have no .txt, the first in {first}; those with a .cls get a caption by "
                "data.class_names"
            )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Record:
        image, image_size, text, text_size, label = self.places[index].tolist()
        path = self.paths[self.shard[index]]
        where = f"{path}, the image at byte {image}"
        with path.open("rb") as file:
            file.seek(image)
            pixels = file.read(image_size)
            file.seek(max(text, 0))
            words = file.read(text_size).decode(errors="replace").strip() if text >= 0 else ""
        if self.with_texts and text < 0:
            words = self._name(label, where)
        known = dict(zip(METADATA, self.metadata[index].tolist(), strict=True))
        size = (known["width"], known["height"])
        score = AESTHETIC_SCORE if np.isnan(known["aesthetic"]) else known["aesthetic"]
        return Record(
            where=where,
            image=pixels,
            text=words,
            label=max(label, 0),
            aesthetic=score if self.score is None else self.score,
            size=None if self.score is not None or np.isnan(size).any() else tuple(map(int, size)),
        )

    def _name(self, label: int, where: str) -> str:
        if str(label) not in self.names:
            raise DataError(f"{where}: is of class {label}, which data.class_names does not name")
        return self.names[str(label)]


def open_webdataset(config: WebDataset) -> Source:
    """Indexes the shards of both splits, and says how many samples are taken and what the others fail.

    The original's size in the conditions is that in .json, or the image's own. Raises :class:`DataError` for shards
    that are elsewhere than on disk, missing or damaged, samples without a caption, and none left.
    """
    tokenizer = config.captions and open_tokenizer(config.captions)
    names = _class_names(config)
    paths = [[path for pattern in patterns for path in _paths(pattern)] for patterns in (config.train, config.test)]
    splits = [Shards(split, config, names) for split in paths]
    digest = hashlib.sha256(json.dumps(names, sort_keys=True).encode())
    for name, split in zip(("train", "test"), splits, strict=True):
        if config.select:
            print(f"data.{name}: {split.counts}", file=sys.stderr)
        for path in split.paths:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(split.places.tobytes())
    quarter, read = config.variant == "clean", tokenizer.identity if tokenizer else "no captions"
    train, test = (CaptionedExamples(split, config, tokenizer, quarter) for split in splits)
    return Source(
        train=train,
        test=test,
        num_classes=int(max(split.places[:, 4].max() for split in splits).clip(0)) + 1,
        image_shape=(config.image_size, config.image_size, config.channels),
        fingerprint=f"webdataset {len(train)} + {len(test)} images, sha256 {digest.hexdigest()[:16]}, "
        f"{config.variant}, {config.image_size} pixels, {config.crop} crop {config.crop_seed}, {read}",
        corrupt=lambda: {**train.corrupt, **test.corrupt},
        captions=tokenizer,
    )


def selected(metadata: np.ndarray, select: Select | None) -> tuple[np.ndarray, str]:
    """Which samples ``select`` takes, of the columns ``METADATA``; and how many fail each rule, or do not say."""
    taken, counts = np.ones(len(metadata), bool), []
    column = dict(zip(METADATA, metadata.T, strict=True))
    if select is None:
        return taken, f"all {len(taken)} samples are taken"
    smaller = np.minimum(column["width"], column["height"])
    rules = (
        ("min_size", smaller, lambda x: x >= select.min_size, select.min_size is not None),
        (
            "max_pwatermark",
            column["watermark"],
            lambda x: x <= select.max_pwatermark,
            select.max_pwatermark is not None,
        ),
        (
            "min_aesthetic_score",
            column["least_aesthetic"],
            lambda x: x >= select.min_aesthetic_score,
            select.min_aesthetic_score is not None,
        ),
        ("max_pnsfw", column["nsfw"], lambda x: x <= select.max_pnsfw, select.max_pnsfw is not None),
        (
            "require_marked_as_ok_by_spawning",
            column["spawning"],
            lambda x: x == 0,
            select.require_marked_as_ok_by_spawning,
        ),
        ("require_marked_as_not_getty", column["getty"], lambda x: x == 0, select.require_marked_as_not_getty),
    )
    for name, values, fits, asked in rules:
        if asked:
            taken &= fits(values)
            unsaid = np.isnan(values)
            counts.append(f"{name}: {(~fits(values) & ~unsaid).sum()} fail, {unsaid.sum()} do not say")
    return taken, f"{taken.sum()} of {len(taken)} samples are taken ({'; '.join(counts)})"


def expanded(pattern: str) -> list[str]:
    """Writes ``{000..127}`` and ``{a,b}`` out, as a shell does; the zeros in front of a number stay."""
    found = re.search(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    first, dots, last = found[1].partition("..")
    if dots and first.isdigit() and last.isdigit():
        step = 1 if int(last) >= int(first) else -1
        choices = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + step, step)]
    else:
        choices = found[1].split(",")
    parts = (expanded(pattern[: found.start()] + choice + pattern[found.end() :]) for choice in choices)
    # braces in braces are written out first, once for each choice of the outer ones
    return list(dict.fromkeys(path for part in parts for path in part))


def _paths(pattern: str) -> list[Path]:
    if pattern.startswith("pipe:") or "://" in pattern:
        raise DataError(f"{pattern}: shards are read at any place, hence from disk only; download them first")
    return [Path(path) for path in expanded(pattern)]


def _index_file(shard: Path, config: WebDataset) -> Path:
    several = ".best" if config.variant == "sdxl_synthetic" else ""
    if config.index_folder is None:
        return shard.with_name(f"{shard.name}{several}.index.npz")
    # shards of several folders may have one name
    place = hashlib.sha256(str(shard.absolute()).encode()).hexdigest()[:8]
    return Path(config.index_folder) / f"{shard.name}.{place}{several}.index.npz"


def _class_names(config: WebDataset) -> dict[str, str]:
    if config.class_names is None:
        return {}
    try:
        names = json.loads(Path(config.class_names).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"data.class_names: {config.class_names} cannot be read: {error}") from error
    named = {str(number): name for number, name in enumerate(names)} if isinstance(names, list) else names
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise DataError(f'data.class_names: {config.class_names} is not {{"0": "tench", ...}}')
    return named
