import os


def test_prints_ten_megabytes_and_fails():
    print("the first line")
    for _ in range(10):
        print("x" * 2**20)
    os.system("echo from a process of its own")
    raise AssertionError("the last line")
