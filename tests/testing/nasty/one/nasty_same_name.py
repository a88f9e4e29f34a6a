def test_same():
    pass


def test_of_one():
    pass
