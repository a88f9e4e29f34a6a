"""Sources by name: the ``data`` section of a config -> labelled images with random access."""

import hashlib
import zipfile
import zlib
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxkit.data import ArrayExamples, Concept, DataError, Source
from jaxkit.data.captioned_folder import open_captioned_folder
from jaxkit.data.captions import with_digit_captions
from jaxkit.data.concepts import concept_source, open_concepts
from jaxkit.data.encoded import open_encoded
from jaxkit.data.events.sources import open_events
from jaxkit.data.image_folder import open_image_folder
from jaxkit.data.lags import open_lags
from jaxkit.data.tfds import open_tfds
from jaxkit.data.transforms import resized
from jaxkit.data.webdataset import open_webdataset
from jaxkit.schema.concepts import Concepts, DigitConcepts
from jaxkit.schema.data import (
    Arrays,
    CaptionedFolder,
    Data,
    Digits,
    DvsGesture,
    Encoded,
    ImageFolder,
    Lags,
    NMnist,
    SpokenWords,
    Tfds,
    WebDataset,
)

# What numpy and zipfile raise, by fuzzing them, for an archive that is cut, has flipped bits, or holds objects.
BROKEN_ARCHIVE = (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def open_source(config: Data) -> Source:
    """Opens the training and test images that the config names.

    Raises :class:`DataError` if they are missing, malformed, or disagree with each other.
    """
    return _OPENERS[type(config)](config)


def open_digits(config: Digits) -> Source:
    """Splits scikit-learn's 1,797 digits [8 8 1] at random, each class in proportion; 16 grey levels become 256."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    if config.image_size is not None:
        images = np.stack([resized(image, config.image_size) for image in images])
    images = np.repeat(images, config.channels, axis=-1)
    rng = np.random.default_rng(config.split_seed)
    held_out = []
    for label in range(10):
        members = rng.permutation(np.flatnonzero(digits.target == label))
        held_out.append(members[: round(len(members) * config.test_fraction)])
    is_test = np.zeros(len(images), bool)
    is_test[np.concatenate(held_out)] = True
    if is_test.all() or not is_test.any():
        raise DataError(f"data.test_fraction {config.test_fraction} leaves {is_test.sum()} of 1797 digits to test on")
    kept = ~np.isin(digits.target, config.without)
    parts = [array[kept & chosen] for chosen in (~is_test, is_test) for array in (images, digits.target)]
    source = _in_memory("digits", *parts)._replace(num_classes=10)
    return source if config.captions is None else with_digit_captions(source, config)


def open_digit_concepts(config: DigitConcepts) -> Source:
    """Takes the first training images of each digit; raises :class:`DataError` if there are not so many."""
    images = open_digits(Digits(name="digits", batch_size=1, image_size=config.image_size, channels=3)).train
    concepts = []
    for digit in config.digits:
        pictures = images.images[images.labels == digit][: config.pictures]
        if len(pictures) < config.pictures:
            raise DataError(f"data.pictures: there are {len(pictures)} of the digit {digit}, not {config.pictures}")
        names = tuple(f"{digit}, image {number}" for number in range(len(pictures)))
        concepts.append(Concept(pictures, masks=None, captions=None, names=names))
    return concept_source("digit_concepts", tuple(concepts), config.repeats)


def open_arrays(config: Arrays) -> Source:
    """Loads an .npz: ``*_images`` [n h w c] uint8, or float32 in [0, 1]; ``*_labels`` [n] integers from 0.

    The classes are as many as the largest training label plus one. Nothing in the file is unpickled.
    """
    path = Path(config.path)
    arrays = _load_npz(path)
    splits = {split: (arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test")}
    for split, (images, labels) in splits.items():
        _check_images(f"{path}: {split}_images", images)
        _check_labels(f"{path}: {split}_labels", labels, len(images))
    (images, labels), (test_images, test_labels) = splits["train"], splits["test"]
    if (images.shape[1:], images.dtype) != (test_images.shape[1:], test_images.dtype):
        raise DataError(
            f"{path}: train_images are {images.dtype} {list(images.shape[1:])} but test_images are "
            f"{test_images.dtype} {list(test_images.shape[1:])}; both must be the same"
        )
    if test_labels.max() > labels.max():
        raise DataError(
            f"{path}: test_labels go up to {test_labels.max()} but train_labels only to {labels.max()}; "
            "every class needs training images"
        )
    return _in_memory("arrays", images, labels, test_images, test_labels)


def _in_memory(name: str, *arrays: np.ndarray) -> Source:
    images, labels, test_images, test_labels = arrays
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return Source(
        train=ArrayExamples(images, labels),
        test=ArrayExamples(test_images, test_labels),
        num_classes=int(labels.max()) + 1,
        image_shape=images.shape[1:],
        fingerprint=f"{name} {len(images)} + {len(test_images)} images, sha256 {digest.hexdigest()[:16]}",
    )


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    keys = [f"{split}_{part}" for split in ("train", "test") for part in ("images", "labels")]
    if not path.is_file():
        raise DataError(f"data.path {path} is not a file")
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise DataError(f"{path} is no .npz archive; write it with numpy.savez(path, {'=..., '.join(keys)}=...)")
        file.seek(0)
        try:
            names, arrays = _read_npz(file, keys)
        except BROKEN_ARCHIVE as error:
            raise DataError(f"{path} cannot be loaded: {error}") from error
    missing = [key + _hint(key, names) for key in keys if key not in names]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it has {', '.join(names) or 'nothing'}")
    return arrays


def _read_npz(file: BinaryIO, keys: list[str]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of all arrays of an archive, and those of ``keys`` that it has."""
    with np.load(file, allow_pickle=False) as archive:
        return archive.files, {key: archive[key] for key in keys if key in archive.files}


def _hint(key: str, names: list[str]) -> str:
    close = get_close_matches(key, names, n=1)
    return f" (is it {close[0]!r}?)" if close else ""


def _check_images(name: str, images: np.ndarray):
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(f"{name} has shape {list(images.shape)}, not [n h w c]; grey images have c = 1")
    if images.dtype not in (np.uint8, np.float32):
        raise DataError(f"{name} is {images.dtype}; it must be uint8, or float32 in [0, 1]")
    if images.dtype == np.float32:
        if not np.isfinite(images).all():
            raise DataError(f"{name} holds NaN or infinity, first in image {_first(~np.isfinite(images))}")
        if images.min() < 0 or images.max() > 1:
            raise DataError(
                f"{name} is float32 in [{images.min():g}, {images.max():g}], not [0, 1]; store raw pixels, "
                "data.normalize does the rest"
            )


def _check_labels(name: str, labels: np.ndarray, count: int):
    if labels.shape != (count,):
        raise DataError(f"{name} has shape {list(labels.shape)} for {count} images; it must be [{count}]")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{name} is {labels.dtype}; it must be integers, one class number an image")
    if labels.min() < 0 or labels.max() >= 2**31 - 1:
        raise DataError(f"{name} ranges over [{labels.min()}, {labels.max()}]; classes count from 0")


def _first(where: np.ndarray) -> int:
    return int(np.argmax(where.any(axis=(1, 2, 3))))


_OPENERS = {
    Digits: open_digits,
    ImageFolder: open_image_folder,
    CaptionedFolder: open_captioned_folder,
    WebDataset: open_webdataset,
    Encoded: open_encoded,
    Tfds: open_tfds,
    Arrays: open_arrays,
    Lags: open_lags,
    NMnist: open_events,
    DvsGesture: open_events,
    SpokenWords: open_events,
    Concepts: open_concepts,
    DigitConcepts: open_digit_concepts,
}
