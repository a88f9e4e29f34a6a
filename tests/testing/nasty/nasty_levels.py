import os
import unittest

import pytest


@pytest.mark.level(0)
def test_zero():
    pass


@pytest.mark.level(1)
def test_one():
    pass


@pytest.mark.level(2)
def test_two():
    raise AssertionError("not run below level 2")


@pytest.mark.level(3)
def test_three():
    pass


@unittest.skipUnless(int(os.environ["TEST_LEVEL"]) >= 2, "skip test in current test level")
class TestDecorated(unittest.TestCase):
    def test_two(self):
        pass
