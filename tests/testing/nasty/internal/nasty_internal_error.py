def test_before():
    pass


def test_breaks_the_reporting():
    pass


def test_after():
    pass


def test_breaks_the_plugin():
    pass


def test_at_the_end():
    pass
