import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from jaxkit.data import DataError
from jaxkit.data.sources import open_source
from jaxkit.schema.data import ImageFolder


def draw(path, value, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 10, 20)).save(path)


def open_folder(root, **fields):
    return open_source(ImageFolder(name="image_folder", root=str(root), batch_size=2, **fields))


@pytest.fixture
def root(tmp_path):
    """Two classes, three training images and one validation image each; the red channel tells them apart."""
    for label, name in enumerate(["ant", "bee"]):
        for i in range(3):
            draw(tmp_path / "train" / name / f"{i}.png", 100 * label + i)
        draw(tmp_path / "val" / name / "0.png", 100 * label + 50)
    return tmp_path


@pytest.fixture
def tiny_imagenet(tmp_path):
    """The layout of Tiny-ImageNet's own archive."""
    names = ["n02", "n01"]
    (tmp_path / "wnids.txt").write_text("\n".join(names))
    for label, name in enumerate(sorted(names)):
        for i in range(2):
            draw(tmp_path / "train" / name / "images" / f"{name}_{i}.JPEG", 100 * label + i)
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t3\t3\n")
    rows = []
    for i, name in enumerate(["n02", "n01", "n02"]):
        draw(tmp_path / "val" / "images" / f"val_{i}.JPEG", i)
        rows.append(f"val_{i}.JPEG\t{name}\t0\t0\t3\t3")
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    return tmp_path


def reds(examples):
    return [int(examples[i]["image"][0, 0, 0]) for i in range(len(examples))]


def labels(examples):
    return [int(examples[i]["label"]) for i in range(len(examples))]


def test_classes_are_the_folders_in_order_of_name(root):
    source = open_folder(root)
    assert (source.num_classes, source.image_shape) == (2, (4, 6, 3))
    assert reds(source.train) == [0, 1, 2, 100, 101, 102]
    assert labels(source.train) == [0, 0, 0, 1, 1, 1]
    assert (reds(source.test), labels(source.test)) == ([50, 150], [0, 1])
    assert isinstance(source.train[0]["label"], np.int32)
    assert source.train[0]["image"].dtype == np.uint8


def test_an_index_past_the_end_is_an_index_error(root):
    with pytest.raises(IndexError):
        open_folder(root).train[6]


def test_hidden_files_and_files_that_are_no_images_are_left_out(root):
    (root / "train" / "ant" / ".DS_Store").write_bytes(b"x")
    (root / "train" / "ant" / "._0.png").write_bytes(b"x")
    (root / "train" / "ant" / "notes.txt").write_bytes(b"x")
    (root / "train" / ".cache").mkdir()
    draw(root / "train" / "ant" / ".cache" / "9.png", 9)
    assert len(open_folder(root).train) == 6


def test_tiny_imagenets_own_layout_is_read_with_the_labels_of_its_annotations(tiny_imagenet):
    source = open_folder(tiny_imagenet)
    assert (len(source.train), len(source.test), source.num_classes) == (4, 3, 2)
    assert labels(source.train) == [0, 0, 1, 1]
    assert labels(source.test) == [1, 0, 1]


def test_tiny_imagenet_with_its_validation_images_moved_into_class_folders_is_read_too(tiny_imagenet):
    for i, name in enumerate(["n02", "n01", "n02"]):
        folder = tiny_imagenet / "val" / "images" / name
        folder.mkdir(exist_ok=True)
        (tiny_imagenet / "val" / "images" / f"val_{i}.JPEG").rename(folder / f"val_{i}.JPEG")
    assert labels(open_folder(tiny_imagenet, eval_split="val/images").test) == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val_0.JPEG\tn02\nval_1.JPEG\tn01\nval_2.JPEG\tn09\n", "does not have: n09"),
        ("val_0.JPEG\tn02\nval_1.JPEG n01\n", "line 2 is not 'file<tab>class"),
        (
            "val_0.JPEG\tn02\nval_1.JPEG\tn01\nval_2.JPEG\tn01\nval_3.JPEG\tn01\n",
            "1 are listed but missing, 0 are there",
        ),
        ("val_0.JPEG\tn02\n", "0 are listed but missing, 2 are there but not listed.*val_1"),
    ],
)
def test_annotations_that_do_not_fit_the_images_are_one_clear_error(tiny_imagenet, text, message):
    (tiny_imagenet / "val" / "val_annotations.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        open_folder(tiny_imagenet)


def test_annotations_that_are_no_text_are_one_clear_error(tiny_imagenet):
    (tiny_imagenet / "val" / "val_annotations.txt").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DataError, match=r"val_annotations\.txt is no UTF-8 text"):
        open_folder(tiny_imagenet)


def test_without_a_size_different_images_are_an_error_that_names_two_files(root):
    draw(root / "train" / "bee" / "1.png", 7, size=(6, 5))
    source = open_folder(root)
    with pytest.raises(DataError, match=r"ant/0\.png is 4 x 6 but .*bee/1\.png is 5 x 6.*data\.image_size"):
        source.train[4]


def test_a_test_image_of_another_size_than_the_training_images_is_an_error_too(root):
    draw(root / "val" / "bee" / "0.png", 7, size=(5, 5))
    with pytest.raises(DataError, match=r"train/ant/0\.png is 4 x 6 but .*val/bee/0\.png is 5 x 5"):
        open_folder(root).test[1]


def test_with_a_size_all_images_have_it_and_one_channel_is_luma(root):
    draw(root / "train" / "bee" / "1.png", 7, size=(9, 5))
    source = open_folder(root, image_size=8, channels=1)
    assert source.image_shape == (8, 8, 1)
    assert {source.train[i]["image"].shape for i in range(6)} == {(8, 8, 1)}


def corrupt(path):
    path.write_bytes(path.read_bytes()[:40])


def test_a_corrupt_image_stops_with_its_name(root):
    corrupt(root / "train" / "bee" / "1.png")
    source = open_folder(root)
    with pytest.raises(DataError, match=r"bee/1\.png is corrupt: .*on_corrupt: skip"):
        source.train[4]


def test_a_skipped_image_is_replaced_by_the_next_readable_one_and_its_reason_kept(root):
    corrupt(root / "train" / "bee" / "1.png")
    corrupt(root / "train" / "bee" / "2.png")
    source = open_folder(root, on_corrupt="skip")
    assert reds(source.train) == [0, 1, 2, 100, 0, 0]
    assert labels(source.train) == [0, 0, 0, 1, 0, 0]
    assert sorted(source.train.corrupt) == [str(root / "train" / "bee" / f"{i}.png") for i in (1, 2)]
    assert all(source.train.corrupt.values())
    assert source.test.corrupt == {}


def test_a_corrupt_image_met_by_many_threads_counts_once(root):
    corrupt(root / "train" / "ant" / "1.png")
    source = open_folder(root, on_corrupt="skip")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: int(source.train[i % 6]["image"][0, 0, 0]), range(120)))
    assert found == [0, 2, 2, 100, 101, 102] * 20
    assert len(source.train.corrupt) == 1


def test_the_first_image_may_be_a_skipped_one(root):
    corrupt(root / "train" / "ant" / "0.png")
    source = open_folder(root, on_corrupt="skip")
    assert source.image_shape == (4, 6, 3)
    assert reds(source.train)[0] == 1


def test_when_all_images_are_corrupt_the_search_ends_in_an_error(root):
    for path in (root / "train").rglob("*.png"):
        corrupt(path)
    with pytest.raises(DataError, match=r"all 6 images are corrupt; the first is .*ant/0\.png"):
        open_folder(root, on_corrupt="skip")


def test_a_file_that_vanished_is_an_error_and_never_skipped(root):
    source = open_folder(root, on_corrupt="skip")
    (root / "train" / "bee" / "1.png").unlink()
    with pytest.raises(DataError, match=r"bee/1\.png cannot be opened"):
        source.train[4]


@pytest.mark.parametrize("on_corrupt", ["stop", "skip"])
@pytest.mark.parametrize("name", ["0.png", "1.png"])
def test_a_broken_link_is_an_error_that_names_it_and_never_skipped(root, name, on_corrupt):
    (root / "train" / "bee" / name).unlink()
    (root / "train" / "bee" / name).symlink_to(root / "nowhere.png")
    with pytest.raises(
        DataError, match=rf"bee/{name} cannot be opened: No such file or directory; it is a broken link"
    ):
        open_folder(root, on_corrupt=on_corrupt)


@pytest.mark.parametrize("target", [".", "..", "../..", "deep"])
def test_a_link_to_a_folder_that_is_read_already_does_not_multiply_the_images(root, target):
    draw(root / "train" / "ant" / "deep" / "3.png", 3)
    (root / "train" / "ant" / "loop").symlink_to(target, target_is_directory=True)
    source = open_folder(root)
    assert reds(source.train) == [0, 1, 2, 3, 100, 101, 102]
    assert source.train.files[3][0].endswith("deep/3.png")


def test_a_link_to_a_folder_elsewhere_is_followed(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    draw(elsewhere / "9.png", 9)
    (root / "train" / "ant" / "more").symlink_to(elsewhere, target_is_directory=True)
    assert reds(open_folder(root).train) == [0, 1, 2, 9, 100, 101, 102]


def test_a_file_name_that_is_not_utf_8_is_read_and_counts_in_the_fingerprint(root):
    before = open_folder(root).fingerprint
    file = root / "train" / "ant" / os.fsdecode(b"\xff.png")
    (root / "train" / "ant" / "2.png").rename(file)
    source = open_folder(root)
    assert reds(source.train)[:3] == [0, 1, 2]
    assert source.fingerprint != before


def test_a_missing_root_split_or_class_folder_is_one_clear_error(root):
    with pytest.raises(DataError, match=r"has no split 'train' \(found: no such folder\)"):
        open_folder(root / "nowhere")
    with pytest.raises(DataError, match=r"has no split 'test' \(found: train, val\)"):
        open_folder(root, eval_split="test")
    shutil.rmtree(root / "val" / "ant")
    shutil.rmtree(root / "val" / "bee")
    with pytest.raises(DataError, match="val has no class folders"):
        open_folder(root)


def test_an_empty_class_folder_is_an_error_that_names_it(root):
    (root / "train" / "cat").mkdir()
    (root / "train" / "dog").mkdir()
    with pytest.raises(DataError, match=r"class folders without images .*: cat, dog"):
        open_folder(root)


def test_a_class_that_training_lacks_is_an_error_and_one_that_validation_lacks_is_not(root):
    shutil.rmtree(root / "val" / "ant")
    assert labels(open_folder(root).test) == [1]
    draw(root / "val" / "wasp" / "0.png", 1)
    with pytest.raises(DataError, match="val has classes that the training split does not have: wasp"):
        open_folder(root)


def test_the_fingerprint_follows_names_sizes_and_labels_but_not_the_place(root, tmp_path_factory):
    before = open_folder(root).fingerprint
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(root, copy)
    assert open_folder(copy).fingerprint == before
    (root / "train" / "ant" / "0.png").rename(root / "train" / "ant" / "00.png")
    renamed = open_folder(root).fingerprint
    draw(root / "train" / "ant" / "00.png", 0, size=(600, 400))
    assert len({before, renamed, open_folder(root).fingerprint}) == 3
