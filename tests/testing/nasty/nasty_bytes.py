import os

import pytest


def test_prints_what_is_no_text():
    os.write(
        1, b"\xff\xfe\x00 \x1b[31mred\x1b[0m \x1b]0;title\x07 ]]> </script><script>document.title='owned'</script>\n"
    )
    raise AssertionError("\ud800 \x00 ]]> <b>not bold</b> \x1b[31mred\x1b[0m")


@pytest.mark.parametrize("name", ["a::b", "a/b", "[x]", "ä\n€", "<i>&amp;", " "])
def test_has_odd_names(name):
    pass
