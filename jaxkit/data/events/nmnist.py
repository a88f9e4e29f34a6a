"""N-MNIST: MNIST's digits seen by a moving event camera (Orchard et al., 2015), as the folders of its authors."""

from functools import partial
from pathlib import Path

import numpy as np
from einops import rearrange

from jaxkit.data import DataError, Source
from jaxkit.data.events import Binning, EventExamples, Events, check_addresses, make_source, read_bytes

SENSOR = (34, 34, 2)
# Not a place: the 13 bits that the camera counts time in have overflowed.
OVERFLOW_ROW = 240


def read_nmnist(path: Path) -> Events:
    """Reads one recording of 34 x 34 pixels.

    Five bytes an event: column, row, and in big-endian order a bit of polarity and 23 of microseconds. The row 240 is
    no event; it says that 2^13 µs are to be added to all times from there on.

    Raises:
        DataError: if the file cannot be opened, is cut, or has events outside the sensor.
    """
    data = read_bytes(path)
    if len(data) % 5:
        raise DataError(f"{path} is cut: {len(data)} bytes are no multiple of the 5 of an event; copy it again")
    x, y, *rest = rearrange(np.frombuffer(data, np.uint8), "(n k) -> k n", k=5).astype(np.int64)
    overflow = y == OVERFLOW_ROW
    times = ((rest[0] & 0x7F) << 16 | rest[1] << 8 | rest[2]) + 2**13 * np.cumsum(overflow)
    addresses = np.stack([y, x, rest[0] >> 7], 1)[~overflow]
    check_addresses(path, addresses, SENSOR)
    return Events(times[~overflow] / 1000, addresses, SENSOR)


def open_nmnist(root: Path, binning: Binning) -> Source:
    """Lists ``Train/<digit>/*.bin`` and ``Test/<digit>/*.bin``; frames are [t h w 2], read on access.

    Raises:
        DataError: if a folder of a split is missing or empty, or ``binning.downsample`` does not divide the sensor.
    """
    listed = {split: [_recordings(root / split / str(digit)) for digit in range(10)] for split in ("Train", "Test")}
    splits = []
    for digits in listed.values():
        files = [path for paths in digits for path in paths]
        labels = [digit for digit, paths in enumerate(digits) for _ in paths]
        splits.append(EventExamples(partial(_read, files), labels, binning))
    files = [path for digits in listed.values() for paths in digits for path in paths]
    return make_source("nmnist", *splits, 10, SENSOR, files)


def _read(files: list[Path], index: int) -> Events:
    return read_nmnist(files[index])


def _recordings(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.bin"))
    if not files:
        raise DataError(f"{folder} has no .bin files; N-MNIST is unpacked as <root>/Train/0..9 and <root>/Test/0..9")
    return files
