import unittest


class TestSetUp(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise RuntimeError("no set-up")

    def test_first(self):
        pass

    def test_second(self):
        pass


class TestTearDown(unittest.TestCase):
    @classmethod
    def tearDownClass(cls):
        raise RuntimeError("no tear-down")

    def test_only(self):
        pass
