"""A call into C that keeps the interpreter's lock: no thread of this process can do anything about it."""

import ctypes

import pytest


@pytest.mark.timeout(2)
def test_pauses_with_the_lock_held():
    ctypes.PyDLL(None).pause()
