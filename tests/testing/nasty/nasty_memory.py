def test_wants_more_than_there_is():
    bytearray(1 << 60)
