import nasty_package


def test_has_the_version_of_its_environment():
    assert nasty_package.VERSION == 2
