import a_module_that_nobody_has  # noqa: F401
import pytest


@pytest.mark.model("org/never_imported")
def test_never_seen():
    pass
