"""The texts around a new word: those of Gal et al., as diffusers' textual_inversion.py has them."""

from jaxkit.errors import ConfigError

PLACE = "{}"
"""Where the word goes."""

OBJECT = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)
"""Of a thing."""

STYLE_ORIGINAL = (
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dirty painting in the style of {}",
    "a dark painting in the style of {}",
    "a picture in the style of {}",
    "a cool painting in the style of {}",
    "a close-up painting in the style of {}",
    "a bright painting in the style of {}",
    "a cropped painting in the style of {}",
    "a good painting in the style of {}",
    "a close-up painting in the style of {}",
    "a rendition in the style of {}",
    "a nice painting in the style of {}",
    "a small painting in the style of {}",
    "a weird painting in the style of {}",
    "a large painting in the style of {}",
)
"""Of a style, for parity: two of them are there twice, and are drawn twice as often."""

STYLE = tuple(dict.fromkeys(STYLE_ORIGINAL))
"""Of a style, each once."""


def filled(template: str, placeholder: str) -> str:
    """Puts the word in each ``{}`` of a text; one that has the word itself need not have any.

    Nothing else of the text is read as a format. Raises ConfigError for a text with neither.
    """
    text = template.replace(PLACE, placeholder)
    if placeholder not in text:
        raise ConfigError(f"{template!r} has no place for {placeholder}: write {{}} or {placeholder} in it")
    return text
