from pathlib import Path

import pytest


def test_passes_the_second_time():
    seen = Path("flaky.seen")
    if not seen.exists():
        seen.touch()
        raise AssertionError("the first time")


def test_crashes_the_first_time():
    import os

    seen = Path("flaky_crash.seen")
    if not seen.exists():
        seen.touch()
        os.abort()


@pytest.fixture
def numeric_baseline():
    return None


def test_has_one_try_as_it_compares_numbers(numeric_baseline):
    seen = Path("flaky_numbers.seen")
    if not seen.exists():
        seen.touch()
        raise AssertionError("the first time")
