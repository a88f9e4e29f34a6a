import os


def test_ends_the_process_as_if_all_were_well():
    os._exit(0)


def test_after():
    pass
