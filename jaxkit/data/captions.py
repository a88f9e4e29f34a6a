"""Captions beside images: texts as token ids, and what a crop has left of the image."""

import hashlib
import re
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from jaxkit.data import ArrayExamples, DataError, Examples, Source
from jaxkit.data.clip_words import clip_tokenizer
from jaxkit.data.transforms import UNREADABLE, decode
from jaxkit.schema import data as schema

END, PADDING = 256, 257
PERSONS = ("a person", "someone", "somebody")
# What open-muse's pipelines say of an image of which nothing is known.
AESTHETIC_SCORE = 6.0
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("{}", "a {}", "the digit {}", "a handwritten {}", "a picture of the number {}")
HALVES = ("{} above {}", "the top of a {} and the bottom of a {}")


class Tokenizer(NamedTuple):
    """``tokenizer(text) -> {"input_ids": int32 [t], "attention_mask": int32 [t]}``, from several threads at once."""

    ids: Callable[[str], list[int]]
    """``text -> ids``, not more than ``length``."""
    length: int
    padding: int
    vocabulary: int
    """Ids are less."""
    identity: str
    """The same string, the same ids."""
    name_persons: bool = False
    folder: Path | None = None
    """With the tokenizer's files; None: it has none."""

    def __call__(self, text: str) -> dict[str, np.ndarray]:
        """Cuts a text into tokens; what is left of the length is padding, with ``attention_mask`` 0."""
        ids = self.ids(persons_named(text) if self.name_persons else text)
        padded = np.full(self.length, self.padding, np.int32)
        padded[: len(ids)] = ids
        return {"input_ids": padded, "attention_mask": (np.arange(self.length) < len(ids)).astype(np.int32)}


def open_tokenizer(config: schema.Captions) -> Tokenizer:
    """Opens the tokenizer that a ``captions`` section names.

    Raises :class:`DataError` for a folder without one, or one that has no padding and is given none.
    """
    if config.tokenizer == "clip":
        raise DataError("data.captions.tokenizer: clip is made of the captions of digits; give a folder")
    if config.tokenizer == "bytes":
        ids, own_padding, vocabulary, identity = _bytes(config.max_length), PADDING, PADDING + 1, "bytes"
    else:
        ids, own_padding, vocabulary, identity = _transformers(Path(config.tokenizer), config.max_length)
    padding = own_padding if config.pad_token is None else config.pad_token
    if padding is None or padding >= vocabulary:
        raise DataError(f"data.captions.pad_token: is {padding}; give one that is less than {vocabulary}")
    identity = f"{identity}, {config.max_length} tokens, padding {padding}{', persons' * config.name_persons}"
    folder = None if config.tokenizer == "bytes" else Path(config.tokenizer)
    return Tokenizer(ids, config.max_length, padding, vocabulary, identity, config.name_persons, folder)


def _bytes(length: int) -> Callable[[str], list[int]]:
    return lambda text: [*text.encode()[: length - 1], END]


def _transformers(folder: Path, length: int) -> tuple[Callable[[str], list[int]], int | None, int, str]:
    if not folder.is_dir():
        raise DataError(f"data.captions.tokenizer: {folder} is no folder; it is that of a tokenizer, or bytes")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise DataError(f"data.captions.tokenizer needs {error.name}: pip install 'jaxkit[diffusion]'") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"data.captions.tokenizer: {folder} holds no tokenizer that can be read: {error}") from error
    # The fast tokenizers keep the cut of a call in their state, and refuse two threads at once.
    one_at_a_time = threading.Lock()

    def ids(text: str) -> list[int]:
        with one_at_a_time:
            return tokenizer(text, truncation=True, max_length=length)["input_ids"]

    words = "\n".join(f"{word} {number}" for word, number in sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return ids, tokenizer.pad_token_id, len(tokenizer), f"{type(tokenizer).__name__} {digest}"


def persons_named(text: str) -> str:
    """Puts words in the place of ``<person>``: several in a row are people, a single one is one of three words.

    Which one is drawn by the text alone.
    """
    text = re.sub(r"<person>(?:[,\s]*(?:and)?[,\s]*<person>)+", " people ", text)
    first = zlib.crc32(text.encode())
    for number in range(text.count("<person>")):
        text = text.replace("<person>", f" {PERSONS[(first + number) % len(PERSONS)]} ", 1)
    return " ".join(text.split())


class WithTexts:
    """Examples with a text each, in memory: ``input_ids``, ``attention_mask`` and ``micro_conds`` join them."""

    def __init__(self, examples: Examples, texts: list[str], tokenizer: Tokenizer):
        self.examples = examples
        self.texts = texts
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict:
        example = self.examples[index]
        height, width, _ = example["image"].shape
        known = {"micro_conds": micro_conditions(width, height), **self.tokenizer(self.texts[index])}
        return {**example, **known}


def with_digit_captions(source: Source, config: schema.Digits) -> Source:
    """Says each digit in words, by one of several templates, drawn for each once."""
    captions = config.captions
    if captions.tokenizer == "clip":
        words = [word for digit, word in enumerate(DIGITS) if digit not in config.without]
        templates = (*TEMPLATES, *HALVES) if config.halves else TEMPLATES
        texts = [template.format(word, word) for template in templates for word in words]
        captions = captions.model_copy(update={"tokenizer": str(clip_tokenizer(texts, captions.max_length))})
    tokenizer = open_tokenizer(captions)
    rng = np.random.default_rng((config.split_seed, 1))

    def captioned(examples):
        drawn = rng.integers(len(TEMPLATES), size=len(examples))
        texts = [TEMPLATES[k].format(DIGITS[label]) for k, label in zip(drawn, examples.labels, strict=True)]
        return WithTexts(examples, texts, tokenizer)

    train, test = captioned(source.train), captioned(source.test)
    fingerprint = f"{source.fingerprint}, captions by {tokenizer.identity}"
    if config.halves:
        train, fingerprint = _with_halves(train, config.halves, rng), f"{fingerprint}, {config.halves} of halves"
    return source._replace(train=train, test=test, fingerprint=fingerprint, captions=tokenizer)


def _with_halves(known: WithTexts, count: int, rng: np.random.Generator) -> WithTexts:
    """Adds images of the upper half of one digit above the lower half of another, with the upper one's class."""
    images, labels = known.examples.images, known.examples.labels
    upper, lower = rng.integers(len(images), size=(2, count))
    middle = images.shape[1] // 2
    joined = np.concatenate([images[upper, :middle], images[lower, middle:]], axis=1)
    drawn = rng.integers(len(HALVES), size=count)
    texts = [
        HALVES[k].format(DIGITS[labels[top]], DIGITS[labels[bottom]])
        for k, top, bottom in zip(drawn, upper, lower, strict=True)
    ]
    whole = ArrayExamples(np.concatenate([images, joined]), np.concatenate([labels, labels[upper]]))
    return WithTexts(whole, known.texts + texts, known.tokenizer)


class Record(NamedTuple):
    """An image file with its text, and what is known of it."""

    where: str
    image: bytes
    text: str
    label: int = 0
    aesthetic: float = AESTHETIC_SCORE
    size: tuple[int, int] | None = None
    """Width and height before the image was put where it is. None: as it is."""


@runtime_checkable
class Records(Protocol):
    """Random access to records."""

    def __len__(self) -> int:
        """Counts them."""

    def __getitem__(self, index: int) -> Record:
        """Reads one; called from several threads at once."""


class CaptionedExamples:
    """Decodes, crops and tokenises records on access: ``image, label, input_ids, attention_mask, micro_conds``.

    With ``on_corrupt: skip`` the next readable record stands in for a corrupt one, as in
    :class:`jaxkit.data.image_folder.ImageFiles`; ``corrupt`` says of each why. Raises :class:`DataError` on access if
    it cannot be read. Without a tokenizer there are no tokens. ``quarter`` keeps the top left one of each image.
    """

    def __init__(
        self, records: Records, config: schema.CaptionedImages, tokenizer: Tokenizer | None, quarter: bool = False
    ):
        self.records = records
        self.config = config
        self.tokenizer = tokenizer
        self.quarter = quarter
        self.corrupt: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        for step in range(len(self)):
            place = (index + step) % len(self)
            record = self.records[place]
            if record.where in self.corrupt:
                continue
            try:
                return self._example(record, place)
            except UNREADABLE as error:
                if self.config.on_corrupt == "stop":
                    raise DataError(
                        f"{record.where} is corrupt: {error}; replace it, or set data.on_corrupt: skip"
                    ) from error
                self.corrupt[record.where] = str(error)
        raise DataError(f"all {len(self)} images are corrupt; the last is {record.where}: {self.corrupt[record.where]}")

    def _example(self, record: Record, place: int) -> dict:
        pixels = decode(record.image, self.config.channels)
        if self.quarter:
            pixels = pixels[: pixels.shape[0] // 2, : pixels.shape[1] // 2]
        rng = np.random.default_rng((self.config.crop_seed, place)) if self.config.crop == "random" else None
        image, top, left = square(pixels, self.config.image_size, rng)
        width, height = record.size or pixels.shape[1::-1]
        return {
            "image": image,
            "label": np.int32(record.label),
            "micro_conds": micro_conditions(width, height, top, left, record.aesthetic),
            **(self.tokenizer(record.text) if self.tokenizer else {}),
        }


def square(
    pixels: UInt8[np.ndarray, "h w c"], size: int, rng: np.random.Generator | None = None
) -> tuple[UInt8[np.ndarray, "{size} {size} c"], int, int]:
    """Resizes the short side to ``size`` pixels (bilinear, antialiased) and crops a square, at the centre without rng.

    Returns:
        The crop, and the rows above and the columns to the left of it in the resized image.
    """
    height, width, channels = pixels.shape
    short = min(height, width)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    width, height = (int(size * side / short) for side in (width, height))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    room = (height - size, width - size)
    top, left = (round(space / 2) if rng is None else int(rng.integers(space + 1)) for space in room)
    cropped = np.asarray(image.crop((left, top, left + size, top + size)))
    return cropped.reshape(size, size, channels), top, left


def micro_conditions(
    width: int, height: int, top: int = 0, left: int = 0, aesthetic: float = AESTHETIC_SCORE
) -> Float32[np.ndarray, "5"]:
    """What Podell et al. tell a model of an image: its size before, the crop's corner (pixels), an aesthetic score.

    Source: "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", section 2.2.
    """
    return np.array([width, height, top, left, aesthetic], np.float32)
