"""Everything the training loop reads, put together from the ``data`` section."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from jaxkit.data import Rows, Source
from jaxkit.data.augment import make_augment, make_preprocess
from jaxkit.data.loader import Batch, Loader, eval_batches, first_eval_batch, prefetch
from jaxkit.schema.data import Data


class Feed(NamedTuple):
    """What the loop reads. Batches are dicts of host arrays, this process's part of each."""

    batches: Callable[[int], Iterator[Batch]]
    """Training batches from the update of this number (from 0) on, without end."""
    first: Callable[[], Batch]
    """The training batch of update 0, read without threads: what start-up learns the shapes from."""
    eval_batches: Callable[[], Iterator[Batch]]
    """One pass in batches of one shape, with ``mask [b]``."""
    first_eval: Callable[[], Batch]
    """The first of ``eval_batches``, read without threads."""
    train_pass: Callable[[], Iterator[Batch]]
    """As ``eval_batches``, of the training examples."""
    augment: Callable
    """``keys [b 2], batch -> batch``: in training, inside the step."""
    preprocess: Callable
    """``batch -> batch``: in evaluation, inside the step."""
    position: Callable[[int], dict[str, Any]]
    """What a checkpoint keeps in order to find the place again."""
    restore: Callable[[dict[str, Any]], int]
    """The update to go on from; raises DataError if the position is one in other data."""
    prefetch: Callable = prefetch
    """``batches, put -> iterator`` of batches that are on the devices before they are asked for."""


def open_feed(
    source: Source, config: Data, *, eval_batch_size: int, seed: int, process_index: int, process_count: int
) -> Feed:
    """Makes the feed of one process. ``eval_batch_size`` is over all processes, as ``config.batch_size`` is."""
    loader = Loader(
        source.train, config.batch_size, seed, config.threads, process_index, process_count, source.fingerprint
    )
    test = source.test
    if config.eval_examples is not None:
        test = Rows(test, range(min(config.eval_examples, len(test))))
    cut = (eval_batch_size, process_index, process_count)
    return Feed(
        batches=partial(_first_again, loader) if config.one_batch else loader.batches,
        first=loader.first,
        eval_batches=partial(eval_batches, test, *cut, config.threads),
        first_eval=partial(first_eval_batch, test, *cut),
        train_pass=partial(eval_batches, source.train, *cut, config.threads),
        augment=make_augment(config, source.image_shape),
        preprocess=make_preprocess(config, source.image_shape),
        position=loader.state,
        restore=loader.restore,
    )


def _first_again(loader: Loader, start: int) -> Iterator[Batch]:
    batch = loader.first()
    while True:
        yield batch
