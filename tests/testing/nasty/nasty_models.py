import os

import pytest


@pytest.mark.model("org/passes")
def test_passes():
    pass


@pytest.mark.model("org/fails")
def test_fails_in_part():
    pass


@pytest.mark.model("org/fails")
def test_fails():
    raise AssertionError("the model is wrong")


@pytest.mark.model("org/crashes")
def test_crashes():
    os.abort()


@pytest.mark.model("org/skips")
@pytest.mark.level(2)
def test_skips():
    pass


@pytest.mark.model("org/vanishes")
@pytest.mark.parametrize("number", [1], ids=[f"process {os.getpid()}"])
def test_vanishes(number):
    pass
