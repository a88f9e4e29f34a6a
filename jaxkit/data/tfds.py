"""TensorFlow Datasets prepared as array_record, read without TensorFlow."""

import hashlib
import os
from difflib import get_close_matches

import numpy as np

from jaxkit.data import DataError, Source
from jaxkit.data.transforms import UNREADABLE, decode
from jaxkit.schema.data import Tfds


class Records:
    """One split of a prepared dataset; its images are decoded on access."""

    def __init__(self, records, name: str, channels: int, config: Tfds):
        self.records = records
        self.name = name
        self.channels = channels
        self.config = config

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        record = self.records[range(len(self))[index]]
        try:
            image = decode(record[self.config.image_key], self.channels)
        except UNREADABLE as error:
            raise DataError(f"image {index} of {self.name} is corrupt: {error}; prepare the dataset again") from error
        label = np.int32(record[self.config.label_key])
        if label < 0:
            raise DataError(f"image {index} of {self.name} has label {label}: this split is not labelled, take another")
        return {"image": image, "label": label}


def open_tfds(config: Tfds) -> Source:
    """Opens a prepared builder: uint8 images of one size, a class label.

    Raises :class:`DataError` if tensorflow-datasets is not installed, or the dataset is not prepared as array_record,
    or it has no such split or feature, or its images differ in size.
    """
    builder = _builder(config)
    features = builder.info.features
    image = _feature(config.image_key, "image_key", features)
    label = _feature(config.label_key, "label_key", features)
    if len(image.shape or ()) != 3 or None in image.shape or np.dtype(image.np_dtype) != np.uint8:
        raise DataError(f"{config.name}: feature {config.image_key!r} is {image}; it must be uint8 images of one size")
    if not hasattr(label, "num_classes"):
        raise DataError(f"{config.name}: feature {config.label_key!r} is {label}; it must be a ClassLabel")
    train, test = (_open_split(builder, split, image.shape[-1], config) for split in _splits(config))
    return Source(train, test, label.num_classes, image.shape, _fingerprint(builder, config))


def _builder(config: Tfds):
    try:
        import tensorflow_datasets as tfds
        from array_record.python import array_record_data_source  # noqa: F401
    except ImportError as error:
        raise DataError(f"data.name {config.name} needs {error.name}: pip install 'jaxkit[data]'") from error

    name = config.name.removeprefix("tfds:")
    where = "" if config.data_dir is None else f", data_dir={config.data_dir!r}"
    arguments = f"{name!r}{where}, file_format='array_record'"
    try:
        builder = tfds.builder(name, data_dir=config.data_dir, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError as error:
        raise DataError(
            f"tensorflow-datasets knows no {name!r}, and none is prepared in {config.data_dir or 'its default folder'}"
        ) from error
    except (ValueError, AssertionError, OSError) as error:
        # the library has no error of its own for the format
        problem = (
            f"{name} is prepared, but not as array_record; prepare it into another folder"
            if "File format" in str(error)
            else f"tensorflow-datasets cannot open {name!r}"
        )
        raise DataError(f"{problem}. {error}") from error
    if not builder.is_prepared():
        raise DataError(
            f"{name} is not prepared in {builder.data_path}; prepare it once, in Python (some datasets need TensorFlow "
            f"for that): import tensorflow_datasets as tfds; tfds.builder({arguments}).download_and_prepare()"
        )
    return builder


def _feature(key: str, option: str, features):
    if key not in features:
        close = get_close_matches(key, features, n=1)
        hint = f"; is it {close[0]!r}?" if close else ""
        raise DataError(f"data.{option} {key!r} is none of the features: {', '.join(features)}{hint}")
    return features[key]


def _open_split(builder, split: str, channels: int, config: Tfds) -> Records:
    from tensorflow_datasets import decode as tfds_decode

    try:
        count = builder.info.splits[split].num_examples
    except ValueError as error:
        raise DataError(f"{config.name} has no split {split!r}. {error}") from error
    if not count:
        raise DataError(f"split {split!r} of {config.name} is empty")
    # Left to itself the library decodes with whatever it finds installed, and JPEGs then differ between machines.
    undecoded = {config.image_key: tfds_decode.SkipDecoding()}
    records = builder.as_data_source(split, decoders=undecoded)
    return Records(records, f"{builder.info.full_name} {split}", channels, config)


def _splits(config: Tfds) -> tuple[str, str]:
    return config.train_split, config.eval_split


def _fingerprint(builder, config: Tfds) -> str:
    """Names which records of which shards are read, and hashes the sizes of the shards."""
    digest = hashlib.sha256()
    for split in _splits(config):
        for part in builder.info.splits[split].file_instructions:
            name, size = os.path.basename(part.filename), os.path.getsize(part.filename)
            digest.update(f"{name} {size} {part.skip} {part.take}\n".encode())
        digest.update(b"\n")
    return f"{builder.info.full_name} {' + '.join(_splits(config))}, sha256 {digest.hexdigest()[:16]}"
