"""The task that only delays can solve."""

import numpy as np
import pytest

from jaxkit.data.lags import open_lags
from jaxkit.data.sources import open_source
from jaxkit.errors import ConfigError
from jaxkit.schema.data import Lags


def test_the_class_is_the_time_between_the_two_spikes_and_nothing_else_tells_it():
    source = open_source(Lags(name="lags", batch_size=4, classes=3, gap=2, steps=30, tail=5))
    assert source.image_shape == (30, 2, 1)
    starts = {0: [], 1: [], 2: []}
    for split in (source.train, source.test):
        for i in range(len(split)):
            image, label = split[i]["image"][..., 0], int(split[i]["label"])
            (first,), (second,) = (np.flatnonzero(image[:, channel]) for channel in (0, 1))
            assert second - first == (label + 1) * 2
            assert second < 30 - 5
            assert image.sum() == 2 * 255
            starts[label].append(first)
    # every class begins at the same steps
    assert sorted(starts[0]) == sorted(starts[1]) == sorted(starts[2]) == list(range(30 - 6 - 5))


def test_no_test_example_is_a_training_example():
    source = open_lags(Lags(name="lags", batch_size=4))
    train, test = ({split.images[i].tobytes() for i in range(len(split))} for split in (source.train, source.test))
    assert not train & test
    assert len(test) == pytest.approx(len(train) / 3, rel=0.1)


def test_steps_that_do_not_hold_the_lags_are_refused():
    from conftest import small_config

    from jaxkit.config import parse

    raw = small_config(data={"name": "lags", "batch_size": 4, "steps": 10})
    with pytest.raises(ConfigError, match=r"data.steps: 10 do not hold 4 lags and the tail: 40 or more do"):
        parse(raw, "config.yaml")
