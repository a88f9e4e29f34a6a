import pytest

pytest.skip("not on this machine", allow_module_level=True)


def test_never_seen():
    pass
