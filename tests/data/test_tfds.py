import json
import subprocess
import sys

import numpy as np
import pytest

from jaxkit.data import DataError
from jaxkit.data.loader import eval_batches
from jaxkit.data.sources import open_source
from jaxkit.schema.data import Tfds

# Prepared and read in other processes: the builder's module must not be importable, nor TensorFlow imported.
PREPARE = """
import sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

class TinyDigits(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.ClassLabel(num_classes=10),
                    "wide": tfds.features.Image(shape=(None, 8, 1)), "row": np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(0, 50), "test": self._generate_examples(50, 70)}

    def _generate_examples(self, start, stop):
        digits = load_digits()
        for i in range(start, stop):
            image = Image.fromarray(np.round(digits.images[i] * 255 / 16).astype(np.uint8))
            yield i, {"image": image, "label": int(digits.target[i]), "wide": image, "row": i}

TinyDigits(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""
READ = """
import sys
import numpy as np
from sklearn.datasets import load_digits
from jaxkit.data.sources import open_source
from jaxkit.schema.data import Tfds

source = open_source(Tfds(name="tfds:tiny_digits", data_dir=sys.argv[1], batch_size=4))
assert (len(source.train), len(source.test)) == (50, 20)
assert (source.num_classes, source.image_shape) == (10, (8, 8, 1))
digits = load_digits()
originals = {np.round(image * 255 / 16).astype(np.uint8).tobytes(): label
             for image, label in zip(digits.images[:70], digits.target[:70])}
for examples in (source.train, source.test):
    for i in range(len(examples)):
        example = examples[i]
        assert example["image"].dtype == np.uint8 and example["image"].shape == (8, 8, 1)
        assert example["label"] == originals.pop(example["image"].tobytes())
        assert isinstance(example["label"], np.int32)
assert not originals
assert "tensorflow" not in sys.modules
print(source.fingerprint)
"""


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    run(PREPARE, str(folder))
    return folder


def config(folder, name="tfds:tiny_digits", **fields):
    return Tfds(name=name, data_dir=str(folder), batch_size=4, **fields)


def test_a_prepared_dataset_is_read_whole_and_right_without_tensorflow(prepared):
    fingerprint = run(READ, str(prepared)).splitlines()[-1]
    assert fingerprint == open_source(config(prepared)).fingerprint


def test_many_threads_read_what_one_does(prepared):
    examples = open_source(config(prepared)).train
    batches = list(eval_batches(examples, 5, 0, 1, threads=8))
    np.testing.assert_array_equal(
        np.concatenate([batch["image"] for batch in batches]), [examples[i]["image"] for i in range(50)]
    )


def test_slices_are_splits_and_change_the_fingerprint(prepared):
    whole, half = open_source(config(prepared)), open_source(config(prepared, train_split="train[:50%]"))
    assert len(half.train) == 25
    assert half.fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eval_split": "validation"}, "no split 'validation'.*'train', 'test'"),
        ({"train_split": "train[:0%]"}, r"split 'train\[:0%\]' of tfds:tiny_digits is empty"),
        ({"image_key": "images"}, "data.image_key 'images' is none of the features: .*is it 'image'"),
        ({"image_key": "wide"}, "'wide' is .*must be uint8 images of one size"),
        ({"image_key": "row"}, "'row' is .*must be uint8 images of one size"),
        ({"label_key": "row"}, "'row' is .*must be a ClassLabel"),
        ({"name": "tfds:tiny_digit_s"}, "knows no 'tiny_digit_s'"),
        ({"name": "tfds:mnist:9.9.9"}, "^tensorflow-datasets cannot open 'mnist:9.9.9'.* at version 9.9.9, only"),
        ({"name": "tfds:mnist/foo"}, "^tensorflow-datasets cannot open 'mnist/foo'.*BuilderConfig foo not found"),
        ({"name": "tfds:a b"}, "^tensorflow-datasets cannot open 'a b'.*Parsing builder name string a b failed"),
        (
            {"name": "tfds:mnist"},
            r"mnist is not prepared in .*tfds\.builder\('mnist', data_dir='.*download_and_prepare",
        ),
    ],
)
def test_a_dataset_that_cannot_be_used_is_one_clear_error(prepared, fields, message):
    with pytest.raises(DataError, match=message):
        open_source(config(prepared, **fields))


def test_a_dataset_prepared_in_another_format_is_a_clear_error(prepared, tmp_path):
    folder = tmp_path / "tiny_digits" / "1.0.0"
    folder.mkdir(parents=True)
    for path in (prepared / "tiny_digits" / "1.0.0").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match="prepared, but not as array_record"):
        open_source(config(tmp_path))


@pytest.mark.parametrize("module", ["tensorflow_datasets", "array_record.python"])
def test_without_the_library_the_error_says_what_to_install(prepared, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"pip install 'jaxkit\[data\]'"):
        open_source(config(prepared))
