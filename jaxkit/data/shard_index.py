"""What a tar shard of the webdataset layout holds, and where: read once, then kept in a file."""

import json
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from jaxkit.data import DataError

IMAGES, TEXTS = ("jpg", "jpeg", "png", "webp"), ("txt", "text", "caption")
SCORES = "clip_scores.txt"
# Columns of a sample. Places are bytes from the shard's begin; what is not there is -1, or NaN of the metadata.
PLACES = ("image", "image_size", "text", "text_size", "label")
METADATA = ("width", "height", "watermark", "least_aesthetic", "aesthetic", "nsfw", "spawning", "getty")
# What is looked for, by its names in LAION's, COYO's and Stability's metadata.
_AESTHETIC = ("aesthetic", "AESTHETIC_SCORE", "aesthetic_score_laion_v2", "stability_metadata.aes_scorelv2")
_WATERMARK = ("pwatermark", "watermark_score", "stability_metadata.p_watermarkdf")
_BLOCK = 512
_FORMAT = 1
# What numpy and zipfile raise for an index that is cut or has flipped bits; it is then made anew.
_BROKEN = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


class Index(NamedTuple):
    """The samples of a shard that have an image."""

    places: np.ndarray
    """int64 [n 5], columns ``PLACES``."""
    metadata: np.ndarray
    """float64 [n 8], columns ``METADATA``."""


def shard_index(shard: Path, kept: Path, best_of_several: bool = False) -> Index:
    """Reads the index of a shard from the file ``kept``, which is written first if need be.

    ``best_of_several``: samples hold ``0.png, 1.png, ...`` and their CLIP scores, and the best is taken. Raises
    :class:`DataError` for a shard that is no whole, uncompressed tar file, or an index that cannot be written.
    """
    try:
        stat = shard.stat()
    except OSError as error:
        raise DataError(f"{shard} cannot be opened: {error.strerror}") from error
    stamp = np.array([_FORMAT, stat.st_size, stat.st_mtime_ns, best_of_several])
    try:
        # numpy leaves a file that it opens itself open where it is damaged
        with kept.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if np.array_equal(arrays["stamp"], stamp):
                return Index(arrays["places"], arrays["metadata"])
    except _BROKEN:
        pass
    index = _read_index(shard, best_of_several)
    part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, stamp=stamp, places=index.places, metadata=index.metadata)
        part.replace(kept)
    except OSError as error:
        raise DataError(
            f"{kept} cannot be written: {error.strerror}; set data.index_folder to a folder that can"
        ) from error
    return index


def _read_index(shard: Path, best_of_several: bool) -> Index:
    places, metadata = [], []
    with shard.open("rb") as file:
        for members in _samples(shard):
            if place := _image(file, members, best_of_several):
                text = next((members[name] for name in TEXTS if name in members), (-1, -1))
                label = _label(shard, file, members)
                places.append((*place, *text, label))
                metadata.append(_metadata(_parsed(file, members)))
    return Index(np.array(places, np.int64).reshape(-1, 5), np.array(metadata).reshape(-1, len(METADATA)))


def _samples(shard: Path) -> Iterator[dict[str, tuple[int, int]]]:
    """The members of each sample by extension, as offset and size; neighbours of one name are a sample."""
    for _, members in groupby(_members(shard), key=lambda member: member[0]):
        yield {extension: place for _, extension, place in members}


def _members(shard: Path) -> Iterator[tuple[str, str, tuple[int, int]]]:
    end = 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                folder, name = os.path.split(member.name)
                stem, _, extension = name.partition(".")
                if member.isfile() and stem and extension:
                    yield os.path.join(folder, stem), extension.lower(), (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise DataError(f"{shard} is no uncompressed tar file: {error}") from error
    with shard.open("rb") as file:
        # tarfile takes a damaged header for the end
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise DataError(f"{shard} is cut off or damaged at byte {end}; download it again")


def _image(file: BinaryIO, members: dict, best_of_several: bool) -> tuple[int, int] | None:
    if not best_of_several:
        return next((members[name] for name in IMAGES if name in members), None)
    if SCORES not in members:
        return None
    try:
        scores = [float(score) for score in _bytes(file, members[SCORES]).split(b",")]
    except ValueError:
        return None
    return members.get(f"{max(range(len(scores)), key=scores.__getitem__)}.png")


def _label(shard: Path, file: BinaryIO, members: dict) -> int:
    if "cls" not in members:
        return -1
    text = _bytes(file, members["cls"]).strip()
    if not text.isdigit():
        raise DataError(f"{shard}: the .cls at byte {members['cls'][0]} is {text[:20]!r}, no number of a class")
    return int(text)


def _parsed(file: BinaryIO, members: dict) -> dict:
    try:
        found = json.loads(_bytes(file, members["json"])) if "json" in members else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _metadata(found: dict) -> list[float]:
    stability = found.get("stability_metadata")
    flat = found | {f"stability_metadata.{key}": value for key, value in (stability or {}).items()}
    aesthetic = _numbers(flat, _AESTHETIC)
    return [
        *(_first(_numbers(flat, (f"original_{side}",))) for side in ("width", "height")),
        max(_numbers(flat, _WATERMARK), default=math.nan),
        min(aesthetic, default=math.nan),
        _first(aesthetic),
        *(_first(_numbers(flat, (f"stability_metadata.{key}",))) for key in ("p_nsfwdf", "is_spawning", "is_getty")),
    ]


def _numbers(found: dict, names: Iterable[str]) -> list[float]:
    values = (found.get(name) for name in names)
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _first(values: list[float]) -> float:
    return values[0] if values else math.nan


def _bytes(file: BinaryIO, place: tuple[int, int]) -> bytes:
    file.seek(place[0])
    return file.read(place[1])
