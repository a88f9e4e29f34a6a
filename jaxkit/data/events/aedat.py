"""AEDAT files of event cameras of 128 x 128 pixels: versions 2.0 (jAER) and 3.1 (cAER), with DVS128 Gesture.

Format: inivation.github.io/inivation-docs, "AEDAT file formats"; jAER's DVS128 for the bits of an address.
"""

from functools import partial
from pathlib import Path

import numpy as np

from jaxkit.data import DataError, Source
from jaxkit.data.events import Binning, EventExamples, Events, check_addresses, make_source, read_bytes

SENSOR = (128, 128, 2)
GESTURES = 11
PACKET = np.dtype(
    [("type", "<i2"), ("source", "<i2")]
    + [(name, "<i4") for name in ("size", "offset", "overflow", "capacity", "number", "valid")]
)
POLARITY_EVENT = 1
COLUMNS = "class,startTime_usec,endTime_usec"


def read_aedat(path: Path) -> Events:
    """Reads the polarity events of a recording, of the version that its first line tells.

    Rows count from the top and columns from the left, as the scene is seen. Special and external events of 2.0,
    packets of other kinds and events marked invalid of 3.1 are left out.

    Raises:
        DataError: if the file cannot be opened, is cut, of another version, or has events outside the sensor.
    """
    data = read_bytes(path)
    version = data[:12]
    if version.startswith(b"#!AER-DAT2"):
        times, addresses = _version2(path, data)
    elif version.startswith(b"#!AER-DAT3"):
        times, addresses = _version3(path, data)
    else:
        raise DataError(f"{path} begins with {version!r}; AEDAT 2.0 and 3.1 files with #!AER-DAT2.0 and #!AER-DAT3.1")
    check_addresses(path, addresses, SENSOR)
    return Events(times / 1000, addresses, SENSOR)


def open_dvs_gesture(root: Path, binning: Binning) -> Source:
    """Lists the gestures of DVS128 Gesture (Amir et al., CVPR 2017): frames [t h w 2], time from each gesture's start.

    ``trials_to_train.txt`` and ``trials_to_test.txt`` name the recordings, ``<recording>_labels.csv`` the gestures in
    each, classes from 1, which become labels from 0. A recording is read anew for each of its gestures.

    Raises:
        DataError: if a file is missing or malformed, or ``binning.downsample`` does not divide the sensor.
    """
    splits, files = [], []
    for split in ("train", "test"):
        names = _text(root / f"trials_to_{split}.txt").split()
        gestures = [(root / name, *row) for name in names for row in _gestures(root / name)]
        labels = [gesture[1] - 1 for gesture in gestures]
        splits.append(EventExamples(partial(_read, gestures), labels, binning))
        files += [root / name for name in names]
    return make_source("dvs_gesture", *splits, GESTURES, SENSOR, files)


def _version2(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Times in µs and addresses of big-endian pairs of an address and a time."""
    body = data[_header_length(data) :]
    if len(body) % 8:
        raise DataError(f"{path} is cut: {len(body)} bytes after its header are no multiple of the 8 of an event")
    raw, times = np.frombuffer(body, ">u4").reshape(-1, 2).astype(np.int64).T
    if (raw >> 16).any():
        raise DataError(f"{path} has addresses of more than 16 bits: the camera is no DVS128")
    # bit 15 marks what comes from elsewhere than the pixels; y, x and darker lie below it, x from the right
    pixel = raw >> 15 == 0
    y, x, darker = raw >> 8 & 0x7F, raw >> 1 & 0x7F, raw & 1
    return times[pixel], np.stack([127 - y, 127 - x, 1 - darker], 1)[pixel]


def _version3(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Times in µs and addresses of the polarity packets."""
    position, times, addresses = _header_length(data), [np.zeros(0, np.int64)], [np.zeros((0, 3), np.int64)]
    while position < len(data):
        begin = position + PACKET.itemsize
        header = np.frombuffer(data[position:begin].ljust(PACKET.itemsize, b"\0"), PACKET)[0]
        size = int(header["size"])
        end = begin + int(header["number"]) * size
        # whatever its kind, an event is words of four bytes, the last its time
        if not begin <= end <= len(data) or size < 8 or size % 4:
            raise DataError(f"{path} is cut or damaged in the packet at byte {position} of {len(data)}; copy it again")
        if header["type"] == POLARITY_EVENT:
            raw, time = np.frombuffer(data[begin:end], "<u4").reshape(-1, size // 4)[:, :2].astype(np.int64).T
            # the bit is not set by all writers; those that count none as invalid need not set it
            kept = raw & 1 == 1 if header["valid"] < header["number"] else np.ones(len(raw), bool)
            times.append((time + (int(header["overflow"]) << 31))[kept])
            addresses.append(np.stack([raw >> 2 & 0x7FFF, raw >> 17, raw >> 1 & 1], 1)[kept])
        position = end
    return np.concatenate(times), np.concatenate(addresses)


def _header_length(data: bytes) -> int:
    """Bytes of the lines that begin with ``#``, up to the one that says it is the last, if any does."""
    position = 0
    while data[position : position + 1] == b"#":
        end = data.find(b"\n", position) + 1 or len(data)
        line, position = data[position:end], end
        if line.startswith(b"#!END-HEADER"):
            break
    return position


def _gestures(recording: Path) -> list[tuple[int, int, int]]:
    """Class, begin and end in µs of the gestures in a recording."""
    path = recording.with_name(f"{recording.stem}_labels.csv")
    head, *lines = [line.strip() for line in _text(path).splitlines() if line.strip()] or [""]
    if head != COLUMNS:
        raise DataError(f"{path} begins with {head[:80]!r}; expected {COLUMNS!r}")
    gestures = []
    for line in lines:
        cells = [int(cell) for cell in line.split(",") if cell.strip().isdecimal()]
        if len(cells) != 3 or not 1 <= cells[0] <= GESTURES:
            raise DataError(f"{path} has a line {line[:80]!r}: no class from 1 to {GESTURES}, begin and end")
        gestures.append(tuple(cells))
    return gestures


def _text(path: Path) -> str:
    return read_bytes(path).decode(errors="replace")


def _read(gestures: list[tuple[Path, int, int, int]], index: int) -> Events:
    path, _, begin, end = gestures[index]
    events = read_aedat(path)
    during = (events.times >= begin / 1000) & (events.times < end / 1000)
    return Events(events.times[during] - begin / 1000, events.addresses[during], events.shape)
