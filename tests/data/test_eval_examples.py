"""``data.eval_examples``: an evaluation of the first test examples alone."""

import numpy as np
from conftest import small_config

from jaxkit.config import parse
from jaxkit.data.feed import open_feed
from jaxkit.data.sources import open_source


def evaluated(**changes):
    config = parse(small_config(**changes), "small").data
    feed = open_feed(open_source(config), config, eval_batch_size=32, seed=0, process_index=0, process_count=1)
    batches = list(feed.eval_batches())
    real = [np.asarray(batch["mask"], bool) for batch in batches]
    return np.concatenate([batch["label"][mask] for batch, mask in zip(batches, real, strict=True)])


def test_the_first_examples_alone_are_evaluated_and_all_where_there_are_fewer():
    whole = evaluated()
    assert len(whole) == 599
    np.testing.assert_array_equal(evaluated(data__eval_examples=40), whole[:40])
    assert len(evaluated(data__eval_examples=10_000)) == 599
