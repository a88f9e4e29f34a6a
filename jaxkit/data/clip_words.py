"""A small CLIP tokenizer, made of the captions themselves: each of their words becomes one token."""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from jaxkit.data import DataError

CACHE = Path("~/.cache/jaxkit/tokenizers")
MARKS = ("<|startoftext|>", "<|endoftext|>")
END = "</w>"
"""What CLIP's symbols end with at the end of a word."""
# what CLIP takes for a word: an English ending, letters, one digit, or other signs
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def clip_tokenizer(texts: Iterable[str], length: int) -> Path:
    """Makes a folder with a tokenizer as CLIP's, of at most ``length`` tokens a text; the same texts, the same folder.

    The vocabulary is every byte, within a word and at its end, what byte pair encoding makes of the words of the texts,
    and the two marks. Any other text is spelled out.

    Raises :class:`DataError` if transformers is not installed, or the cache cannot be written.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
    """
    try:
        from transformers import CLIPTokenizer
        from transformers.models.clip.tokenization_clip import bytes_to_unicode
    except ImportError as error:
        raise DataError(f"data.captions.tokenizer: clip needs {error.name}: pip install 'jaxkit[diffusion]'") from error
    merges = _merges(sorted(set(texts)))
    digest = hashlib.sha256(json.dumps([merges, length]).encode()).hexdigest()[:12]
    folder = CACHE.expanduser() / f"clip-{digest}"
    if folder.is_dir():
        return folder
    symbols = list(bytes_to_unicode().values())
    # two merges may make the same symbol
    made = dict.fromkeys(map("".join, merges))
    words = [*symbols, *(f"{symbol}{END}" for symbol in symbols), *made, *MARKS]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as part:
            vocabulary, rules, whole = (Path(part, name) for name in ("vocab.json", "merges.txt", "whole"))
            vocabulary.write_text(json.dumps({word: number for number, word in enumerate(words)}))
            rules.write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]), encoding="utf-8")
            CLIPTokenizer(str(vocabulary), str(rules), model_max_length=length).save_pretrained(whole)
            _publish(whole, folder)
    except OSError as error:
        raise DataError(
            f"data.captions.tokenizer: clip is kept in {folder.parent}, which cannot be written: "
            f"{error.strerror or error}; mend that, or give the folder of a tokenizer"
        ) from error
    return folder


def _publish(whole: Path, folder: Path) -> None:
    try:
        os.rename(whole, folder)
    except OSError:
        # another process was quicker
        if not folder.is_dir():
            raise


def _merges(texts: list[str]) -> list[tuple[str, str]]:
    """Byte pair encoding until every word is one symbol; of pairs as frequent the one whose symbols are older."""
    counts = Counter(word for text in texts for word in _words(text))
    words = {word: [*word[:-1], word[-1] + END] for word in counts}
    # the trainer of tokenizers breaks ties by the order of a hash table, which is another in every process
    known = {symbol for symbols in words.values() for symbol in symbols}
    age = {symbol: number for number, symbol in enumerate(sorted(known, key=lambda symbol: (len(symbol), symbol)))}
    merges = []
    while any(len(symbols) > 1 for symbols in words.values()):
        pairs = Counter()
        for word, symbols in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += counts[word]
        first, second = min(pairs, key=lambda pair: (-pairs[pair], age[pair[0]], age[pair[1]]))
        merges.append((first, second))
        age.setdefault(first + second, len(age))
        words = {word: _merged(symbols, first, second) for word, symbols in words.items()}
    return merges


def _merged(symbols: list[str], first: str, second: str) -> list[str]:
    found = []
    for symbol in symbols:
        if found and (found[-1], symbol) == (first, second):
            found[-1] = first + second
        else:
            found.append(symbol)
    return found


def _words(text: str) -> list[str]:
    """What CLIP takes for the words of a text, each a string of its bytes' symbols."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    text = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]).normalize_str(text)
    cut = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    cut = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return [word for word, _ in cut.pre_tokenize_str(text)]
