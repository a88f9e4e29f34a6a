"""Folders of image files: one folder a class, or Tiny-ImageNet's flat validation folder with its annotations."""

import hashlib
import os
from pathlib import Path

import numpy as np

from jaxkit.data import DataError, Source
from jaxkit.data.transforms import UNREADABLE, decode
from jaxkit.schema.data import ImageFolder

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ANNOTATIONS = "val_annotations.txt"


class ImageFiles:
    """Decodes image files on access: ``{"image": uint8 [h w c], "label": int32}``.

    With ``on_corrupt: skip`` the next readable file, its label too, stands in for a corrupt one. Which one depends on
    the index alone, so threads and resumed runs agree. ``corrupt`` maps the path of each corrupt file met so far to the
    reason; its keys are paths, so a file that several threads meet counts once.

    Raises :class:`DataError` on access, naming the file: it cannot be opened, is corrupt, or has another size than
    ``like``, the path and shape of one file that all others must share.
    """

    def __init__(self, files: list[tuple[str, int]], config: ImageFolder, like: tuple[str, tuple] | None = None):
        self.files = files
        self.config = config
        self.corrupt: dict[str, str] = {}
        self.like = like or self._readable(0)[:2]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        path, shape, example = self._readable(range(len(self))[index])
        if shape != self.like[1]:
            (h, w, _), (h2, w2, _) = self.like[1], shape
            raise DataError(
                f"images differ in size (height x width): {self.like[0]} is {h} x {w} but {path} is {h2} x {w2}; "
                "set data.image_size to resize and crop them all"
            )
        return example

    def _readable(self, index: int) -> tuple[str, tuple[int, ...], dict]:
        for step in range(len(self)):
            path, label = self.files[(index + step) % len(self)]
            if path in self.corrupt:
                continue
            data = _read(path)
            try:
                pixels = decode(data, self.config.channels, self.config.image_size)
            except UNREADABLE as error:
                if self.config.on_corrupt == "stop":
                    raise DataError(
                        f"{path} is corrupt: {error}; replace or delete it, or set data.on_corrupt: skip"
                    ) from error
                self.corrupt[path] = str(error)
            else:
                return path, pixels.shape, {"image": pixels, "label": np.int32(label)}
        path, _ = self.files[0]
        raise DataError(f"all {len(self)} images are corrupt; the first is {path}: {self.corrupt[path]}")


def open_image_folder(config: ImageFolder) -> Source:
    """Lists the files of both splits and reads the first image; the classes are the folders of the training split.

    Labels count the class folders in order of name, as torchvision's ``ImageFolder`` does. Hidden files and files
    that are no images by their extension are left out. Raises :class:`DataError` for a missing split, a class without
    images, and a class of the evaluation split that the training split does not have.
    """
    root = Path(config.root)
    folders = {split: root / split for split in (config.train_split, config.eval_split)}
    for split, folder in folders.items():
        if not folder.is_dir():
            found = ", ".join(_subfolders(root)) if root.is_dir() else "no such folder"
            raise DataError(f"data.root {root} has no split {split!r} (found: {found or 'no folders'})")
    classes = _subfolders(folders[config.train_split])
    files = _class_folders(folders[config.train_split], classes)
    held_out = folders[config.eval_split]
    held_out_files = (
        _annotated(held_out, classes) if (held_out / ANNOTATIONS).is_file() else _class_folders(held_out, classes)
    )
    train = ImageFiles(files, config)
    test = ImageFiles(held_out_files, config, like=train.like)
    fingerprint = _fingerprint(root, files, held_out_files)
    return Source(train, test, len(classes), train.like[1], fingerprint, lambda: {**train.corrupt, **test.corrupt})


def _class_folders(split: Path, classes: list[str]) -> list[tuple[str, int]]:
    found = _subfolders(split)
    if not found:
        raise DataError(f"{split} has no class folders; expected {split}/<class>/<image>")
    if unknown := sorted(set(found) - set(classes)):
        raise DataError(f"{split} has classes that the training split does not have: {', '.join(unknown)}")
    images = {name: _images(split / name) for name in found}
    if empty := [name for name in found if not images[name]]:
        raise DataError(f"{split} has class folders without images ({' '.join(EXTENSIONS)}): {', '.join(empty)}")
    labels = {name: label for label, name in enumerate(classes)}
    return [(path, labels[name]) for name in found for path in images[name]]


def _annotated(split: Path, classes: list[str]) -> list[tuple[str, int]]:
    """Reads ``file <tab> class <tab> box`` lines, one for each file in ``images/``."""
    try:
        lines = _read(split / ANNOTATIONS).decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{split / ANNOTATIONS} is no UTF-8 text: {error}") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    if short := [number for number, row in enumerate(rows, 1) if len(row) < 2]:
        raise DataError(f"{split / ANNOTATIONS} line {short[0]} is not 'file<tab>class<tab>...'")
    names = {os.path.join(split, "images", row[0]): row[1].strip() for row in rows}
    if unknown := sorted(set(names.values()) - set(classes)):
        raise DataError(
            f"{split / ANNOTATIONS} names classes that the training split does not have: {', '.join(unknown)}"
        )
    listed, there = set(names), set(_images(split / "images"))
    if difference := sorted(listed ^ there):
        raise DataError(
            f"{split / ANNOTATIONS} and the images beside it differ: {len(listed - there)} are listed but missing, "
            f"{len(there - listed)} are there but not listed; the first is {difference[0]}"
        )
    if not names:
        raise DataError(f"{split / ANNOTATIONS} lists no images")
    labels = {name: label for label, name in enumerate(classes)}
    return [(path, labels[name]) for path, name in sorted(names.items())]


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[str]:
    """Paths of the images under a folder; a folder that links lead to again, or that it lies in, is not entered."""
    top = folder.resolve()
    found, entered = [], {str(top), *map(str, top.parents)}
    for directory, folders, names in os.walk(folder, followlinks=True):
        places = {name: os.path.realpath(os.path.join(directory, name)) for name in sorted(folders) if name[0] != "."}
        # of two names of one folder the first counts, whatever order the file system lists them in
        first = {place: name for name, place in reversed(places.items()) if place not in entered}
        folders[:] = sorted(first.values())
        entered |= first.keys()
        found += [
            os.path.join(directory, name)
            for name in names
            if not name.startswith(".") and name.lower().endswith(EXTENSIONS)
        ]
    return sorted(found)


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unopened(path, error) from error


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise _unopened(path, error) from error


def _unopened(path: str | Path, error: OSError) -> DataError:
    hint = "it is a broken link" if os.path.islink(path) else "is the disk still mounted?"
    return DataError(f"{path} cannot be opened: {error.strerror}; {hint}")


def _fingerprint(root: Path, *splits: list[tuple[str, int]]) -> str:
    """Hashes names, sizes and labels: reading the pixels of a large folder would take longer than an epoch."""
    digest = hashlib.sha256()
    for files in splits:
        for path, label in files:
            # a file's name need not be UTF-8
            digest.update(os.fsencode(f"{os.path.relpath(path, root)}\0{_size(path)}\0{label}\n"))
        digest.update(b"\n")
    return f"image_folder {' + '.join(str(len(files)) for files in splits)} images, sha256 {digest.hexdigest()[:16]}"
