import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from jaxkit.data import DataError
from jaxkit.data.captions import END, PADDING, PERSONS, open_tokenizer, persons_named, square
from jaxkit.data.loader import Loader, eval_batches
from jaxkit.data.sources import open_source
from jaxkit.schema.data import CaptionedFolder, Captions, Digits


def write_image(path, height, width, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def folder(root, **fields):
    fields = {"batch_size": 2, "image_size": 8, "captions": Captions(max_length=12)} | fields
    return open_source(CaptionedFolder(name="captioned_folder", root=str(root), **fields))


def listed(root, split, lines):
    for number, line in enumerate(lines):
        write_image(root / split / line["file_name"], 10 + number, 16, number)
    (root / split / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def root(tmp_path):
    listed(tmp_path, "train", [{"file_name": f"{n}.png", "text": f"number {n}", "aesthetic": n} for n in range(5)])
    listed(tmp_path, "val", [{"file_name": "deep/er.png", "text": "größer"}])
    return tmp_path


def text_of(example):
    ids = example["input_ids"][example["attention_mask"] == 1]
    assert ids[-1] == END
    return bytes(ids[:-1].astype(np.uint8)).decode(errors="replace")


def word_tokenizer(path, **options):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<end>": 1, "<unk>": 2, "a": 3, "small": 4, "dog": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **options).save_pretrained(path)
    return str(path)


def test_bytes_end_with_a_token_of_their_own_and_are_padded():
    tokenizer = open_tokenizer(Captions(max_length=6))
    found = tokenizer("äb")
    assert found["input_ids"].tolist() == [0xC3, 0xA4, ord("b"), END, PADDING, PADDING]
    assert found["attention_mask"].tolist() == [1, 1, 1, 1, 0, 0]
    assert {array.dtype for array in found.values()} == {np.dtype("int32")}
    assert tokenizer("seven digits")["input_ids"].tolist() == [*b"seven", END]
    assert tokenizer("")["attention_mask"].tolist() == [1, 0, 0, 0, 0, 0]
    assert tokenizer.vocabulary == PADDING + 1


def test_a_tokenizer_of_transformers_cuts_and_pads_from_several_threads(tmp_path):
    tokenizer = open_tokenizer(Captions(tokenizer=word_tokenizer(tmp_path, pad_token="<pad>"), max_length=5))
    texts = ["a small dog", "a", "a small dog a small dog", "a cat", ""] * 40
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(tokenizer, texts))
    expected = [[3, 4, 5, 1, 0], [3, 1, 0, 0, 0], [3, 4, 5, 3, 1], [3, 2, 1, 0, 0], [1, 0, 0, 0, 0]] * 40
    assert [one["input_ids"].tolist() for one in found] == expected
    assert [one["attention_mask"].sum() for one in found[:5]] == [4, 2, 5, 3, 1]
    assert tokenizer.vocabulary == 6


def test_padding_is_what_the_config_says_and_must_be_something(tmp_path):
    path = word_tokenizer(tmp_path)
    with pytest.raises(DataError, match="pad_token: is None; give one that is less than 6"):
        open_tokenizer(Captions(tokenizer=path))
    with pytest.raises(DataError, match="pad_token: is 6"):
        open_tokenizer(Captions(tokenizer=path, pad_token=6))
    tokenizer = open_tokenizer(Captions(tokenizer=path, pad_token=1, max_length=4))
    assert tokenizer("a")["input_ids"].tolist() == [3, 1, 1, 1]
    assert tokenizer("a")["attention_mask"].tolist() == [1, 1, 0, 0]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        open_tokenizer(Captions(tokenizer=str(tmp_path / "none")))
    with pytest.raises(DataError, match="holds no tokenizer that can be read"):
        open_tokenizer(Captions(tokenizer=str(tmp_path)))


def test_several_persons_are_people_and_a_single_one_is_somebody():
    assert persons_named("<person>, <person> and <person> laugh") == "people laugh"
    single = persons_named("<person> sings to a dog, then <person> sleeps")
    words = [name for name in PERSONS if name in single]
    assert single.endswith("sleeps")
    assert words
    assert "<person>" not in single
    # open-muse wrote the list of one word, brackets and all
    assert "[" not in single
    assert single == persons_named("<person> sings to a dog, then <person> sleeps")
    assert {persons_named(f"<person> {n}").rsplit(" ", 1)[0] for n in range(40)} == set(PERSONS)
    named = open_tokenizer(Captions(name_persons=True))("<person><person>")
    assert text_of(named) == "people"
    assert text_of(open_tokenizer(Captions())("<person>")) == "<person>"


@pytest.mark.parametrize(("height", "width"), [(20, 31), (31, 20), (9, 9)])
def test_a_square_is_cut_from_the_middle_of_the_resized_image_as_torchvision_does(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    found, top, left = square(pixels, 8)
    scale = 8 / min(height, width)
    size = (int(width * scale), int(height * scale))
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    assert (top, left) == (round((size[1] - 8) / 2), round((size[0] - 8) / 2))
    np.testing.assert_array_equal(found, resized[top : top + 8, left : left + 8])


def test_random_squares_lie_everywhere_along_the_long_side_and_repeat_for_a_seed():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 1), np.uint8)
    found = [square(pixels, 8, np.random.default_rng(seed)) for seed in range(60)]
    assert {left for _, _, left in found} == {0, 1, 2, 3, 4}
    for image, top, left in found:
        assert top == 0
        np.testing.assert_array_equal(image, pixels[:, left : left + 8])


def test_an_image_comes_with_its_caption_and_the_conditions_of_its_crop(root):
    source = folder(root)
    assert (len(source.train), len(source.test), source.num_classes, source.image_shape) == (5, 1, 1, (8, 8, 3))
    example = source.train[3]
    assert set(example) == {"image", "label", "input_ids", "attention_mask", "micro_conds"}
    assert (example["image"].shape, example["image"].dtype, example["label"]) == ((8, 8, 3), np.uint8, 0)
    assert text_of(example) == "number 3"
    # 13 x 16 pixels become 8 x 9; of half a pixel too many, Python rounds to the even 0
    assert example["micro_conds"].tolist() == [16, 13, 0, 0, 3]
    assert text_of(source.test[0]) == "größer"
    assert source.test[0]["micro_conds"].tolist() == [16, 10, 0, 2, 6]
    np.testing.assert_array_equal(source.captions("größer")["input_ids"], source.test[0]["input_ids"])


def test_a_random_crop_is_one_for_each_image_whatever_thread_reads_it(root):
    config = {"crop": "random", "image_size": 4}
    first, again = folder(root, **config), folder(root, **config)
    lefts = [first.train[i]["micro_conds"][3] for i in range(5)]
    with ThreadPoolExecutor(4) as threads:
        assert [example["micro_conds"][3] for example in threads.map(again.train.__getitem__, range(5))] == lefts
    assert first.fingerprint == again.fingerprint
    others = [folder(root, crop_seed=seed, **config) for seed in range(1, 6)]
    assert len({tuple(other.train[i]["micro_conds"][3] for i in range(5)) for other in others}) > 1
    assert others[0].fingerprint != first.fingerprint


def test_without_metadata_a_text_file_lies_beside_each_image(tmp_path):
    for split in ("train", "val"):
        for name in ("b", "sub/a"):
            write_image(tmp_path / split / f"{name}.jpg", 9, 9)
            (tmp_path / split / f"{name}.txt").write_text(f"this is {name}\n")
    source = folder(tmp_path)
    assert [text_of(source.train[i]) for i in range(2)] == ["this is b", "this is sub"]
    (tmp_path / "val" / "b.txt").unlink()
    with pytest.raises(DataError, match=r"1 images have no .txt beside them; the first is .*b.jpg"):
        folder(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "0.png"}', "line 1 is not"),
        ("{", "line 1 is not"),
        ("[1]", "line 1 is not"),
        ('{"file_name": "0.png", "text": 3}', "file_name and text are strings"),
        ('{"file_name": "missing.png", "text": "x"}', "lists 1 images that are not there"),
        ("", "lists no images"),
    ],
)
def test_metadata_that_says_something_else_is_refused(root, line, message):
    (root / "train" / "metadata.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        folder(root)


def test_a_corrupt_image_stops_the_run_or_is_replaced_with_its_caption(root):
    (root / "train" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1.png is corrupt: its 8 bytes are in no known image format"):
        folder(root).train[1]
    source = folder(root, on_corrupt="skip")
    assert text_of(source.train[1]) == "number 2"
    assert list(source.corrupt()) == [str(root / "train" / "1.png")]


def test_batches_of_captions_are_stacked_for_training_and_evaluation(root):
    source = folder(root)
    batch = Loader(source.train, 4, 0, 2, 0, 1, source.fingerprint).first()
    assert {name: array.shape for name, array in batch.items()} == {
        "image": (4, 8, 8, 3), "label": (4,), "micro_conds": (4, 5), "input_ids": (4, 12), "attention_mask": (4, 12),
    }  # fmt: skip
    (batch,) = eval_batches(source.test, 2, 0, 1)
    assert batch["mask"].tolist() == [1, 0]
    assert batch["input_ids"].dtype == np.int32


def test_digits_are_said_in_words_by_several_templates():
    plain = open_source(Digits(name="digits", batch_size=2))
    config = Digits(name="digits", batch_size=2, captions=Captions(max_length=32))
    source, again = open_source(config), open_source(config)
    assert source.captions.vocabulary == PADDING + 1
    texts = {}
    for index in range(len(source.train)):
        example = source.train[index]
        texts.setdefault(int(example["label"]), set()).add(text_of(example))
        np.testing.assert_array_equal(example["image"], plain.train[index]["image"])
    assert texts[7] == {"seven", "a seven", "the digit seven", "a handwritten seven", "a picture of the number seven"}
    assert [len(texts[label]) for label in range(10)] == [5] * 10
    assert source.train[0]["micro_conds"].tolist() == [8, 8, 0, 0, 6]
    assert text_of(source.test[9]) == text_of(again.test[9])
    assert source.fingerprint == again.fingerprint != plain.fingerprint


def test_grey_images_have_one_channel(root):
    assert folder(root, channels=1).train[0]["image"].shape == (8, 8, 1)


def test_a_camera_turned_upright_swaps_width_and_height(root):
    image = Image.open(root / "train" / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    image.save(data, "PNG", exif=exif)
    (root / "train" / "0.png").write_bytes(data.getvalue())
    assert folder(root).train[0]["micro_conds"][:2].tolist() == [10, 16]
