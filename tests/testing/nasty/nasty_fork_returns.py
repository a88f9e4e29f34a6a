import os


def test_both_processes_return_from():
    os.fork()


def test_after():
    pass
