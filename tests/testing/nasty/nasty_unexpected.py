import unittest

import pytest


class TestUnittest(unittest.TestCase):
    @unittest.expectedFailure
    def test_passes(self):
        pass

    @unittest.expectedFailure
    def test_fails(self):
        self.fail("as expected")


@pytest.mark.xfail(strict=True, reason="strict")
def test_strict():
    pass


@pytest.mark.xfail(strict=False, reason="lax")
def test_lax():
    pass


@pytest.mark.xfail(reason="known")
def test_fails():
    raise AssertionError("as expected")
