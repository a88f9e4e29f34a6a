import ctypes


def test_before():
    pass


def test_reads_address_zero():
    print("printed before the crash")
    ctypes.string_at(0)


def test_after():
    pass
