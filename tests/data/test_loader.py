import json
import subprocess
import sys
import threading
import time
from contextlib import closing
from itertools import islice

import jax
import numpy as np
import pytest

from jaxkit.data import DataError, Source
from jaxkit.data.feed import open_feed
from jaxkit.data.loader import Loader, eval_batches, first_eval_batch, prefetch
from jaxkit.schema.data import Digits

FIELDS = {"batch_size": 4, "seed": 0, "threads": 2, "process_index": 0, "process_count": 1, "fingerprint": "numbers"}


class Numbers:
    """Example i has label i and an image full of i; remembers which were read, and fails at one of them."""

    def __init__(self, count, broken=None):
        self.count = count
        self.broken = broken
        self.read = []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.broken:
            raise DataError(f"example {index} is broken")
        self.read.append(index)
        return {"image": np.full((2, 2, 1), index, np.uint8), "label": np.int32(index)}


def loader(count=10, examples=None, **fields):
    return Loader(examples or Numbers(count), **{**FIELDS, **fields})


def labels(batches, count):
    taken = [batch["label"] for batch in islice(batches, count)]
    batches.close()
    return np.concatenate(taken)


def prefetching_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


def wait_for_no_prefetching_threads():
    deadline = time.monotonic() + 10
    while prefetching_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert prefetching_threads() == []


def test_a_batch_stacks_images_and_labels():
    batch = next(loader().batches())
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "image": ((4, 2, 2, 1), np.uint8),
        "label": ((4,), np.int32),
    }
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (7, 3), (8, 4), (5, 16), (1, 3)])
def test_every_example_comes_once_an_epoch_and_batches_cross_epochs(count, batch_size):
    stream = labels(loader(count, batch_size=batch_size).batches(), count)
    assert len(stream) == count * batch_size
    for epoch in stream.reshape(batch_size, count):
        assert sorted(epoch) == list(range(count))


def test_epochs_and_seeds_differ_and_the_same_seed_repeats():
    def stream(seed):
        return labels(loader(100, seed=seed, batch_size=100).batches(), 3)

    epochs = stream(0).reshape(3, 100)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    np.testing.assert_array_equal(stream(0), stream(0))
    # Were epoch e shuffled by seed + e, seed 1 would repeat seed 0 from its second epoch on.
    assert not {tuple(epoch) for epoch in stream(1).reshape(3, 100)} & {tuple(epoch) for epoch in epochs}


def test_the_order_does_not_depend_on_the_number_of_threads():
    np.testing.assert_array_equal(labels(loader(threads=1).batches(), 20), labels(loader(threads=8).batches(), 20))


@pytest.mark.parametrize("start", [0, 1, 2, 7, 100])
def test_starting_at_a_position_equals_the_rest_of_the_uninterrupted_stream(start):
    whole = labels(loader().batches(), start + 6)
    np.testing.assert_array_equal(labels(loader().batches(start=start), 6), whole[start * 4 :])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_parts_of_all_processes_put_together_are_the_batches_of_one(processes):
    parts = [
        list(islice(loader(batch_size=8, process_index=p, process_count=processes).batches(), 5))
        for p in range(processes)
    ]
    whole = list(islice(loader(batch_size=8).batches(), 5))
    for step in range(5):
        for name in ("image", "label"):
            together = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(together, whole[step][name])


def test_a_process_reads_only_its_own_examples():
    examples = [Numbers(64), Numbers(64)]
    streams = [
        labels(loader(examples=each, batch_size=8, threads=1, process_index=p, process_count=2).batches(), 4)
        for p, each in enumerate(examples)
    ]
    wait_for_no_prefetching_threads()
    # Two processes, five batches at most (one read ahead) of 64 examples: nothing has been read by both.
    assert not set(examples[0].read) & set(examples[1].read)
    assert all(set(stream) <= set(each.read) for stream, each in zip(streams, examples, strict=True))
    assert all(len(each.read) <= 5 * 4 for each in examples)


def test_a_state_survives_json_and_a_change_of_the_number_of_processes():
    state = json.loads(json.dumps(loader(batch_size=8).state(5)))
    assert state["next_index"] == 5
    halves = [loader(batch_size=8, process_index=p, process_count=2) for p in range(2)]
    resumed = [next(half.batches(start=half.restore(state)))["label"] for half in halves]
    np.testing.assert_array_equal(np.concatenate(resumed), labels(loader(batch_size=8).batches(), 6)[5 * 8 :])


def test_the_state_of_other_data_is_refused_with_every_difference_named():
    state = loader(count=9, seed=3, batch_size=2, fingerprint="letters").state(5)
    with pytest.raises(DataError) as refusal:
        loader().restore(state)
    for difference in (
        "batch_size was 2, is 4",
        "length was 9, is 10",
        "seed was 3, is 0",
        "source was 'letters', is 'numbers'",
    ):
        assert difference in str(refusal.value)
    assert "resume with the same data or start a new workdir" in str(refusal.value)
    with pytest.raises(DataError, match=r"other data: seed was 1, is 0; resume"):
        loader().restore(loader(seed=1).state(5))


def test_steps_per_epoch_is_a_fraction():
    assert loader(10, batch_size=4).steps_per_epoch == 2.5


def test_a_batch_that_processes_cannot_share_and_no_examples_are_clear_errors():
    with pytest.raises(DataError, match="a batch of 4 cannot be shared evenly by 3 processes"):
        loader(process_count=3)
    with pytest.raises(DataError, match="a batch of 4 cannot be shared evenly by 3 processes"):
        eval_batches(Numbers(10), 4, 0, 3)
    with pytest.raises(DataError, match="no examples to train on"):
        loader(0)
    with pytest.raises(DataError, match="no examples to evaluate on"):
        eval_batches(Numbers(0), 4, 0, 1)
    with pytest.raises(DataError, match="no examples to evaluate on"):
        first_eval_batch(Numbers(0), 4, 0, 1)


@pytest.mark.parametrize(("count", "batches"), [(10, 3), (8, 2), (3, 1)])
def test_evaluation_reads_each_example_once_in_order_and_masks_the_padding(count, batches):
    passed = list(eval_batches(Numbers(count), 4, 0, 1))
    assert len(passed) == batches
    mask = np.concatenate([batch["mask"] for batch in passed])
    stream = np.concatenate([batch["label"] for batch in passed])
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(stream[mask == 1], np.arange(count))
    np.testing.assert_array_equal(stream[mask == 0], 0)
    assert {batch["image"].shape for batch in passed} == {(4, 2, 2, 1)}


@pytest.mark.parametrize("count", [1, 5, 9, 16])
def test_all_processes_evaluate_the_same_number_of_batches_and_each_example_once(count):
    parts = [list(eval_batches(Numbers(count), 8, p, 4)) for p in range(4)]
    assert len({len(part) for part in parts}) == 1
    whole = list(eval_batches(Numbers(count), 8, 0, 1))
    for step, batch in enumerate(whole):
        for name in ("image", "label", "mask"):
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), batch[name])


@pytest.mark.parametrize(("process", "processes"), [(0, 1), (1, 2)])
def test_the_first_batches_are_those_of_the_streams_and_nothing_else_is_read(process, processes):
    examples = Numbers(10)
    source = Source(examples, examples, 10, (2, 2, 1), "numbers")
    config = Digits(name="digits", batch_size=4)
    feed = open_feed(source, config, eval_batch_size=4, seed=0, process_index=process, process_count=processes)
    for first, stream in ((feed.first, feed.batches(0)), (feed.first_eval, feed.eval_batches())):
        examples.read.clear()
        batch = first()
        assert len(examples.read) == 4 // processes
        assert prefetching_threads() == []
        with closing(stream):
            expected = next(stream)
        assert batch.keys() == expected.keys()
        for name, array in batch.items():
            np.testing.assert_array_equal(array, expected[name])
        wait_for_no_prefetching_threads()


def test_prefetching_keeps_the_order_and_the_asked_number_of_batches_on_the_device():
    put, used = [], []

    def transfer(batch):
        put.append(int(batch["label"][0]))
        return jax.device_put(batch)

    for batch in prefetch(eval_batches(Numbers(20), 4, 0, 1), transfer, size=2):
        assert isinstance(batch["image"], jax.Array)
        used.append(int(batch["label"][0]))
        # One is in use, so at most one more than that waits.
        assert len(put) - len(used) <= 1
    assert put == used == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("broken", [0, 9])
def test_an_error_while_reading_ahead_surfaces_in_the_consumer(broken):
    batches = prefetch(eval_batches(Numbers(20, broken=broken), 4, 0, 1), lambda batch: batch)
    with pytest.raises(DataError, match=f"example {broken} is broken"):
        list(batches)
    wait_for_no_prefetching_threads()


def test_closing_in_the_middle_leaves_no_threads():
    batches = prefetch(loader(threads=4).batches(), lambda batch: batch)
    next(batches)
    assert prefetching_threads()
    batches.close()
    wait_for_no_prefetching_threads()


def test_an_interrupt_in_the_training_loop_leaves_no_threads():
    def train():
        for step, _ in enumerate(prefetch(loader(threads=4).batches(), lambda batch: batch)):
            if step == 3:
                raise KeyboardInterrupt

    try:
        train()
    except KeyboardInterrupt:
        wait_for_no_prefetching_threads()
    else:
        pytest.fail("the interrupt was swallowed")


def test_a_script_that_stops_in_the_middle_ends_at_once_and_prints_nothing():
    code = """
import numpy as np
from jaxkit.data.loader import Loader
from jaxkit.data import ArrayExamples
examples = ArrayExamples(np.zeros((100, 4, 4, 1), np.uint8), np.zeros(100))
batches = Loader(examples, 32, 0, 8, 0, 1, "zeros").batches()
next(batches)
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
