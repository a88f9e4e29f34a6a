"""Folders of images with captions: a ``metadata.jsonl``, or a text file beside each image."""

import hashlib
import json
import os
from pathlib import Path

from jaxkit.data import DataError, Source
from jaxkit.data.captions import AESTHETIC_SCORE, CaptionedExamples, Record, open_tokenizer
from jaxkit.data.image_folder import EXTENSIONS
from jaxkit.schema.data import CaptionedFolder

METADATA = "metadata.jsonl"


class CaptionedFiles:
    """Records of which the images are read on access."""

    def __init__(self, split: Path):
        if not split.is_dir():
            raise DataError(f"data.root has no split {split.name!r}: {split} is no folder")
        self.entries = _listed(split) if (split / METADATA).is_file() else _beside(split)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Record:
        path, text, aesthetic = self.entries[index]
        return Record(path, _read(path), text, aesthetic=aesthetic)


def open_captioned_folder(config: CaptionedFolder) -> Source:
    """Lists the images and captions of both splits; there is one class.

    ``metadata.jsonl`` is that of Hugging Face's imagefolder: a line an image, ``{"file_name": ..., "text": ...}``, and
    ``"aesthetic": ...`` if it has a score. Without it each image's caption is in the file of its name ending in .txt.
    Raises :class:`DataError` for a missing split, image or caption, and for a line that is not so.
    """
    tokenizer = open_tokenizer(config.captions)
    splits = [CaptionedFiles(Path(config.root) / split) for split in (config.train_split, config.eval_split)]
    digest = hashlib.sha256()
    for split in splits:
        for path, text, aesthetic in split.entries:
            name = os.path.relpath(path, config.root)
            digest.update(os.fsencode(f"{name}\0{os.path.getsize(path)}\0{aesthetic}\0"))
            digest.update(f"{text}\n".encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    train, test = (CaptionedExamples(split, config, tokenizer) for split in splits)
    cut = f"{config.image_size} pixels, {config.crop} crop {config.crop_seed}"
    return Source(
        train=train,
        test=test,
        num_classes=1,
        image_shape=(config.image_size, config.image_size, config.channels),
        fingerprint=f"captioned_folder {len(train)} + {len(test)} images, sha256 {digest.hexdigest()[:16]}, {cut}, "
        f"{tokenizer.identity}",
        corrupt=lambda: {**train.corrupt, **test.corrupt},
        captions=tokenizer,
    )


def _listed(split: Path) -> list[tuple[str, str, float]]:
    path = split / METADATA
    try:
        lines = _read(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error}") from error
    entries = [_entry(split, f"{path} line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise DataError(f"{path} lists no images")
    if missing := [entry[0] for entry in entries if not os.path.isfile(entry[0])]:
        raise DataError(f"{path} lists {len(missing)} images that are not there; the first is {missing[0]}")
    return sorted(entries)


def _entry(split: Path, where: str, line: str) -> tuple[str, str, float]:
    try:
        row = json.loads(line)
        name, text, aesthetic = row["file_name"], row["text"], row.get("aesthetic", AESTHETIC_SCORE)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f'{where} is not {{"file_name": ..., "text": ...}}: {error!r}') from error
    if not (isinstance(name, str) and isinstance(text, str) and isinstance(aesthetic, int | float)):
        raise DataError(f"{where}: file_name and text are strings, aesthetic is a number")
    return os.path.join(split, name), text, float(aesthetic)


def _beside(split: Path) -> list[tuple[str, str, float]]:
    images = sorted(path for path in split.rglob("*") if path.suffix.lower() in EXTENSIONS and path.name[0] != ".")
    if not images:
        raise DataError(f"{split} has neither a {METADATA} nor images ({' '.join(EXTENSIONS)})")
    if missing := [path for path in images if not path.with_suffix(".txt").is_file()]:
        raise DataError(
            f"{split} has no {METADATA}, and {len(missing)} images have no .txt beside them; the first is {missing[0]}"
        )
    return [(str(path), _text(path.with_suffix(".txt")), AESTHETIC_SCORE) for path in images]


def _text(path: Path) -> str:
    try:
        return _read(path).decode().strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error}") from error


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}") from error
