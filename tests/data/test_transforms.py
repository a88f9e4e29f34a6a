import io

import numpy as np
import pytest
from PIL import Image

from jaxkit.data.transforms import UNREADABLE, decode, fit


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(*shape, high=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, high, shape, dtype)


def test_a_colour_png_decodes_to_its_own_pixels():
    pixels = noise(7, 5, 3)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels)), 3), pixels)


def test_grey_is_repeated_over_three_channels_and_kept_as_one():
    pixels = noise(7, 5)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels)), 3), np.stack([pixels] * 3, axis=-1))
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels)), 1), pixels[..., None])


def test_sixteen_bit_grey_keeps_its_high_byte():
    pixels = noise(7, 5, high=2**16, dtype=np.uint16)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels)), 1)[..., 0], pixels >> 8)


def test_alpha_is_dropped_and_colour_kept():
    pixels = noise(7, 5, 4)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels)), 3), pixels[..., :3])


@pytest.mark.parametrize("transparency", [None, bytes([0, 128, 255])])
def test_a_palette_is_looked_up_with_and_without_transparency(transparency):
    palette = [255, 0, 0, 0, 255, 0, 0, 0, 255]
    indices = noise(7, 5, high=3)
    image = Image.fromarray(indices)
    image.putpalette(palette)
    options = {} if transparency is None else {"transparency": transparency}
    expected = np.array(palette, np.uint8).reshape(3, 3)[indices]
    np.testing.assert_array_equal(decode(encoded(image, **options), 3), expected)


def test_a_bilevel_image_becomes_black_and_white():
    pixels = noise(7, 5, high=2).astype(bool)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels)), 1)[..., 0], pixels * np.uint8(255))


def test_a_cmyk_jpeg_decodes_to_three_channels():
    data = encoded(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "JPEG")
    # Red ink values survive JPEG only to within its quantisation.
    np.testing.assert_allclose(decode(data, 3), np.broadcast_to([255, 0, 0], (4, 6, 3)), atol=3)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_the_orientation_tag_is_applied(orientation, turns):
    pixels = noise(7, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(Image.fromarray(pixels), exif=exif), 3)
    np.testing.assert_array_equal(decoded, np.rot90(pixels, turns))


def test_pixels_of_unknown_range_are_refused():
    with pytest.raises(ValueError, match="floating point"):
        decode(encoded(Image.fromarray(noise(4, 4).astype(np.float32)), "TIFF"), 1)
    for value in (200, 2**20):
        with pytest.raises(ValueError, match="integers of 32 bits, of unknown range"):
            decode(encoded(Image.fromarray(np.full((4, 4), value, np.int32)), "TIFF"), 1)


@pytest.mark.parametrize(("width", "height", "box"), [(30, 20, (8, 0)), (20, 30, (0, 8)), (31, 20, (8, 0))])
def test_the_short_side_is_resized_and_the_centre_cut_out(width, height, box):
    image = Image.fromarray(noise(height, width, 3))
    scaled = image.resize((int(40 * width / min(width, height)), int(40 * height / min(width, height))), 3)
    left, top = round((scaled.width - 40) / 2), round((scaled.height - 40) / 2)
    expected = np.asarray(scaled)[top : top + 40, left : left + 40]
    np.testing.assert_array_equal(np.asarray(fit(image, 40)), expected)
    assert abs(left - 10 * (box[0] > 0)) <= 1
    assert abs(top - 10 * (box[1] > 0)) <= 1


def test_shrinking_averages_instead_of_picking_pixels():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    # Away from the border an antialiased image of thin stripes is even grey; picked pixels would be 0 or 255.
    small = np.asarray(fit(Image.fromarray(stripes), 8))[:, 1:-1].astype(int)
    assert np.abs(small - 127.5).max() < 8


def test_any_image_becomes_a_square_of_the_asked_size():
    for height, width in [(1, 9), (9, 1), (3, 100), (77, 78)]:
        assert decode(encoded(Image.fromarray(noise(height, width, 3))), 3, 16).shape == (16, 16, 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP"])
def test_half_an_image_and_no_image_raise_what_unreadable_lists(form):
    data = encoded(Image.fromarray(noise(40, 40, 3)), form)
    with pytest.raises(UNREADABLE):
        decode(data[: len(data) // 2], 3)
    with pytest.raises(UNREADABLE, match="no known image format"):
        decode(b"not an image", 3)
    with pytest.raises(UNREADABLE, match="0 bytes"):
        decode(b"", 3)
