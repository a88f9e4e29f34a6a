from collections import Counter

import pytest

from jaxkit.errors import ConfigError
from jaxkit.inversion.templates import OBJECT, STYLE, STYLE_ORIGINAL, filled


def test_the_templates_are_as_many_as_the_original_s_and_each_has_one_place():
    assert (len(OBJECT), len(set(OBJECT)), len(STYLE), len(STYLE_ORIGINAL)) == (27, 27, 17, 19)
    assert {template.count("{}") for template in (*OBJECT, *STYLE)} == {1}


def test_two_styles_of_the_original_weigh_double():
    assert set(STYLE) == set(STYLE_ORIGINAL)
    assert [text for text, count in Counter(STYLE_ORIGINAL).items() if count == 2] == [
        "a cropped painting in the style of {}",
        "a close-up painting in the style of {}",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of a {}", "a photo of a <x>"),
        ("{} and {}", "<x> and <x>"),
        ("a <x> on a table", "a <x> on a table"),
        ("{0} {a[b]} {{ } {} 100%s", "{0} {a[b]} {{ } <x> 100%s"),
    ],
)
def test_only_the_empty_braces_become_the_word(text, expected):
    assert filled(text, "<x>") == expected


def test_a_word_of_braces_is_put_in_once():
    assert filled("a {}", "<{}>") == "a <{}>"


def test_a_text_without_a_place_for_the_word_is_refused():
    with pytest.raises(ConfigError, match="'a photo of a cat' has no place for <x>: write {} or <x> in it"):
        filled("a photo of a cat", "<x>")
