"""Folders of a few pictures of one thing each, read once: cut to squares, with their captions and masks."""

import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from jaxkit.data import Concept, DataError, Source
from jaxkit.data.image_folder import EXTENSIONS
from jaxkit.data.transforms import UNREADABLE, on_background, upright
from jaxkit.schema.concepts import Concepts

MASKS = ("_mask.png", "-masklabel.png")
Box = tuple[int, int, int, int]
# names of files in a message
_SHOWN = 5


class ConceptExamples:
    """Which picture of each concept an example is: ``{"picture": int32 [c]}``, each in turn."""

    def __init__(self, counts: tuple[int, ...], repeats: int):
        self.counts, self.length = counts, repeats * max(counts)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        index = range(self.length)[index]
        return {"picture": np.array([index % count for count in self.counts], np.int32)}


def concept_source(name: str, concepts: tuple[Concept, ...], repeats: int) -> Source:
    """Makes a source of concepts in memory, of which the test split sees each picture once."""
    counts = tuple(len(concept.pictures) for concept in concepts)
    digest = hashlib.sha256()
    for concept in concepts:
        for array in (concept.pictures, concept.masks):
            digest.update(b"none" if array is None else f"{array.shape}".encode() + array.tobytes())
        digest.update(repr(concept.captions).encode("utf-8", "surrogatepass"))
    return Source(
        train=ConceptExamples(counts, repeats),
        test=ConceptExamples(counts, 1),
        num_classes=len(concepts),
        image_shape=concepts[0].pictures.shape[1:],
        fingerprint=f"{name} {' + '.join(map(str, counts))} pictures, sha256 {digest.hexdigest()[:16]}",
        concepts=concepts,
    )


def open_concepts(config: Concepts) -> Source:
    """Reads all pictures, one concept a folder, in order of name; prints what it leaves out and what it enlarges.

    Pictures are turned upright and composited on the background. Hidden files, and files that are no pictures, captions
    or masks by their names, are left out.

    Raises:
        DataError: for a folder that is missing or has no pictures, a picture or mask that cannot be read, a mask that
            is missing, of another size, or leaves nothing, and a caption that is missing, empty or no text.
    """
    corrupt: dict[str, str] = {}
    concepts = tuple(_read_concept(config, number, corrupt) for number in range(len(config.roots)))
    return concept_source("concepts", concepts, config.repeats)._replace(corrupt=lambda: corrupt)


class _Square(NamedTuple):
    picture: UInt8[np.ndarray, "r r 3"]
    mask: Float32[np.ndarray, "r r"] | None
    enlarged: bool


def _read_concept(config: Concepts, number: int, corrupt: dict[str, str]) -> Concept:
    where, root = f"data.roots[{number}]", Path(config.roots[number])
    pictures, others = _listed(where, root, config.recursive)
    squares, names, captions = [], [], []
    for place, path in enumerate(pictures):
        beside = _mask_of(path) if config.masks else None
        try:
            image = upright(path.read_bytes()).convert("RGBA")
            mask = beside and upright(beside.read_bytes()).convert("L")
        except UNREADABLE as error:
            if config.on_corrupt == "stop":
                raise DataError(
                    f"{path}{' or its mask' if beside else ''} cannot be read: {error}; replace or delete it, or set "
                    "data.on_corrupt: skip"
                ) from error
            corrupt[str(path)] = str(error)
            continue
        found = _squares(path, image, mask, config, np.random.default_rng((config.crop_seed, number, place)))
        squares += found
        names += [str(path.relative_to(root))] * len(found)
        captions += [_caption(path)] * len(found) if config.captions else []
    if not squares:
        raise DataError(f"{where}: none of the {len(pictures)} pictures in {root} can be read: {corrupt[str(path)]}")
    _say(f"{where} {root}: no pictures, left out", others)
    enlarged = [name for name, square in zip(names, squares, strict=True) if square.enlarged]
    _say(f"{where} {root}: smaller than {config.image_size} pixels, enlarged", list(dict.fromkeys(enlarged)))
    return Concept(
        pictures=np.stack([square.picture for square in squares]),
        masks=np.stack([square.mask for square in squares]) if config.masks else None,
        captions=tuple(captions) if config.captions else None,
        names=tuple(names),
    )


def _say(what: str, names: list[str]) -> None:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    if names:
        print(f"{what}: {', '.join(names[:_SHOWN])}{more}", file=sys.stderr)


def _listed(where: str, root: Path, recursive: bool) -> tuple[list[Path], list[str]]:
    """The pictures of a folder, and the names of the files that are neither pictures nor belong to one."""
    if not root.is_dir():
        raise DataError(f"{where}: {root} is no folder")
    files = sorted(path for path in (root.rglob("*") if recursive else root.iterdir()) if path.is_file())
    hidden = {path for path in files if any(part.startswith(".") for part in path.relative_to(root).parts)}
    images = [path for path in files if path not in hidden and path.suffix.lower() in EXTENSIONS]
    stems = {path.with_suffix("") for path in images}
    belonging = {stem.with_name(stem.name + ending) for stem in stems for ending in (*MASKS, ".txt")}
    pictures = [path for path in images if path not in belonging]
    if not pictures:
        hint = "" if recursive or not any(path.is_dir() for path in root.iterdir()) else "; set data.recursive: true"
        raise DataError(f"{where}: {root} has no pictures ({' '.join(EXTENSIONS)}){hint}")
    return pictures, [str(path.relative_to(root)) for path in files if path not in belonging.union(pictures)]


def _squares(
    path: Path, image: Image.Image, mask: Image.Image | None, config: Concepts, rng: np.random.Generator
) -> list[_Square]:
    """Cuts a picture, and its mask alike, into squares of the size asked for."""
    if mask and mask.size != image.size:
        (width, height), (width2, height2) = image.size, mask.size
        raise DataError(f"{path} is {width} x {height} pixels, but its mask is {width2} x {height2}")
    size, background = (config.image_size, config.image_size), _bytes_of(config.background)
    squares = []
    for box in boxes(*image.size, config, rng):
        # outside of the picture a crop is transparent, and of a mask it is black
        picture = on_background(image.crop(box), background).resize(size, Image.Resampling.BICUBIC)
        shown = mask and np.asarray(mask.crop(box).resize(size, Image.Resampling.BILINEAR), np.float32) / 255
        if shown is not None and not shown.any():
            raise DataError(f"{path}: its mask is black where the picture is cut, so that nothing counts")
        enlarged = min(box[2] - box[0], box[3] - box[1]) < config.image_size
        squares.append(_Square(np.asarray(picture), shown, enlarged))
    return squares


def boxes(width: int, height: int, config: Concepts, rng: np.random.Generator) -> list[Box]:
    """The parts of a picture (left, top, right, bottom in pixels) that become squares; those of ``pad`` go beyond it.

    ``center`` and ``squash`` are what diffusers' textual_inversion.py takes with and without ``--center_crop``.
    """
    if config.fit == "squash":
        return [(0, 0, width, height)]
    side = max(width, height) if config.fit == "pad" else min(width, height)
    corners = [((width - side) // 2, (height - side) // 2)]
    if config.fit == "random":
        corners = rng.integers((0, 0), (width - side + 1, height - side + 1), (config.crops, 2)).tolist()
    return [(left, top, left + side, top + side) for left, top in corners]


def _bytes_of(color: str | tuple[float, float, float]) -> tuple[int, int, int]:
    if isinstance(color, str):
        return tuple(bytes.fromhex(color.removeprefix("#")))
    return tuple(round(255 * part) for part in color)


def _mask_of(path: Path) -> Path:
    candidates = [path.with_name(path.stem + ending) for ending in MASKS]
    found = [candidate for candidate in candidates if candidate.is_file()]
    if not found:
        names = " nor ".join(candidate.name for candidate in candidates)
        raise DataError(f"{path} has no mask: neither {names} is beside it; draw one, or set data.masks: false")
    return found[0]


def _caption(path: Path) -> str:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        raise DataError(f"{path} has no caption beside it, {beside.name}; write one, or set data.captions: false")
    try:
        text = " ".join(beside.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise DataError(f"{beside} is no UTF-8 text: {error}") from error
    if not text:
        raise DataError(f"{beside} is empty: write what {path.name} shows, with {{}} for the word")
    return text
