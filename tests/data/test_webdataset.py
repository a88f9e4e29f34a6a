import gc
import io
import json
import os
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from jaxkit.data import DataError
from jaxkit.data.captions import END
from jaxkit.data.loader import Loader
from jaxkit.data.shard_index import METADATA, shard_index
from jaxkit.data.sources import open_source
from jaxkit.data.webdataset import expanded, selected
from jaxkit.schema.data import Captions, Select, WebDataset

GOOD = {"original_width": 300, "original_height": 400, "pwatermark": 0.1, "aesthetic": 6.5}


def picture(value, height=8, width=12, kind="PNG"):
    data = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(data, kind)
    return data.getvalue()


def shard(path, samples):
    """Writes samples {key: {extension: content}} in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in samples.items():
            for extension, content in members.items():
                data = json.dumps(content) if isinstance(content, dict) else content
                data = data.encode() if isinstance(data, str) else data
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def sample(value, metadata=GOOD, **more):
    return {"png": picture(value), "txt": f"image {value}", "json": metadata, **more}


@pytest.fixture
def root(tmp_path):
    shard(tmp_path / "train-00.tar", {f"folder.d/{n:03d}": sample(n) for n in range(3)})
    shard(tmp_path / "train-01.tar", {f"{n:03d}": sample(n) for n in range(3, 7)})
    shard(tmp_path / "test.tar", {"a": sample(200)})
    return tmp_path


def webdataset(root, train="train-{00..01}.tar", test="test.tar", **fields):
    fields = {"batch_size": 2, "image_size": 8, "captions": Captions(max_length=12)} | fields
    return open_source(WebDataset(name="webdataset", train=(str(root / train),), test=(str(root / test),), **fields))


def text_of(example):
    ids = example["input_ids"][example["attention_mask"] == 1]
    assert ids[-1] == END
    return bytes(ids[:-1].astype(np.uint8)).decode()


def test_samples_of_all_shards_are_read_at_any_place(root):
    source = webdataset(root)
    assert (len(source.train), len(source.test), source.num_classes, source.image_shape) == (7, 1, 1, (8, 8, 3))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(source.train.__getitem__, [6, 0, 3, 2]))
    for n, example in zip([6, 0, 3, 2], found, strict=True):
        assert (example["image"] == n).all()
        assert text_of(example) == f"image {n}"
        assert example["micro_conds"].tolist() == [300, 400, 0, 2, 6.5]
    assert (source.test[0]["image"] == 200).all()


def test_the_samples_are_those_that_the_webdataset_library_yields(root):
    reference = pytest.importorskip("webdataset")
    paths = [str(root / f"train-0{n}.tar") for n in range(2)]
    with warnings.catch_warnings():
        # the library leaves its files to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        rows = reference.WebDataset(paths, shardshuffle=False, empty_check=False).decode("rgb8")
        expected = [(row["png"].shape, row["txt"]) for row in rows]
        del rows
        gc.collect()
    source = webdataset(root)
    assert expected == [((8, 12, 3), text_of(source.train[n])) for n in range(7)]


def test_the_position_in_an_epoch_is_resumed(root):
    source = webdataset(root)
    loader = Loader(source.train, 2, 0, 1, 0, 1, source.fingerprint)
    batches = loader.batches()
    seen = [next(batches) for _ in range(7)]
    batches.close()
    assert sorted(int(n) for batch in seen for n in batch["image"][:, 0, 0, 0]) == sorted([*range(7)] * 2)
    resumed = Loader(webdataset(root).train, 2, 0, 1, 0, 1, source.fingerprint)
    batches = resumed.batches(resumed.restore(json.loads(json.dumps(loader.state(5)))))
    np.testing.assert_array_equal(next(batches)["input_ids"], seen[5]["input_ids"])
    batches.close()


def test_an_index_is_made_once_and_anew_when_the_shard_changes(root):
    source = webdataset(root)
    kept = root / "train-00.tar.index.npz"
    first = kept.stat().st_mtime_ns
    assert webdataset(root).fingerprint == source.fingerprint
    assert kept.stat().st_mtime_ns == first
    shard(root / "train-00.tar", {"x": sample(50), "y": sample(60)})
    os.utime(root / "train-00.tar", ns=(first, first))
    changed = webdataset(root)
    assert len(changed.train) == 6
    assert changed.fingerprint != source.fingerprint
    kept.write_bytes(kept.read_bytes()[:100])
    assert webdataset(root).fingerprint == changed.fingerprint
    assert not list(root.glob("*.part"))


def test_indexes_of_shards_of_one_name_lie_apart_in_a_folder_of_their_own(root):
    for name in ("one", "two"):
        shard(root / name / "0.tar", {"a": sample(10 if name == "one" else 20)})
    (root / "indexes").mkdir()
    for _ in range(2):
        source = webdataset(root, "{one,two}/0.tar", index_folder=str(root / "indexes"))
        assert [source.train[i]["image"].max() for i in range(2)] == [10, 20]
    assert len(list((root / "indexes").iterdir())) == 3
    assert not list(root.glob("*.npz"))
    with pytest.raises(DataError, match="set data.index_folder to a folder that can"):
        webdataset(root, index_folder=str(root / "none"))


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a.tar", ["a.tar"]),
        ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("x{a,b{1..2}}", ["xa", "xb1", "xb2"]),
        ("{a}", ["{a}"]),
    ],
)
def test_braces_are_written_out(pattern, paths):
    assert expanded(pattern) == paths
    assert sorted(paths) == sorted(pytest.importorskip("braceexpand").braceexpand(pattern))


def test_each_filter_takes_what_fits_and_leaves_out_what_does_not_say(root, capsys):
    stability = {"p_watermarkdf": 0.1, "aes_scorelv2": 5.0, "is_spawning": False, "is_getty": False, "p_nsfwdf": 0.2}
    only_stability = {"original_width": 256, "original_height": 256, "stability_metadata": stability}
    samples = {
        "good": GOOD,
        "stability": only_stability,
        "small": GOOD | {"original_height": 255},
        "sizeless": {"pwatermark": 0.1, "aesthetic": 6.5},
        "marked": GOOD | {"pwatermark": 0.51},
        "also marked": GOOD | {"watermark_score": 0.6},
        "unmarked": GOOD | {"pwatermark": None},
        "ugly": GOOD | {"AESTHETIC_SCORE": 4.74},
        "null": {},
    }
    rows = {name: sample(n, metadata) for n, (name, metadata) in enumerate(samples.items())}
    rows["none"] = {"png": picture(9), "txt": "image 9"}
    rows["broken"] = {"png": picture(10), "txt": "image 10", "json": "{"}
    shard(root / "mixed.tar", rows)

    def taken(**fields):
        source = webdataset(root, "mixed.tar", test="mixed.tar", select=Select(**fields))
        return [int(source.train[i]["image"].max()) for i in range(len(source.train))]

    assert taken() == [0, 1]
    said = capsys.readouterr().err.splitlines()[0]
    assert said == (
        "data.train: 2 of 11 samples are taken (min_size: 1 fail, 4 do not say; max_pwatermark: 2 fail, 4 do not say; "
        "min_aesthetic_score: 1 fail, 3 do not say)"
    )
    assert taken(min_size=None, max_pwatermark=None, min_aesthetic_score=None) == [*range(11)]
    assert taken(max_pnsfw=0.2) == [1]
    assert taken(require_marked_as_ok_by_spawning=True, require_marked_as_not_getty=True) == [1]
    assert taken(min_size=257) == [0]
    with pytest.raises(DataError, match=r"no sample of .* is taken: 0 of 11 samples are taken .*max_pnsfw: 1 fail"):
        taken(max_pnsfw=0.1)


def test_marks_of_spawning_and_getty_are_heeded_where_asked_for():
    columns = {name: np.full(4, np.nan) for name in METADATA}
    columns["spawning"][:3] = [0, 1, 0]
    columns["getty"][:3] = [0, 0, 1]
    metadata = np.stack(list(columns.values()), axis=1)
    off = {"min_size": None, "max_pwatermark": None, "min_aesthetic_score": None}
    taken = {
        name: selected(metadata, Select(**off, **{name: True}))[0].tolist()
        for name in ("require_marked_as_ok_by_spawning", "require_marked_as_not_getty")
    }
    assert taken == {
        "require_marked_as_ok_by_spawning": [True, False, True, False],
        "require_marked_as_not_getty": [True, True, False, False],
    }


def test_of_several_images_of_a_text_the_one_of_the_best_score_is_taken(root):
    several = {"0.png": picture(1), "1.png": picture(2), "2.png": picture(3), "txt": "best"}
    shard(
        root / "sdxl.tar",
        {
            "a": {**several, "clip_scores.txt": "0.1,0.9,0.3"},
            "b": {**several, "clip_scores.txt": "0.5,0.1,0.5"},
            "unscored": several,
            "missing": {**several, "clip_scores.txt": "0,0,0,1"},
        },
    )
    source = webdataset(root, "sdxl.tar", test="sdxl.tar", variant="sdxl_synthetic")
    assert [int(source.train[i]["image"].max()) for i in range(len(source.train))] == [2, 1]
    assert source.train[0]["micro_conds"].tolist() == [12, 8, 0, 2, 5]


def test_of_a_clean_image_the_top_left_quarter_is_kept(root):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8] = 77
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    shard(root / "clean.tar", {"a": {"png": data.getvalue(), "txt": "x"}})
    for variant, least in (("clean", 77), ("clean_upscaled", 0)):
        example = webdataset(root, "clean.tar", test="clean.tar", variant=variant).train[0]
        assert (example["image"].min(), example["image"].max()) == (least, 77)
        assert example["micro_conds"][4] == 5


def test_classes_are_labels_and_by_their_names_captions(root):
    shard(root / "classes.tar", {str(n): {"jpg": picture(n, kind="JPEG"), "cls": str(n)} for n in (2, 0)})
    with pytest.raises(DataError, match=r"2 samples have no .txt, the first in .*classes.tar"):
        webdataset(root, "classes.tar", test="classes.tar")
    (root / "names.json").write_text(json.dumps(["tench", "goldfish", "shark"]))
    source = webdataset(root, "classes.tar", test="classes.tar", class_names=str(root / "names.json"))
    assert source.num_classes == 3
    assert [(int(source.train[i]["label"]), text_of(source.train[i])) for i in range(2)] == [(2, "shark"), (0, "tench")]
    (root / "names.json").write_text(json.dumps({"2": "shark"}))
    with pytest.raises(DataError, match="is of class 0, which data.class_names does not name"):
        webdataset(root, "classes.tar", test="classes.tar", class_names=str(root / "names.json")).train[1]
    (root / "names.json").write_text("3")
    with pytest.raises(DataError, match="class_names"):
        webdataset(root, class_names=str(root / "names.json"))


def test_a_shard_that_is_cut_off_damaged_or_no_tar_is_refused(root):
    path = root / "train-01.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train-01.tar (is cut off or damaged|is no uncompressed tar file)"):
        webdataset(root)
    damaged = bytearray(whole)
    index = shard_index(root / "train-00.tar", root / "kept.npz")
    assert index.places[0, 0] % 512 == 0
    # the header of the second sample's image: tarfile takes it for the end
    damaged[3 * 1024 : 3 * 1024 + 512] = b"\xff" * 512
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match=r"train-01.tar is cut off or damaged at byte 3072"):
        webdataset(root)
    path.write_bytes(b"no tar file" * 100)
    with pytest.raises(DataError, match="no uncompressed tar file"):
        webdataset(root)
    path.unlink()
    with pytest.raises(DataError, match=r"train-01.tar cannot be opened: No such file"):
        webdataset(root)


@pytest.mark.parametrize("url", ["pipe:cat x.tar", "https://host/{0..9}.tar", "s3://bucket/x.tar"])
def test_shards_elsewhere_are_refused(root, url):
    with pytest.raises(DataError, match="from disk only"):
        open_source(WebDataset(name="webdataset", batch_size=2, image_size=8, train=(url,), test=("x",)))


def test_a_corrupt_image_is_named_by_its_place_or_replaced(root):
    shard(root / "bad.tar", {"a": sample(1) | {"png": b"no"}, "b": sample(2)})
    with pytest.raises(DataError, match=r"bad.tar, the image at byte 512 is corrupt: its 2 bytes"):
        webdataset(root, "bad.tar").train[0]
    source = webdataset(root, "bad.tar", on_corrupt="skip")
    assert text_of(source.train[0]) == "image 2"
    assert len(source.corrupt()) == 1


def test_without_captions_images_have_their_classes_and_need_no_text(root):
    shard(root / "classes.tar", {f"{n}": {"png": picture(n), "cls": str(n)} for n in range(3)})
    source = webdataset(root, "classes.tar", "classes.tar", captions=None)
    assert source.captions is None
    assert source.num_classes == 3
    assert [(set(example), int(example["label"])) for example in source.train] == [
        ({"image", "label", "micro_conds"}, n) for n in range(3)
    ]
