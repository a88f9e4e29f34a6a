"""What scripts/convert.py says of embeddings: text for the terminal."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from interop.diffusion.weights import open_part
from interop.embeddings.dialects import TABLE
from interop.embeddings.embedding import Embedding
from interop.embeddings.reading import read
from interop.embeddings.writing import Format, write
from interop.files import FileError
from interop.files.errors import listed, missing, shown
from interop.files.strict_json import parse
from jaxkit.errors import ConfigError

_TABLES = (TABLE, TABLE.replace(".", "/").replace("weight", "embedding"))
_NEAREST = 5


def convert(source: str, destination: str, format: Format, token: str | None, force: bool) -> list[str]:
    """Writes the word of a file anew in another program's format, and says what was written.

    Raises:
        FileError: if the source is damaged, unsafe, or of no dialect that is known.
        ConfigError: if it has several words and ``token`` is none of them; or as
            :func:`interop.embeddings.writing.write`.
    """
    found = read(source, token)
    if len(found) > 1:
        raise ConfigError(f"{source} has the words {listed(one.token for one in found)}; choose one with --token")
    written = write(found[0], destination, format, force=force)
    return [_said(found[0]), *(f"wrote {path}" for path in written)]


def inspect(path: str, text_encoder: Sequence[str], tokenizer: str | None) -> Iterator[str]:
    """Lists the words of a file: vectors, widths, norms, base model; beside a text encoder's words, those most like it.

    Args:
        path: of the file or folder.
        text_encoder: folders of text encoders, one for each that the words have vectors of.
        tokenizer: the folder of the tokenizer, which has the words' names.

    Raises:
        FileError: if a file is damaged, unsafe, or of no dialect that is known.
        ConfigError: if the text encoders are not as many, or as wide, as the vectors'.
    """
    if tokenizer and not text_encoder:
        raise ConfigError("--tokenizer names the words of a text encoder; give --text-encoder too")
    tables = [_table(Path(folder)) for folder in text_encoder]
    names = _words(Path(tokenizer)) if tokenizer else {}
    for embedding in read(path):
        yield f"{path}: {_said(embedding)}"
        yield from (f"  {shown(key)}: {shown(text)}" for key, text in embedding.about.items())
        widths = tuple(table.shape[1] for table in tables)
        if tables and widths != embedding.widths:
            given, own = (" and ".join(map(str, some)) for some in (widths, embedding.widths))
            raise ConfigError(f"{path} has vectors of {own} numbers, --text-encoder of {given}; give one for each")
        for i, rows in enumerate(embedding.rows):
            yield from _compared(rows, tables[i], names) if tables else _norms(rows)


def _said(embedding: Embedding) -> str:
    count = len(embedding.rows[0])
    widths = " and ".join(map(str, embedding.widths))
    return f"{shown(embedding.token)}, {count} vector{'s' * (count > 1)} of {widths} numbers, for {embedding.base}"


def _norms(rows: np.ndarray) -> list[str]:
    norms = np.linalg.norm(rows, axis=1)
    return [f"  vector {i}: norm {norm:.4g}" for i, norm in enumerate(norms)]


def _compared(rows: np.ndarray, table: np.ndarray, names: dict[int, str]) -> Iterator[str]:
    """Says of each vector its norm, as a share of the table's median, and the words of the largest cosines."""
    lengths = np.linalg.norm(table, axis=1)
    median = np.median(lengths)
    yield f"  {len(table):,} words of {table.shape[1]} numbers, median norm {median:.4g}"
    # a vector of zeros is like none
    directions = table / np.maximum(lengths, np.finfo(np.float32).tiny)[:, None]
    for line, row in zip(_norms(rows), rows, strict=True):
        length = np.linalg.norm(row)
        cosines = directions @ (row / max(length, np.finfo(np.float32).tiny))
        best = np.argsort(-cosines, kind="stable")[:_NEAREST]
        like = ", ".join(f"{shown(names.get(int(i), f'#{i}'))} {cosines[i]:.2f}" for i in best)
        yield f"{line}, {length / median:.2f} of the median; nearest: {like}"


def _table(folder: Path) -> np.ndarray:
    """Reads the vectors of a text encoder's words, [k d] float32."""
    if not folder.is_dir():
        raise (
            missing(folder) if not folder.exists() else ConfigError(f"{folder} is a file; name a text encoder's folder")
        )
    with open_part(folder) as weights:
        found = [name for name in weights.specs if name.endswith(_TABLES)]
        if not found or len(weights.specs[found[0]].shape) != 2:
            raise FileError(folder, "no table of a text encoder is in it", remedy="name the folder text_encoder")
        return np.array(weights.read(found[0]), np.float32)


def _words(folder: Path) -> dict[int, str]:
    """Reads the words of a tokenizer by their ids; a piece that ends no word gets a hyphen."""
    vocabulary = folder / "vocab.json"
    if not vocabulary.is_file():
        raise missing(vocabulary)
    marks = ("</w>", "|>")
    ids = _ids(vocabulary)
    words = {i: word.removesuffix("</w>") if word.endswith(marks) else f"{word}-" for word, i in ids.items()}
    added = folder / "added_tokens.json"
    return words | ({i: word for word, i in _ids(added).items()} if added.is_file() else {})


def _ids(path: Path) -> dict[str, int]:
    ids = parse(path.read_bytes(), path, "vocabulary")
    if strange := [word for word, number in ids.items() if type(number) is not int]:
        raise FileError(path, "its number is no whole one", strange[0])
    return ids
