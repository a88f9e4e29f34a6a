def setup_module():
    raise RuntimeError("no set-up")


def test_first():
    pass


def test_second():
    pass
