import unittest


class TestSub(unittest.TestCase):
    def test_some(self):
        for i in range(3):
            with self.subTest("third", i=i):
                assert i != 1


def test_pytests_own(subtests):
    for i in range(2):
        with subtests.test(i=i):
            assert i == 0


def test_all_well(subtests):
    with subtests.test("well"):
        pass
