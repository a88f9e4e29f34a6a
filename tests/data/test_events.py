import sys

import numpy as np
import pytest

from jaxkit.data import DataError, Examples
from jaxkit.data.events import Binning, Events, bin_events
from jaxkit.data.events.aedat import open_dvs_gesture, read_aedat
from jaxkit.data.events.nmnist import open_nmnist, read_nmnist
from jaxkit.data.events.speech import SpokenWords, open_spoken_words
from jaxkit.data.loader import Loader

ONE_MS = Binning(1.0, 4.0)


def events(times, addresses, shape):
    return Events(np.array(times, np.float64), np.array(addresses, np.int64).reshape(len(times), -1), shape)


def write_nmnist(path, rows):
    """``rows`` are (x, y, polarity, µs)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for x, y, p, t in rows))
    return path


def nmnist_folder(root, counts=2):
    for split in ("Train", "Test"):
        for digit in range(10):
            for i in range(counts):
                write_nmnist(root / split / str(digit) / f"{i:05d}.bin", [(digit, i, 1, 1500), (33, 33, 0, 3999)])
    return root


def write_aedat2(path, rows, header=b"#!AER-DAT2.0\r\n# made in a test\r\n"):
    path.write_bytes(header + np.array(rows, ">u4").tobytes())
    return path


def packet(rows, kind=1, valid=None, overflow=0):
    """``rows`` are (x, y, polarity, validity, µs)."""
    head = np.array([kind, 0], "<i2").tobytes()
    head += np.array([8, 4, overflow, len(rows), len(rows), len(rows) if valid is None else valid], "<i4").tobytes()
    return head + np.array([(x << 17 | y << 2 | p << 1 | v, t) for x, y, p, v, t in rows], "<u4").tobytes()


def write_aedat3(path, *packets, end=b"#!END-HEADER\r\n"):
    path.write_bytes(b"#!AER-DAT3.1\r\n#Format: RAW\r\n" + end + b"".join(packets))
    return path


def gesture_folder(root, labels="class,startTime_usec,endTime_usec\n1,1000,3000\n11,3000,6000\n"):
    root.mkdir(exist_ok=True)
    for split, name in (("train", "user01_led"), ("test", "user24_led")):
        (root / f"trials_to_{split}.txt").write_text(f"{name}.aedat\n\n")
        write_aedat3(root / f"{name}.aedat", packet([(i, 2 * i, i % 2, 1, 1000 * i) for i in range(8)]))
        (root / f"{name}_labels.csv").write_text(labels)
    return root


def write_words(path, recordings, labels, changes=()):
    h5py = pytest.importorskip("h5py")
    arrays = {
        "spikes/times": (h5py.vlen_dtype(np.float16), [np.float16(times) for times, _ in recordings]),
        "spikes/units": (h5py.vlen_dtype(np.uint16), [np.uint16(units) for _, units in recordings]),
        "labels": (np.uint8, labels),
    }
    with h5py.File(path, "w") as file:
        for name, (dtype, values) in (arrays | dict(changes)).items():
            dataset = file.create_dataset(name, (len(values),), dtype)
            for i, value in enumerate(values):
                dataset[i] = value
    return path


WORDS = [([0.0, 0.0125, 0.02], [0, 4, 699]), ([0.03], [350])]


def test_events_are_counted_where_and_when_they_are():
    found = bin_events(events([0, 0.5, 1.0, 3.99, 4.0, -0.1], [0, 0, 1, 2, 2, 2], (3,)), ONE_MS)
    np.testing.assert_array_equal(found, [[2, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert found.dtype == np.float32


def test_no_event_at_the_edge_of_a_step_is_pulled_back_by_float_noise():
    microseconds = np.arange(0, 1000, 100)
    found = bin_events(events(microseconds / 1000, np.zeros(10), (1,)), Binning(0.1, 1.0))
    np.testing.assert_array_equal(found[:, 0], np.ones(10))
    assert Binning(0.3, 2.1).steps == 7


def test_downsampling_adds_neighbours_and_leaves_axes_that_are_not_named():
    rng = np.random.default_rng(0)
    where = np.stack([rng.integers(0, size, 500) for size in (34, 34, 2)], 1)
    recording = events(rng.uniform(0, 4, 500), where, (34, 34, 2))
    whole = bin_events(recording, ONE_MS)
    half = bin_events(recording, Binning(1.0, 4.0, (2, 2)))
    np.testing.assert_array_equal(half, whole.reshape(4, 17, 2, 17, 2, 2).sum((2, 4)))
    assert whole.sum() == 500


@pytest.mark.parametrize("downsample", [(3,), (2, 2, 2, 2)])
def test_downsampling_that_does_not_divide_the_sensor_is_refused(downsample):
    with pytest.raises(DataError, match=r"does not divide a sensor of shape \(34, 34, 2\)"):
        bin_events(events([0], [[0, 0, 0]], (34, 34, 2)), Binning(1.0, 4.0, downsample))


def test_binning_by_nothing_is_refused():
    for arguments in ((0.0, 1.0), (1.0, -1.0), (1.0, 1.0, (0,))):
        with pytest.raises(ValueError, match="positive"):
            Binning(*arguments)


def test_nmnist_events_have_row_column_polarity_and_milliseconds(tmp_path):
    found = read_nmnist(write_nmnist(tmp_path / "a.bin", [(3, 5, 1, 1500), (33, 0, 0, 2**23 - 1)]))
    np.testing.assert_array_equal(found.addresses, [[5, 3, 1], [0, 33, 0]])
    np.testing.assert_array_equal(found.times, [1.5, 8388.607])


def test_an_overflow_of_nmnist_moves_all_times_after_it_and_is_no_event(tmp_path):
    found = read_nmnist(write_nmnist(tmp_path / "a.bin", [(1, 1, 0, 10), (0, 240, 0, 0), (2, 2, 0, 10)]))
    np.testing.assert_array_equal(found.times, [0.01, 8.202])


def test_an_nmnist_file_that_is_cut_or_of_another_sensor_is_refused(tmp_path):
    path = write_nmnist(tmp_path / "a.bin", [(1, 1, 0, 10), (40, 2, 0, 10)])
    with pytest.raises(DataError, match=r"event 1 of 2 lies at \[2, 40, 0\]"):
        read_nmnist(path)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match="is cut: 8 bytes"):
        read_nmnist(path)
    with pytest.raises(DataError, match="cannot be opened"):
        read_nmnist(tmp_path / "b.bin")


def test_an_empty_nmnist_recording_is_silent(tmp_path):
    assert not bin_events(read_nmnist(write_nmnist(tmp_path / "a.bin", [])), ONE_MS).any()


def test_nmnist_folders_become_a_source_that_the_loader_reads(tmp_path):
    source = open_nmnist(nmnist_folder(tmp_path), Binning(1.0, 4.0, (2, 2)))
    assert isinstance(source.train, Examples)
    assert (len(source.train), len(source.test), source.num_classes) == (20, 20, 10)
    assert source.image_shape == (4, 17, 17, 2)
    example = source.train[7]
    assert example["label"] == 3
    np.testing.assert_array_equal(np.argwhere(example["image"]), [[1, 0, 1, 1], [3, 16, 16, 0]])
    batch = Loader(source.train, 5, 0, 1, 0, 1, source.fingerprint).first()
    assert batch["image"].shape == (5, 4, 17, 17, 2)
    assert batch["label"].shape == (5,)


def test_other_files_and_another_binning_have_another_fingerprint(tmp_path):
    root = nmnist_folder(tmp_path)
    first = open_nmnist(root, ONE_MS).fingerprint
    assert first == open_nmnist(root, ONE_MS).fingerprint
    assert first != open_nmnist(root, Binning(2.0, 4.0)).fingerprint
    write_nmnist(root / "Train/3/00000.bin", [(0, 0, 0, 0)])
    assert first != open_nmnist(root, ONE_MS).fingerprint


def test_an_nmnist_folder_that_lacks_a_digit_is_refused(tmp_path):
    for path in (nmnist_folder(tmp_path) / "Test" / "9").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"9 has no \.bin files; N-MNIST is unpacked as"):
        open_nmnist(tmp_path, ONE_MS)


def test_aedat_2_counts_rows_from_the_top_and_drops_special_events(tmp_path):
    # y 10 and x 20 in the camera's own counting, darker; then a special event; then brighter
    rows = [(10 << 8 | 20 << 1 | 1, 1000), (1 << 15, 1500), (127 << 8 | 127 << 1, 2000)]
    found = read_aedat(write_aedat2(tmp_path / "a.aedat", rows))
    np.testing.assert_array_equal(found.addresses, [[117, 107, 0], [0, 0, 1]])
    np.testing.assert_array_equal(found.times, [1, 2])
    assert found.shape == (128, 128, 2)


def test_aedat_2_of_another_camera_or_cut_is_refused(tmp_path):
    path = write_aedat2(tmp_path / "a.aedat", [(1 << 22, 1000)])
    with pytest.raises(DataError, match="more than 16 bits"):
        read_aedat(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="is cut: 5 bytes"):
        read_aedat(path)


@pytest.mark.parametrize("end", [b"#!END-HEADER\r\n", b""])
def test_aedat_3_joins_polarity_packets_and_passes_over_others(tmp_path, end):
    path = write_aedat3(
        tmp_path / "a.aedat",
        packet([(7, 9, 1, 1, 1000)]),
        packet([(1, 1, 1, 1, 1100)], kind=0),
        packet([(0, 127, 0, 1, 2000), (5, 5, 1, 0, 2100)], valid=1),
        packet([], kind=1),
        packet([(2, 3, 0, 1, 5)], overflow=1),
        end=end,
    )
    found = read_aedat(path)
    np.testing.assert_array_equal(found.addresses, [[9, 7, 1], [127, 0, 0], [3, 2, 0]])
    np.testing.assert_array_equal(found.times, [1, 2, (2**31 + 5) / 1000])


def test_aedat_3_cut_anywhere_is_refused(tmp_path):
    path = write_aedat3(tmp_path / "a.aedat", packet([(7, 9, 1, 1, 1000)]), packet([(7, 9, 1, 1, 1000)]))
    whole, header = path.read_bytes(), 42
    packet_bytes = (len(whole) - header) // 2
    for length in range(header + 1, len(whole)):
        path.write_bytes(whole[:length])
        if length == header + packet_bytes:
            assert len(read_aedat(path).times) == 1
        else:
            with pytest.raises(DataError, match="cut or damaged in the packet at byte"):
                read_aedat(path)


@pytest.mark.parametrize("size", [-8, 0, 4, 6, 2**31 - 1])
def test_a_damaged_aedat_3_header_is_refused(tmp_path, size):
    path = write_aedat3(tmp_path / "a.aedat", packet([(7, 9, 1, 1, 1000)]))
    data = path.read_bytes()
    path.write_bytes(data[:46] + np.int32(size).tobytes() + data[50:])
    with pytest.raises(DataError, match="cut or damaged"):
        read_aedat(path)


def test_what_is_no_aedat_is_refused(tmp_path):
    (tmp_path / "a.aedat").write_bytes(b"#!AER-DAT1.0\r\n")
    with pytest.raises(DataError, match=r"begins with b'#!AER-DAT1\.0'"):
        read_aedat(tmp_path / "a.aedat")


def test_gestures_are_cut_out_of_their_recordings(tmp_path):
    source = open_dvs_gesture(gesture_folder(tmp_path), Binning(1.0, 3.0, (4, 4)))
    assert (len(source.train), len(source.test), source.num_classes) == (2, 2, 11)
    assert source.image_shape == (3, 32, 32, 2)
    assert [source.train[i]["label"] for i in range(2)] == [0, 10]
    # the second lasts from 3 to 6 ms: events 3, 4, 5 at columns 3, 4, 5 and rows 6, 8, 10
    np.testing.assert_array_equal(np.argwhere(source.train[1]["image"]), [[0, 1, 0, 1], [1, 2, 1, 0], [2, 2, 1, 1]])
    assert source.train[0]["image"].sum() == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("a,b\n", "begins with 'a,b'"),
        ("", "begins with ''"),
        ("class,startTime_usec,endTime_usec\n12,0,1\n", "a line '12,0,1'"),
        ("class,startTime_usec,endTime_usec\n1,x,1\n", "a line '1,x,1'"),
        ("class,startTime_usec,endTime_usec\n", "no recordings to train on"),
    ],
)
def test_labels_of_gestures_that_are_malformed_are_refused(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        open_dvs_gesture(gesture_folder(tmp_path, labels), ONE_MS)


def test_spoken_words_are_units_over_milliseconds(tmp_path):
    words = SpokenWords(write_words(tmp_path / "a.h5", WORDS, [3, 1]))
    assert words.labels.tolist() == [3, 1]
    np.testing.assert_array_equal(words[0].addresses, [[0], [4], [699]])
    # the file has float16, 11 bits
    np.testing.assert_allclose(words[0].times, [0, 12.5, 20], rtol=2**-11)


def test_the_recipe_of_shd_has_140_inputs_of_10_ms(tmp_path):
    paths = [write_words(tmp_path / f"{split}.h5", WORDS, [3, 1]) for split in ("train", "test")]
    source = open_spoken_words(*paths, Binning(10.0, 100.0, (5,)))
    assert source.image_shape == (10, 140)
    assert source.num_classes == 4
    frames = source.train[0]["image"]
    # 0.02 s is 0.02000427 in float16, so it falls into step 2
    np.testing.assert_array_equal(np.argwhere(frames), [[0, 0], [1, 0], [2, 139]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": (np.uint8, [1, 2, 3])}, "2 times, 2 units, 3 labels"),
        ({"spikes/units": (np.uint16, [1, 2])}, "an array for each recording"),
    ],
)
def test_a_file_of_words_that_does_not_add_up_is_refused(tmp_path, changes, message):
    path = write_words(tmp_path / "a.h5", WORDS, [3, 1], changes)
    with pytest.raises(DataError, match=message):
        SpokenWords(path)


def test_a_word_with_other_units_than_times_or_beyond_the_cochlea_is_refused(tmp_path):
    words = SpokenWords(write_words(tmp_path / "a.h5", [([0.1], [1, 2]), ([0.1], [700])], [0, 1]))
    with pytest.raises(DataError, match="recording 0 has 1 times but 2 units"):
        words[0]
    with pytest.raises(DataError, match=r"lies at \[700\]"):
        words[1]


def test_a_file_of_words_that_is_cut_missing_or_lacks_arrays_is_refused(tmp_path):
    path = write_words(tmp_path / "a.h5", WORDS, [3, 1])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match="is cut or no HDF5 file"):
        SpokenWords(path)
    with pytest.raises(DataError, match="is not a file"):
        SpokenWords(tmp_path / "b.h5")
    with pytest.importorskip("h5py").File(path, "w") as file:
        file["labels"] = [1]
    with pytest.raises(DataError, match=r"lacks spikes/times, spikes/units; it has labels"):
        SpokenWords(path)


def test_labels_that_training_does_not_have_are_refused(tmp_path):
    train, test = write_words(tmp_path / "a.h5", WORDS, [0, 1]), write_words(tmp_path / "b.h5", WORDS, [0, 2])
    with pytest.raises(DataError, match=r"b\.h5 has labels up to 2 but .*a\.h5 only up to 1"):
        open_spoken_words(train, test, ONE_MS)


def test_a_missing_h5py_is_named_with_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match="h5py is not installed; pip install h5py"):
        SpokenWords(tmp_path / "a.h5")
