import time

import pytest


@pytest.fixture
def stuck():
    yield
    time.sleep(600)


@pytest.mark.timeout(2)
def test_passes_and_never_ends(stuck):
    pass
