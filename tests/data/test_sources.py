import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from jaxkit.data import DataError
from jaxkit.data.sources import open_source
from jaxkit.schema.data import Arrays, Digits


def digits(**fields):
    return open_source(Digits(name="digits", batch_size=32, **fields))


def arrays(path, **changes):
    rng = np.random.default_rng(0)
    content = {
        "train_images": rng.integers(0, 256, (12, 5, 4, 3), np.uint8),
        "train_labels": np.arange(12) % 3,
        "test_images": rng.integers(0, 256, (6, 5, 4, 3), np.uint8),
        "test_labels": np.arange(6) % 3,
    }
    content.update(changes)
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return open_source(Arrays(name="arrays", batch_size=4, path=str(path)))


def test_opening_sources_and_loaders_imports_nothing_heavy():
    heavy = "{'jax', 'grain', 'sklearn', 'tensorflow_datasets', 'tensorflow', 'torch'}"
    code = f"import sys, jaxkit.data.sources, jaxkit.data.loader; print({heavy} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_digits_are_split_into_disjoint_parts_with_every_class_in_proportion():
    from sklearn.datasets import load_digits

    source = digits()
    assert len(source.train) + len(source.test) == 1797
    assert len(source.test) >= 590
    assert (source.num_classes, source.image_shape) == (10, (8, 8, 1))
    counts = np.bincount(load_digits().target)
    assert np.abs(np.bincount(source.test.labels) - counts / 3).max() <= 1
    together = np.concatenate([source.train.images, source.test.images])
    original = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, together)) == sorted(map(bytes, original))


def test_a_digit_is_uint8_over_the_whole_range_with_an_int32_label():
    example = digits().train[0]
    assert example["image"].shape == (8, 8, 1)
    assert example["image"].dtype == np.uint8
    assert isinstance(example["label"], np.int32)
    assert digits().train.images.max() == 255


def test_the_same_split_seed_gives_the_same_split_and_fingerprint_and_another_seed_another():
    first, again, other = digits(), digits(), digits(split_seed=1)
    np.testing.assert_array_equal(first.test.images, again.test.images)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert len(first.test) == len(other.test)


def test_the_fingerprint_of_plain_digits_is_what_it_was_before_they_had_options():
    # of the revision before image_size, channels and without: runs made then go on
    assert digits().fingerprint == "digits 1198 + 599 images, sha256 4300466fb0411ced"


def test_digits_are_enlarged_and_their_grey_repeated_as_asked():
    plain, large, colour = digits(), digits(image_size=16), digits(image_size=16, channels=3)
    assert large.image_shape == (16, 16, 1)
    assert colour.image_shape == (16, 16, 3)
    assert digits(image_size=8).fingerprint == plain.fingerprint != large.fingerprint != colour.fingerprint
    for channel in range(3):
        np.testing.assert_array_equal(colour.train.images[..., channel], large.train.images[..., 0])
    np.testing.assert_array_equal(large.train.labels, plain.train.labels)
    # bilinear at twice the size: a corner is the corner's pixel, and nothing is beyond the neighbours
    np.testing.assert_array_equal(large.test.images[:, ::15, ::15], plain.test.images[:, ::7, ::7])
    assert (large.test.images.max((1, 2)) <= plain.test.images.max((1, 2))).all()
    assert large.test.images.dtype == np.uint8


def test_digits_that_are_left_out_leave_the_others_their_class_and_their_split():
    whole, rest = digits(), digits(without=[7, 9])
    assert rest.num_classes == 10
    for split in ("train", "test"):
        images, labels = (getattr(getattr(whole, split), part) for part in ("images", "labels"))
        kept = ~np.isin(labels, [7, 9])
        np.testing.assert_array_equal(getattr(rest, split).labels, labels[kept])
        np.testing.assert_array_equal(getattr(rest, split).images, images[kept])
    assert set(rest.train.labels) == set(rest.test.labels) == {0, 1, 2, 3, 4, 5, 6, 8}
    assert rest.fingerprint != whole.fingerprint


@pytest.mark.parametrize("fields", [{"without": [10]}, {"without": range(10)}, {"channels": 2}, {"image_size": 0}])
def test_options_that_leave_no_digits_are_refused(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        digits(**fields)


@pytest.mark.parametrize("fraction", [1e-4, 1 - 1e-4])
def test_a_fraction_that_leaves_a_split_empty_is_an_error(fraction):
    with pytest.raises(DataError, match="test_fraction"):
        digits(test_fraction=fraction)


def test_arrays_come_back_as_they_were_saved(tmp_path):
    source = arrays(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as saved:
        np.testing.assert_array_equal(source.train[7]["image"], saved["train_images"][7])
        assert source.test[5] == {"image": pytest.approx(saved["test_images"][5]), "label": saved["test_labels"][5]}
    assert (len(source.train), len(source.test), source.num_classes, source.image_shape) == (12, 6, 3, (5, 4, 3))
    assert source.train[7]["label"].dtype == np.int32


def test_one_changed_pixel_changes_the_fingerprint_of_arrays(tmp_path):
    images = np.zeros((6, 5, 4, 3), np.uint8)
    changed = images.copy()
    changed[5, 4, 3, 2] = 1
    one, same, other = (arrays(tmp_path / "a.npz", test_images=each) for each in (images, images.copy(), changed))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_float_arrays_in_the_unit_interval_stay_float(tmp_path):
    unit = {"train_images": np.full((12, 2, 2, 1), 0.5, np.float32), "test_images": np.ones((6, 2, 2, 1), np.float32)}
    assert arrays(tmp_path / "a.npz", **unit).train[0]["image"].dtype == np.float32


def image_like(value, count=12):
    return np.full((count, 5, 4, 3), value, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None, "train_image": np.zeros(1)}, r"lacks train_images \(is it 'train_image'\?\)"),
        ({"test_labels": None}, "lacks test_labels"),
        ({"train_images": np.zeros((12, 5, 4), np.uint8)}, r"train_images has shape \[12, 5, 4\].*c = 1"),
        (
            {"train_images": np.zeros((0, 5, 4, 3), np.uint8), "train_labels": np.zeros(0, int)},
            "train_images has shape",
        ),
        ({"train_images": np.zeros((12, 5, 4, 3))}, "train_images is float64; it must be uint8"),
        ({"train_images": image_like(np.nan)}, "train_images holds NaN or infinity, first in image 0"),
        ({"train_images": image_like(255)}, r"\[255, 255\], not \[0, 1\]"),
        ({"train_images": image_like(0.5)}, r"train_images are float32 \[5, 4, 3\] but test_images are uint8"),
        ({"test_images": np.zeros((6, 4, 4, 3), np.uint8)}, r"test_images are uint8 \[4, 4, 3\]"),
        ({"train_labels": np.zeros(11, int)}, r"train_labels has shape \[11\] for 12 images"),
        ({"train_labels": np.zeros(12)}, "train_labels is float64; it must be integers"),
        ({"train_labels": np.arange(12) - 1}, r"train_labels ranges over \[-1, 10\]"),
        ({"test_labels": np.arange(6)}, "test_labels go up to 5 but train_labels only to 2"),
        ({"train_labels": np.array([None] * 12)}, "cannot be loaded: Object arrays"),
    ],
)
def test_malformed_arrays_are_one_clear_error(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        arrays(tmp_path / "a.npz", **changes)


def test_a_missing_file_and_one_that_is_no_archive_are_clear_errors(tmp_path):
    with pytest.raises(DataError, match="is not a file"):
        open_source(Arrays(name="arrays", batch_size=4, path=str(tmp_path / "none.npz")))
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"is no \.npz archive"):
        open_source(Arrays(name="arrays", batch_size=4, path=str(tmp_path / "a.npy")))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_cut_or_flipped_archive_is_an_error_that_names_the_file(tmp_path, save):
    path = tmp_path / "a.npz"
    arrays(path)
    with np.load(path) as saved:
        save(path, **saved)
    whole = path.read_bytes()
    # in the middle of the pixels; a version of zip that there is not
    flipped, unsupported = bytearray(whole), bytearray(whole)
    flipped[300] ^= 1
    unsupported[whole.rindex(b"PK\x01\x02") + 6] = 200
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:2], bytes(flipped), bytes(unsupported)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.npz cannot be loaded: ."):
            open_source(Arrays(name="arrays", batch_size=4, path=str(path)))
