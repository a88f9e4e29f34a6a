"""What the vectors of a new word are before training. None begins as zeros: directions without length."""

import numpy as np
from jaxtyping import Float, Float32

from jaxkit.errors import ConfigError
from jaxkit.inversion.words import Words


def phrase_rows(
    table: Float32[np.ndarray, "v d"], words: Words, text: str, vectors: int, where: str = "initializer_token"
) -> Float32[np.ndarray, "{vectors} d"]:
    """Takes the rows of a word or phrase that the model knows: its tokens' in turn, again and again.

    Args:
        table: of the text encoder.
        words: its tokenizer.
        text: of not more tokens than ``vectors``.
        vectors: of the new word.
        where: names the text in errors.

    Raises:
        ConfigError: for a text of no tokens, of more than there are vectors, with a new word in it, or whose row is
            zero.
    """
    ids = words.ids(text)
    if not ids:
        raise ConfigError(f"{where}: {text!r} has no token; write a word that the model knows, such as toy")
    if max(ids) >= len(table):
        raise ConfigError(f"{where}: {text!r} holds a new word, which has no vector yet; write a known one")
    if len(ids) > vectors:
        raise ConfigError(
            f"{where}: {text!r} is {len(ids)} tokens, but the word has {vectors} vectors: give it {len(ids)}, or a "
            "shorter text"
        )
    return _in_turn(table[ids], vectors, f"{where}: {text!r}")


def given_rows(
    given: Float[np.ndarray, "..."],
    table: Float32[np.ndarray, "v d"],
    vectors: int,
    where: str = "init_from",
) -> Float32[np.ndarray, "{vectors} d"]:
    """Takes learned rows ``[n d]``, or one ``[d]``; less than ``vectors`` in turn, again and again.

    Raises ConfigError if they are of another width than the table's, too many, zero, or not finite.
    """
    rows = np.atleast_2d(given).astype(np.float32)
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != table.shape[1]:
        raise ConfigError(
            f"{where}: the vectors are {list(np.shape(given))}, but the text encoder's are {table.shape[1]} wide: they "
            "were learned with another model"
        )
    if len(rows) > vectors:
        raise ConfigError(f"{where}: holds {len(rows)} vectors, but the word has {vectors}: give it {len(rows)}")
    return _in_turn(rows, vectors, where)


def random_like(table: Float32[np.ndarray, "v d"], vectors: int, seed: int) -> Float32[np.ndarray, "{vectors} d"]:
    """Draws rows from a normal distribution with the mean and the deviation of each column of the table."""
    mean, deviation = table.mean(0, dtype=np.float64), table.std(0, dtype=np.float64)
    return np.random.default_rng(seed).normal(mean, deviation, (vectors, table.shape[1])).astype(np.float32)


def _in_turn(rows: Float32[np.ndarray, "n d"], vectors: int, where: str) -> Float32[np.ndarray, "{vectors} d"]:
    if not np.isfinite(rows).all():
        raise ConfigError(f"{where}: holds not-a-numbers or infinity")
    if not rows.any(axis=1).all():
        raise ConfigError(f"{where}: a vector is zero, which has no direction to go on from")
    return rows[np.arange(vectors) % len(rows)]
