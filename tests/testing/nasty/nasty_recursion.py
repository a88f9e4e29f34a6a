import ctypes
import sys


def test_has_no_end():
    def down(n):
        return down(n + 1)

    down(0)


def test_overflows_the_stack_of_c():
    call = ctypes.CFUNCTYPE(ctypes.c_int)

    def down():
        return call(down)()

    sys.setrecursionlimit(10**9)
    down()
