import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    # both warn of their own deprecations
    warnings.simplefilter("ignore")
    from diffusers.loaders import TextualInversionLoaderMixin
    from transformers import CLIPTokenizer, CLIPTokenizerFast
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

from jaxkit.errors import ConfigError
from jaxkit.inversion.words import open_words

MERGES = ("t o", "to y</w>", "c a", "ca t</w>", "o f</w>", "o n")
SYMBOLS = list(bytes_to_unicode().values())
TOKENS = [*SYMBOLS, *(f"{symbol}</w>" for symbol in SYMBOLS), *(merge.replace(" ", "") for merge in MERGES)]
MARKS = ("<|startoftext|>", "<|endoftext|>")
ROWS = len(TOKENS) + len(MARKS)
LENGTH = 24


def write_tokenizer(folder, numbers=None, **options):
    """A pipeline's tokenizer, slow as torch's; ``numbers`` are other ids than 0, 1, 2 ..."""
    folder.mkdir(exist_ok=True)
    words = [*TOKENS, *MARKS]
    (folder / "vocab.json").write_text(json.dumps(dict(zip(words, numbers or range(ROWS), strict=True))))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    CLIPTokenizer(folder / "vocab.json", folder / "merges.txt", model_max_length=LENGTH, **options).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("sd1"))


@pytest.fixture(scope="module")
def sd2(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("sd2"), pad_token="!")


@pytest.fixture(scope="module")
def fast(sd2, tmp_path_factory):
    """A folder that has nothing but the fast tokenizer's one file."""
    folder = tmp_path_factory.mktemp("fast")
    tokenizer = CLIPTokenizerFast.from_pretrained(sd2)
    # as a call that cuts leaves them behind
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=5)
    tokenizer.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    return folder


def torch_ids(folder, vectors, text, kind=CLIPTokenizer):
    """What a pipeline of diffusers feeds its text encoder after it has loaded the words."""
    tokenizer = kind.from_pretrained(folder)
    for word, count in vectors.items():
        names = [word, *(f"{word}_{number}" for number in range(1, count))]
        assert tokenizer.add_tokens(names) == count
    text = TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer)
    return tokenizer(text, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)["input_ids"]


TEXTS = st.lists(
    st.sampled_from(
        ["<cat>", "<on-fire>", "redeye", "toy", "a", "Of", " ", "  ", "!", "s", "'s", ".", "7", "{}", "é", "日本"]
    )
).map("".join)


@pytest.mark.parametrize(
    "vectors",
    [{"<cat>": 1}, {"<cat>": 3}, {"<cat>": 2, "<on-fire>": 1, "redeye": 11}],
    ids=["one vector", "several vectors", "several words"],
)
@pytest.mark.parametrize("folder", ["sd1", "sd2", "fast"])
@given(text=TEXTS)
@settings(max_examples=30, deadline=None)
def test_texts_tokenise_as_in_torch_after_it_has_loaded_the_words(folder, vectors, request, text):
    path = request.getfixturevalue(folder)
    kind = CLIPTokenizerFast if folder == "fast" else CLIPTokenizer
    assert open_words(path, ROWS, vectors)(text).tolist() == torch_ids(path, vectors, text, kind)


def test_each_vector_has_the_next_id_behind_the_table(sd1):
    words = open_words(sd1, 600, {"<cat>": 2, "<dog>": 3})
    assert words.ids("<dog><cat>") == [602, 603, 604, 600, 601]
    assert (words.length, words.vocab_size, words.vectors) == (LENGTH, 600, {"<cat>": 2, "<dog>": 3})
    assert words("toy").dtype == np.int32
    assert words("toy").shape == (LENGTH,)


def test_ids_that_the_tokenizer_leaves_out_are_given_to_no_word(tmp_path):
    # the last ten are further on: the tokenizer has fewer tokens than its largest id says
    numbers = [*range(ROWS - 10), *range(ROWS, ROWS + 10)]
    folder = write_tokenizer(tmp_path / "gap", numbers)
    words = open_words(folder, ROWS + 10, {"<cat>": 1})
    known = CLIPTokenizer.from_pretrained(folder).get_vocab()
    assert len(known) == ROWS
    assert words("<cat> toy").tolist()[:4] == [known[MARKS[0]], ROWS + 10, known["toy</w>"], known[MARKS[1]]]
    # what torch's add_tokens gives it is a token's already
    assert torch_ids(folder, {"<cat>": 1}, "<cat>")[1] == ROWS
    assert ROWS in known.values()


def test_a_word_that_is_written_out_by_hand_is_there_once(sd1):
    words = open_words(sd1, ROWS, {"<cat>": 3})
    whole = [ROWS, ROWS + 1, ROWS + 2]
    assert words.ids("<cat> <cat>_1 <cat>_2") == words.ids("<cat>") == whole
    assert words.ids("<cat>_2") == [ROWS + 2]
    assert words.ids("<cat> <cat>") == whole * 2
    # diffusers puts the whole in the place of its parts
    assert len([i for i in torch_ids(sd1, {"<cat>": 3}, "<cat> <cat>_1 <cat>_2") if i >= ROWS]) > 3


def test_without_a_new_word_a_text_is_what_the_tokenizer_makes_of_it(sd2):
    assert open_words(sd2, ROWS, {})("a toy!").tolist() == torch_ids(sd2, {}, "a toy!")


def test_many_threads_tokenise_at_once(fast):
    words = open_words(fast, ROWS, {"<cat>": 2})
    texts = [f"{'toy ' * (n % 7)}<cat> {n}" for n in range(300)]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(words, texts))
    assert all((one == words(text)).all() for one, text in zip(at_once, texts, strict=True))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", "is empty; write a new word such as <toy>"),
        ("  ", "white space .*; write <toy>"),
        ("<my toy>", "white space .*; write <my-toy>"),
        ("<my\ttoy>", "white space .*; write <my-toy>"),
        ("<my\u200btoy>", "cannot be seen; write <my-toy>"),
        ("<Toy>", "'<Toy>' has upper case.*: <toy>"),
        ("toy", "'toy' is a word that the tokenizer knows, as one token; write <toy>"),
        ("ca", "the tokenizer has 'ca' already; write <ca>"),
        ("x", "the tokenizer has 'x' already; write <x>"),
        ("<|endoftext|>", r"the tokenizer has '<\|endoftext\|>' already; write another, such as <my-\|endoftext\|>"),
        ("startof", r"'startof' is part of '<\|startoftext\|>', which the tokenizer has; write <startof>"),
    ],
)
def test_what_is_no_new_word_is_one_clear_error(sd1, word, message):
    with pytest.raises(ConfigError, match=rf"^task\.words: .*{message}"):
        open_words(sd1, ROWS, {word: 1}, where="task.words")


@pytest.mark.parametrize(
    "vectors", [{"<cat>": 1, "<cat>s": 1}, {"<cat>_1": 1, "<cat>": 2}, {"x<cat>": 1, "<dog>": 1, "<cat>": 1}]
)
def test_words_within_one_another_are_refused(sd1, vectors):
    with pytest.raises(ConfigError, match="<cat>.* part of one another; rename"):
        open_words(sd1, ROWS, vectors)


def test_a_word_that_the_tokenizer_was_saved_with_is_taken(sd1, tmp_path):
    tokenizer = CLIPTokenizer.from_pretrained(sd1)
    tokenizer.add_tokens(["<cat>", "<dog>_1"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has '<cat>' already; write another, such as <my-cat>"):
        open_words(tmp_path, ROWS + 2, {"<cat>": 1})
    with pytest.raises(ConfigError, match="has '<dog>_1' already; write another, such as <my-dog>"):
        open_words(tmp_path, ROWS + 2, {"<dog>": 2})
    assert open_words(tmp_path, ROWS + 2, {"<my-dog>": 1}).ids("<cat><my-dog>") == [ROWS, ROWS + 2]


def test_a_tokenizer_of_more_words_than_the_table_has_rows_is_refused(sd1):
    with pytest.raises(ConfigError, match=rf"'<\|endoftext\|>' is number {ROWS - 1}, but .* {ROWS - 1} rows"):
        open_words(sd1, ROWS - 1, {"<cat>": 1})


def test_every_text_must_keep_all_vectors_of_its_word(sd1):
    words = open_words(sd1, ROWS, {"<cat>": 4, "<dog>": 1})
    room = LENGTH - 2
    fits = "7 " * (room - 4) + "<cat>"
    words.require_room([fits, "<cat>" + "7" * 99, "<cat> <cat>_1 <cat>_2 <cat>_3"], "<cat>")
    assert words.holds(f"{fits} <dog>") == ("<cat>",)
    assert words.holds("<dog><cat>") == ("<cat>", "<dog>")
    with pytest.raises(ConfigError, match=r"<cat>' is too long by 3 tokens: of 24, .* all of <cat>; shorten"):
        words.require_room(["<cat>", "7 7 7 " + fits], "<cat>")
    with pytest.raises(ConfigError, match="'a toy' lacks <cat>, <cat>_1, <cat>_2, <cat>_3: write <cat> in it"):
        words.require_room(["a toy"], "<cat>")
    with pytest.raises(ConfigError, match="lacks <cat>, <cat>_1, <cat>_3: write <cat>"):
        words.require_room(["a <cat>_2"], "<cat>")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", None, "holds no tokenizer of CLIP: neither vocab.json with merges.txt nor tokenizer.json"),
        ("merges.txt", None, "neither vocab.json with merges.txt"),
        ("vocab.json", b"{", r"vocab\.json is damaged: Expecting"),
        ("vocab.json", b"[]", r"vocab\.json is damaged: it holds no vocabulary"),
        ("merges.txt", b"\xff", "no tokenizer of CLIP that can be read: 'utf-8'"),
        ("tokenizer_config.json", b"{", "no tokenizer of CLIP that can be read: Expecting"),
        ("tokenizer_config.json", b"{}", "the length of texts is missing; write model_max_length"),
    ],
)
def test_a_folder_without_a_whole_tokenizer_is_one_clear_error(tmp_path, name, content, message):
    folder = write_tokenizer(tmp_path / "tokenizer")
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        open_words(folder, ROWS, {"<cat>": 1})


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_damaged_fast_tokenizer_is_one_clear_error(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.json is damaged"):
        open_words(tmp_path, ROWS, {"<cat>": 1})
