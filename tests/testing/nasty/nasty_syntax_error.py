exec("def broken(:")


def test_never_seen():
    pass
