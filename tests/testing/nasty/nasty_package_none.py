import importlib.util


def test_outside_the_environment_there_is_no_such_package():
    assert importlib.util.find_spec("nasty_package") is None
