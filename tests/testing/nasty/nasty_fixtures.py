import pytest


@pytest.fixture
def broken_before():
    raise RuntimeError("no set-up")


@pytest.fixture
def broken_after():
    yield
    raise RuntimeError("no tear-down")


def test_before(broken_before):
    pass


def test_after(broken_after):
    pass


def test_both(broken_after):
    raise AssertionError("failed itself, too")


def test_unknown(there_is_no_such_fixture):
    pass
