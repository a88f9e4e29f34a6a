import os

import pytest


@pytest.mark.parametrize("number", [1], ids=[f"of process {os.getpid()}"])
def test_has_another_name_every_time(number):
    pass


def test_beside():
    pass
