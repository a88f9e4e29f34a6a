"""A CLIP tokenizer made of captions: their words are tokens, and any other text is spelled out."""

import itertools
import multiprocessing
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkit.data import DataError, clip_words
from jaxkit.data.captions import DIGITS, TEMPLATES, open_tokenizer
from jaxkit.data.clip_words import END, MARKS, clip_tokenizer
from jaxkit.data.sources import open_source
from jaxkit.schema.data import CaptionedFolder, Captions, Digits

with warnings.catch_warnings():
    # it warns of its own deprecations
    warnings.simplefilter("ignore")
    import transformers

TEXTS = ["a handwritten three", "the number seven", "Don't: 12 größer, 猫!"]
WORDS = ["a", "handwritten", "three", "the", "number", "seven", "don", "'t", ":", "1", "2", "größer", ",", "猫", "!"]
BYTES = 256


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """No test writes where the user's tokenizers are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_words, "CACHE", tmp_path_factory.mktemp("tokenizers"))
        yield clip_words.CACHE


@pytest.fixture(scope="module")
def folder(cache):
    return clip_tokenizer(TEXTS, 40)


def torchs(folder):
    return transformers.CLIPTokenizer.from_pretrained(folder)


def ours(folder, length=40):
    return open_tokenizer(Captions(tokenizer=str(folder), max_length=length))


def test_each_word_of_the_captions_is_one_token_between_the_marks(folder):
    tokenizer = ours(folder)
    assert [len(tokenizer.ids(text)) - 2 for text in TEXTS] == [3, 3, 9]
    known = torchs(folder).get_vocab()
    alone = [tokenizer.ids(word) for word in WORDS]
    assert {len(ids) for ids in alone} == {3}
    assert len({ids[1] for ids in alone}) == len(WORDS)
    start, end = (known[mark] for mark in MARKS)
    assert (start, end) == (tokenizer.vocabulary - 2, tokenizer.vocabulary - 1)
    assert all((ids[0], ids[2]) == (start, end) for ids in alone)
    assert tokenizer.padding == end


def test_the_vocabulary_is_each_byte_twice_the_merges_and_the_marks(folder):
    known = torchs(folder).get_vocab()
    assert sorted(known.values()) == list(range(len(known)))
    assert len({word for word, number in known.items() if number < BYTES}) == BYTES
    assert all(word.endswith(END) for word, number in known.items() if BYTES <= number < 2 * BYTES)
    merges = [line.split() for line in (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]]
    made = [word for word, number in sorted(known.items(), key=lambda item: item[1]) if number >= 2 * BYTES]
    assert made == [*map("".join, merges), *MARKS]


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_encoded_and_said_again(folder, text):
    ids = ours(folder, 200).ids(text)
    unknown = torchs(folder).unk_token_id
    assert max(ids) < ours(folder).vocabulary
    # the unknown token is the mark of the end
    assert ids.count(unknown) == 1 + text.lower().count(MARKS[1])


@pytest.mark.parametrize("text", [*TEXTS, "", "the seven three 12", "Zebra\t in\n Ünïcødé 猫 😀", "'s don't"])
def test_ids_are_those_of_transformers_own_tokenizer(folder, text):
    found = ours(folder)(text)
    theirs = torchs(folder)(text, padding="max_length", max_length=40, truncation=True)
    assert found["input_ids"].tolist() == theirs["input_ids"]
    assert found["attention_mask"].tolist() == theirs["attention_mask"]


def test_words_that_share_letters_in_every_way_are_one_token_each():
    letters = "abc"
    words = [w for n in (1, 2, 3, 4) for w in map("".join, itertools.product(letters, repeat=n))]
    tokenizer = ours(clip_tokenizer([" ".join(words)], 40))
    assert {len(tokenizer.ids(word)) for word in words} == {3}
    known = torchs(tokenizer.folder).get_vocab()
    assert sorted(known.values()) == list(range(len(known)))


def test_longer_texts_are_cut_before_the_end_mark(cache):
    folder = clip_tokenizer(TEXTS, 4)
    tokenizer = ours(folder, 4)
    whole = ours(folder, 9).ids("a three seven number")
    assert tokenizer.ids("a three seven number") == [*whole[:3], whole[-1]]
    assert torchs(folder).model_max_length == 4


def test_the_same_texts_in_any_order_are_the_same_folder_and_others_another(folder):
    assert clip_tokenizer([*reversed(TEXTS), TEXTS[0]], 40) == folder
    assert clip_tokenizer(TEXTS, 41) != folder
    assert clip_tokenizer(TEXTS[:2], 40) != folder


def _make(cache, begin, answers):
    clip_words.CACHE = cache
    begin.wait()
    try:
        answers.put(str(clip_tokenizer(TEXTS, 40)))
    except Exception as error:
        answers.put(repr(error))
        raise


def test_processes_that_make_it_at_once_agree_and_leave_one_folder(tmp_path, folder):
    context = multiprocessing.get_context("spawn")
    begin, answers = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_make, args=(tmp_path, begin, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    made = {answers.get(timeout=120) for _ in processes}
    for process in processes:
        process.join()
    assert made == {str(tmp_path / folder.name)}
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / folder.name / name).read_bytes() == (folder / name).read_bytes()


def test_one_who_comes_second_takes_the_folder_of_the_first(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(clip_words, "CACHE", tmp_path)
    rename = clip_words.os.rename

    def beaten(whole, final):
        rename(whole, final)
        whole.mkdir()
        (whole / "vocab.json").write_text("{}")
        rename(whole, final)

    monkeypatch.setattr(clip_words.os, "rename", beaten)
    made = clip_tokenizer(TEXTS, 40)
    assert (made / "vocab.json").read_bytes() == (folder / "vocab.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_cache_that_cannot_be_written_is_one_clear_message(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(clip_words, "CACHE", tmp_path / "file" / "tokenizers")
    with pytest.raises(DataError, match="clip is kept in .*file/tokenizers, which cannot be written: Not a directory"):
        clip_tokenizer(TEXTS, 40)


def test_without_transformers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataError, match=r"clip needs transformers: pip install 'jaxkit\[diffusion\]'"):
        clip_tokenizer(TEXTS, 40)


def test_captions_of_digits_are_their_words_and_what_is_left_out_is_spelled():
    captions = Captions(tokenizer="clip", max_length=16)
    options = {"name": "digits", "batch_size": 1, "captions": captions}
    source = open_source(Digits(**options, without=[7]))
    assert {len(source.captions.ids(word)) for word in DIGITS if word != "seven"} == {3}
    assert len(source.captions.ids("seven")) > 3
    assert len(open_source(Digits(**options)).captions.ids("seven")) == 3
    assert source.fingerprint != open_source(Digits(**options)).fingerprint
    said = {template.format(word) for template in TEMPLATES for word in DIGITS if word != "seven"}
    ids = {tuple(source.captions(text)["input_ids"]) for text in said}
    found = {tuple(source.train[i]["input_ids"]) for i in range(len(source.train))}
    assert found == ids
    example = source.train[0]
    word = source.captions.ids(DIGITS[example["label"]])[1]
    assert np.count_nonzero(example["input_ids"] == word) == 1


def test_captions_of_other_images_are_in_no_vocabulary_of_their_own(tmp_path):
    captions = Captions(tokenizer="clip")
    with pytest.raises(DataError, match="clip is made of the captions of digits; give a folder"):
        open_source(
            CaptionedFolder(name="captioned_folder", root=str(tmp_path), image_size=8, batch_size=1, captions=captions)
        )
