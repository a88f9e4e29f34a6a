import time

import pytest


@pytest.mark.timeout(2)
def test_sleeps():
    print("printed before the hang")
    time.sleep(600)


def test_after():
    pass
