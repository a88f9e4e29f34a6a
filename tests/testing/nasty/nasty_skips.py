import unittest

import pytest


@pytest.mark.skip(reason="not today")
def test_marked():
    pass


def test_in_the_middle():
    pytest.skip("not here")


@unittest.skip("not this class")
class TestClass(unittest.TestCase):
    def test_first(self):
        pass
