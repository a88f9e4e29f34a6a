"""What frozen encoders made of a data set, stored before training: tokens, states of captions, conditions.

A folder has an ``index.json``, and a folder for each shard of each split with an array a file, ``tokens.npy [n h w]``
and so on, of ``shard_size`` examples but for the last. ``empty`` is a shard of the one caption that is empty.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from jaxkit.data import DataError, Source
from jaxkit.schema import data as schema

INDEX, EMPTY = "index.json", "empty"
SPLITS = ("train", "test")
# Shards whose files are open at once; each has up to six.
_OPEN = 64


def shard_folders(folder: Path, split: str, count: int, shard_size: int) -> Iterator[Path]:
    """The folders of a split's shards, in order."""
    for number in range(-(-count // shard_size)):
        yield folder / split / f"{number:05d}"


class EncodedExamples:
    """Random access to the rows of shards, mapped from disk; half precision becomes float32."""

    def __init__(self, folder: Path, split: str, count: int, shard_size: int):
        self.count, self.shard_size = count, shard_size
        self.shards = list(shard_folders(folder, split, count, shard_size))
        if missing := [shard for shard in self.shards if not shard.is_dir()]:
            raise DataError(
                f"{folder} is not complete: {len(missing)} of {len(self.shards)} shards of {split} are missing, the "
                f"first is {missing[0].name}; run the same scripts/pre_encode.py again"
            )
        self._opened = lru_cache(maxsize=_OPEN)(read_shard)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        shard, row = divmod(range(len(self))[index], self.shard_size)
        return {name: _row(array, row) for name, array in self._opened(self.shards[shard]).items()}


def read_shard(folder: Path) -> dict[str, np.ndarray]:
    """Maps the arrays of a shard.

    Raises :class:`DataError` for files that are cut or damaged.
    """
    arrays = {}
    for path in sorted(folder.glob("*.npy")):
        try:
            arrays[path.stem] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise DataError(
                f"{path} is damaged: {error}; delete {folder} and run scripts/pre_encode.py again"
            ) from error
    return arrays


class StoredCaption:
    """The empty caption, encoded; no other can be asked for."""

    def __init__(self, stored: dict[str, np.ndarray], vocabulary: int):
        self.stored = stored
        self.vocabulary = vocabulary

    def __call__(self, text: str) -> dict[str, np.ndarray]:
        """What an example of this caption holds beside its image."""
        if text:
            raise DataError(f"{text!r} cannot be encoded: data.name encoded has states of the empty caption only")
        return self.stored


def open_encoded(config: schema.Encoded) -> Source:
    """Opens what ``scripts/pre_encode.py`` wrote; batches hold ``tokens [b h w]`` in the place of ``image``.

    Raises :class:`DataError` for a folder without it, or with some of it only.
    """
    folder = Path(config.path)
    try:
        text = (folder / INDEX).read_text()
        index = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"data.path {folder} holds nothing that scripts/pre_encode.py wrote: {error}") from error
    train, test = (EncodedExamples(folder, split, index["splits"][split], index["shard_size"]) for split in SPLITS)
    captions = None
    if index["vocabulary"] is not None:
        empty = read_shard(folder / EMPTY)
        captions = StoredCaption({name: _row(array, 0) for name, array in empty.items()}, index["vocabulary"])
    return Source(
        train=train,
        test=test,
        num_classes=index["num_classes"],
        image_shape=tuple(index["image_shape"]),
        fingerprint=f"encoded {len(train)} + {len(test)} examples, sha256 {hashlib.sha256(text.encode()).hexdigest()}",
        captions=captions,
    )


def _row(array: np.ndarray, row: int) -> np.ndarray:
    return np.array(array[row], np.float32 if array.dtype == np.float16 else array.dtype)
