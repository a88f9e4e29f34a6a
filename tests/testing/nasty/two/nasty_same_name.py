def test_same():
    raise AssertionError("of two")
