import pytest


@pytest.mark.timeout("5")
def test_has_seconds_in_words():
    pass


@pytest.mark.timeout("soon")
def test_has_no_seconds():
    pass


@pytest.mark.level(n=2)
def test_has_a_level_by_name():
    raise AssertionError("not run below level 2")
