"""Examples -> batches: the order of training, its position, reading ahead on the host and on the device."""

import sys
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np

from jaxkit.data import DataError, Examples

Batch = dict[str, np.ndarray]


class Loader:
    """Cuts an endless stream of shuffled epochs into batches, which may cross from one epoch into the next.

    The order is a function of the examples' number, the seed and the position alone. Each process reads its contiguous
    part of every batch: the parts put together are the batch that one process would read.

    ``fingerprint`` is the identity of the examples. Raises :class:`DataError` if there are no examples, or the
    processes cannot share a batch evenly.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        seed: int,
        threads: int,
        process_index: int,
        process_count: int,
        fingerprint: str,
    ):
        import grain

        self.examples = examples
        self.threads = threads
        self.batch_size = batch_size
        self.identity = {"source": fingerprint, "length": len(examples), "seed": seed, "batch_size": batch_size}
        self._part = _part(batch_size, process_index, process_count)
        if not len(examples):
            raise DataError("there are no examples to train on")
        self._order = grain.MapDataset.range(len(examples)).seed(seed).shuffle().repeat()
        # Grain sets up a data set's statistics on first use, which is not safe in the reading threads.
        self._order[0]

    @property
    def steps_per_epoch(self) -> float:
        """Updates in one pass over the examples; seldom a whole number."""
        return len(self.examples) / self.batch_size

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Yields ``{"image": [b h w c], "label": [b]}`` without end, from update number ``start`` on."""
        return _read_ahead(self._read, sys.maxsize // self.batch_size, self.threads, start)

    def first(self) -> Batch:
        """Reads the batch of update 0 in the calling thread: a look at the shapes decodes no other batch."""
        return self._read(0)

    def state(self, step: int) -> dict:
        """Describes the position before update number ``step``; survives JSON, and another number of processes."""
        return {"next_index": step, "fingerprint": self.identity}

    def restore(self, state: dict) -> int:
        """Returns the update number to go on from.

        Raises :class:`DataError` if the state is of other data, another seed or batch size: the stream it counts in
        is not this one.
        """
        saved = state["fingerprint"]
        changes = [
            f"{name} was {saved.get(name)!r}, is {self.identity.get(name)!r}"
            for name in sorted(saved.keys() | self.identity.keys())
            if saved.get(name) != self.identity.get(name)
        ]
        if changes:
            raise DataError(
                f"the checkpoint was written with other data: {'; '.join(changes)}; resume with the same data or start "
                "a new workdir"
            )
        return state["next_index"]

    def _read(self, step: int) -> Batch:
        first = step * self.batch_size
        return _stack([self.examples[self._order[first + i]] for i in self._part])


def eval_batches(
    examples: Examples, batch_size: int, process_index: int, process_count: int, threads: int = 8
) -> Generator[Batch, None, None]:
    """Yields each example once, in order: ``{"image": [b h w c], "label": [b], "mask": float32 [b]}``.

    The first example fills the last batch up, with ``mask`` 0, so that all batches of all processes have one shape.
    Raises :class:`DataError` as :class:`Loader` does.
    """
    read = _eval_reader(examples, batch_size, process_index, process_count)
    return _read_ahead(read, -(-len(examples) // batch_size), threads)


def first_eval_batch(examples: Examples, batch_size: int, process_index: int, process_count: int) -> Batch:
    """Reads the first batch of :func:`eval_batches` in the calling thread; raises what that raises."""
    return _eval_reader(examples, batch_size, process_index, process_count)(0)


def _eval_reader(examples: Examples, batch_size: int, process_index: int, process_count: int) -> Callable[[int], Batch]:
    """The function from the number of an evaluation batch to the batch."""
    part = _part(batch_size, process_index, process_count)
    count = len(examples)
    if not count:
        raise DataError("there are no examples to evaluate on")

    def read(number: int) -> Batch:
        positions = np.asarray(part) + number * batch_size
        batch = _stack([examples[int(i) if i < count else 0] for i in positions])
        return {**batch, "mask": (positions < count).astype(np.float32)}

    return read


def prefetch(
    batches: Generator[Batch, None, None], put: Callable[[Batch], Any], size: int = 2
) -> Generator[Any, None, None]:
    """Yields ``put(batch)`` for each batch, in order, with ``size`` of them on their way to the device.

    ``put`` must return before the transfer ends, as ``jax.device_put`` does; the batches are read ahead by threads of
    their own. Closing this generator closes ``batches``.
    """
    with closing(batches):
        ready = deque(put(batch) for batch in islice(batches, size))
        while ready:
            yield ready.popleft()
            ready.extend(put(batch) for batch in islice(batches, 1))


def _part(batch_size: int, process_index: int, process_count: int) -> range:
    """The places of one process in each batch."""
    local, rest = divmod(batch_size, process_count)
    if rest:
        raise DataError(f"a batch of {batch_size} cannot be shared evenly by {process_count} processes")
    return range(process_index * local, (process_index + 1) * local)


def _stack(examples: list[dict]) -> Batch:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _read_ahead(read: Callable[[int], Batch], count: int, threads: int, start: int = 0) -> Generator[Batch, None, None]:
    """Yields ``read(start)`` to ``read(count - 1)`` in order; each batch is read whole by one of the threads."""
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    iterator = iter(grain.MapDataset.range(count).map(read).to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    with closing(iterator):
        yield from iterator
