import atexit
import os


def test_passes_and_the_process_then_fails():
    atexit.register(os._exit, 3)
