"""New words in the tokenizer of a pipeline, each of one or several vectors behind the text encoder's table."""

import json
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from jaxkit.errors import ConfigError

# what a folder that does not say its length is given by transformers is larger
_LONGEST = 2**20


class Words:
    """A tokenizer of a pipeline that knows new words: ``words(text) -> ids``, from several threads at once.

    The j-th vector of a placeholder has the id ``vocab_size`` + the vectors of the placeholders before it + j. The
    tokenizer itself is left as it is: a text is cut at its placeholders and what is between them is tokenised, as
    torch's does after ``load_textual_inversion``. Of a placeholder ``<x>`` of 2 vectors ``<x>`` is both, and so is
    ``<x> <x>_1``, once, as others write it out; ``<x>_1`` without it is the second alone.
    """

    length: int
    """Ids of a text, its start, end and padding included."""
    vocab_size: int
    """Rows of the text encoder's table; new words count on from it."""
    vectors: Mapping[str, int]
    """Of each placeholder, in order."""
    end: int
    """The id at the end of a text."""

    def __init__(self, tokenizer: Any, vocab_size: int, vectors: Mapping[str, int]):
        self.length, self.vocab_size, self.vectors = tokenizer.model_max_length, vocab_size, vectors
        self._tokenizer, self.end = tokenizer, tokenizer.eos_token_id
        # The fast tokenizers change their state in a call, and refuse two threads at once.
        self._one_at_a_time = threading.Lock()
        self._rows, self._pieces, first = {}, {}, vocab_size
        for word, count in vectors.items():
            rows, names = list(range(first, first + count)), _names(word, count)
            self._rows[word], first = rows, first + count
            self._pieces |= {name: [row] for name, row in zip(names, rows, strict=True)}
            self._pieces |= {word: rows, " ".join(names): rows}
        longest_first = sorted(self._pieces, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if vectors else re.compile("(?!)")

    def __call__(self, text: str) -> Int32[np.ndarray, " t"]:
        """Tokenises a text: start, ids, end, padded to ``length`` as the tokenizer pads; what is too long is cut."""
        tokenizer = self._tokenizer
        ids = [tokenizer.bos_token_id, *self.ids(text)[: self.length - 2], self.end]
        return np.array(ids + [tokenizer.pad_token_id] * (self.length - len(ids)), np.int32)

    def ids(self, text: str) -> list[int]:
        """Tokenises a text, however long, without start, end and padding."""
        ids = []
        with self._one_at_a_time:
            for part in self._cut.split(text):
                ids += self._pieces.get(part) or self._tokenizer.convert_tokens_to_ids(self._tokenizer.tokenize(part))
        return ids

    def holds(self, text: str) -> tuple[str, ...]:
        """Names the placeholders of which every vector is in the text, as far as it is not cut."""
        kept = set(self.ids(text)[: self.length - 2])
        return tuple(word for word, rows in self._rows.items() if kept.issuperset(rows))

    def require_kept(self, text: str) -> None:
        """Raises ConfigError for a text of which a vector of a new word is cut off."""
        ids, most = self.ids(text), self.length - 2
        if lost := {number for number in ids[most:] if number >= self.vocab_size} - set(ids[:most]):
            raise ConfigError(
                f"{text!r} is {len(ids)} tokens, of which {most} are read: {len(lost)} vectors of new words are cut "
                "off; shorten it, or write the word earlier"
            )

    def require_room(self, texts: Iterable[str], placeholder: str) -> None:
        """Raises ConfigError unless every text holds all vectors of the placeholder, in spite of the cut."""
        rows = self._rows[placeholder]
        for text in texts:
            if placeholder in self.holds(text):
                continue
            ids = self.ids(text)
            if missing := [_names(placeholder, len(rows))[row - rows[0]] for row in rows if row not in ids]:
                raise ConfigError(f"{text!r} lacks {', '.join(missing)}: write {placeholder} in it")
            over = max(map(ids.index, rows)) + 1 - (self.length - 2)
            raise ConfigError(
                f"{text!r} is too long by {over} tokens: of {self.length}, start and end included, none are left for "
                f"all of {placeholder}; shorten what is before it, or give it fewer vectors"
            )


def open_words(folder: Path, vocab_size: int, vectors: Mapping[str, int], where: str = "placeholder_token") -> Words:
    """Opens the tokenizer of a pipeline, and checks that each placeholder can be a new word of it.

    Args:
        folder: with ``vocab.json`` and ``merges.txt``, or ``tokenizer.json``. Nothing is downloaded.
        vocab_size: rows of the text encoder's table, which may be more than the tokenizer has tokens.
        vectors: how many each placeholder has.
        where: names the placeholders in errors, such as a key of the config.

    Raises:
        ConfigError: if there is no such tokenizer, it has tokens that the table has no rows for, or a placeholder is
            empty, has white space or upper case, is known to the tokenizer, or is part of another.
    """
    tokenizer = _opened(folder)
    known = tokenizer.get_vocab()
    if beyond := sorted((number, token) for token, number in known.items() if number >= vocab_size):
        raise ConfigError(
            f"{folder}: the token {beyond[0][1]!r} is number {beyond[0][0]}, but the text encoder's table has "
            f"{vocab_size} rows: tokenizer and text encoder are of different pipelines"
        )
    for word in vectors:
        check_spelling(word, where)
        _check_unknown(word, _names(word, vectors[word]), tokenizer, where)
        _check_apart(word, [*tokenizer.get_added_vocab()], vectors, where)
    return Words(tokenizer, vocab_size, vectors)


def _names(word: str, count: int) -> list[str]:
    """What diffusers calls the vectors of a word."""
    return [word, *(f"{word}_{number}" for number in range(1, count))]


def _opened(folder: Path) -> Any:
    slow = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    _require_mapping(folder / ("vocab.json" if slow else "tokenizer.json"), folder)
    try:
        from transformers import CLIPTokenizer, CLIPTokenizerFast
    except ImportError as error:
        raise ConfigError(f"the tokenizer {folder} needs {error.name}: pip install 'jaxkit[diffusion]'") from error
    try:
        # that of the pipelines of torch; the fast one reads some texts otherwise
        tokenizer = (CLIPTokenizer if slow else CLIPTokenizerFast).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder} holds no tokenizer of CLIP that can be read: {error}") from error
    if tokenizer.model_max_length > _LONGEST:
        raise ConfigError(f"{folder}: the length of texts is missing; write model_max_length in tokenizer_config.json")
    return tokenizer


def _require_mapping(path: Path, folder: Path) -> None:
    """What transformers raises for these files, damaged, is no particular error."""
    if not path.is_file():
        raise ConfigError(f"{folder} holds no tokenizer of CLIP: neither vocab.json with merges.txt nor tokenizer.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}; get the pipeline's tokenizer again") from error
    if not isinstance(found, dict) or (path.name == "tokenizer.json" and not isinstance(found.get("model"), dict)):
        raise ConfigError(f"{path} is damaged: it holds no vocabulary; get the pipeline's tokenizer again")


def check_spelling(word: str, where: str) -> None:
    """Raises ConfigError for a placeholder that is empty, or has white space or upper case."""
    if not word:
        raise ConfigError(f"{where}: is empty; write a new word such as <toy>")
    # of white space a blank is what can be printed
    if " " in word or not word.isprintable():
        joined = "-".join("".join(sign if sign.isprintable() else " " for sign in word).split())
        raise ConfigError(f"{where}: {word!r} has white space or signs that cannot be seen; write {joined or '<toy>'}")
    if word != word.lower():
        raise ConfigError(
            f"{where}: {word!r} has upper case, which some tokenizers read as lower case and others not; write it in "
            f"lower case: {word.lower()}"
        )


def _check_unknown(word: str, names: list[str], tokenizer: Any, where: str) -> None:
    known = tokenizer.get_vocab()
    if taken := [name for name in names if name in known]:
        raise ConfigError(f"{where}: the tokenizer has {taken[0]!r} already; {_bracketed(word)}")
    if len(tokenizer.tokenize(word)) == 1:
        raise ConfigError(f"{where}: {word!r} is a word that the tokenizer knows, as one token; {_bracketed(word)}")


def _bracketed(word: str) -> str:
    bare = word.strip("<>")
    return f"write <{bare}>" if word != f"<{bare}>" else f"write another, such as <my-{bare}>"


def _check_apart(word: str, added: list[str], vectors: Mapping[str, int], where: str) -> None:
    """A word inside another would be found there."""
    own = _names(word, vectors[word])
    others = [name for other in vectors if other != word for name in _names(other, vectors[other])]
    for name, other in ((name, other) for name in own for other in others):
        if name in other or other in name:
            raise ConfigError(f"{where}: {name!r} and {other!r} are part of one another; rename one of the words")
    if around := [token for token in added if word in token]:
        raise ConfigError(f"{where}: {word!r} is part of {around[0]!r}, which the tokenizer has; {_bracketed(word)}")
