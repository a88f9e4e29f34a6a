import numpy as np
import pytest

from jaxkit.errors import ConfigError
from jaxkit.inversion.initial import given_rows, phrase_rows, random_like
from jaxkit.inversion.words import Words


class Spelled(Words):
    """Stands for a tokenizer: each letter is a token, and 7 is the first new word."""

    def __init__(self):
        pass

    def ids(self, text):
        return ["abcdefg".find(letter) if letter in "abcdefg" else 7 for letter in text]


TABLE = np.random.default_rng(0).normal(0.1, 0.5, (7, 3)).astype(np.float32)


def test_a_phrase_s_tokens_begin_the_vectors_in_turn():
    np.testing.assert_array_equal(phrase_rows(TABLE, Spelled(), "b", 1), TABLE[[1]])
    np.testing.assert_array_equal(phrase_rows(TABLE, Spelled(), "gb", 5), TABLE[[6, 1, 6, 1, 6]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' has no token; write a word"),
        ("abc", "'abc' is 3 tokens, but the word has 2 vectors: give it 3, or a shorter"),
        ("ax", "'ax' holds a new word"),
    ],
)
def test_a_text_that_cannot_begin_the_vectors_is_one_clear_error(text, message):
    with pytest.raises(ConfigError, match=f"^task.initializer: {message}"):
        phrase_rows(TABLE, Spelled(), text, 2, where="task.initializer")


def test_a_token_without_length_begins_no_vector():
    table = TABLE * (np.arange(7) != 2)[:, None].astype(np.float32)
    with pytest.raises(ConfigError, match="'ac': a vector is zero"):
        phrase_rows(table, Spelled(), "ac", 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_learned_vectors_are_gone_on_from_in_turn(dtype):
    given = np.array([[1, 2, 3], [4, 5, 6]], dtype)
    rows = given_rows(given, TABLE, 3)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [[1, 2, 3], [4, 5, 6], [1, 2, 3]])
    np.testing.assert_array_equal(given_rows(given[0], TABLE, 1), [[1, 2, 3]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones((2, 4)), r"the vectors are \[2, 4\], but the text encoder's are 3 wide"),
        (np.ones((1, 1, 3)), r"the vectors are \[1, 1, 3\]"),
        (np.ones((0, 3)), r"the vectors are \[0, 3\]"),
        (np.ones((3, 3)), "holds 3 vectors, but the word has 2: give it 3"),
        (np.eye(3)[:2] * [[1, 0, 0]], "a vector is zero"),
        (np.array([np.nan, 1, 1]), "holds not-a-numbers or infinity"),
    ],
)
def test_vectors_that_are_not_of_the_table_are_one_clear_error(given, message):
    with pytest.raises(ConfigError, match=f"^learned.pt: {message}"):
        given_rows(given, TABLE, 2, where="learned.pt")


def test_random_vectors_have_the_table_s_mean_and_deviation_in_each_column():
    rows = random_like(TABLE, 40_000, seed=1)
    # four standard errors of a mean and of a deviation of about 0.5
    np.testing.assert_allclose(rows.mean(0), TABLE.mean(0), atol=0.01)
    np.testing.assert_allclose(rows.std(0), TABLE.std(0), atol=0.007)
    assert (random_like(TABLE, 2, seed=1) == random_like(TABLE, 2, seed=1)).all()
    assert (random_like(TABLE, 2, seed=1) != random_like(TABLE, 2, seed=2)).all()
