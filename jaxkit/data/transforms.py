"""On the host: the bytes of an image file -> uint8 pixels of one size."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

# What Pillow raises, by fuzzing its decoders, for bytes that are no image or only half of one.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def decode(data: bytes, channels: int, size: int | None = None) -> UInt8[np.ndarray, "h w {channels}"]:
    """Decodes an image file into the pixels torchvision's ``ImageFolder`` would give, turned upright.

    The camera's orientation tag is applied, a palette is looked up, alpha is dropped, of 16 bits the high 8 are kept.
    ``channels`` 1 is luma, 3 repeats a grey image. With ``size`` (pixels) the image is then :func:`fit` to it.

    Raises one of ``UNREADABLE`` if the bytes are not one whole image.
    """
    image = upright(data)
    image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image if size is None else fit(image, size))
    return pixels[..., None] if channels == 1 else pixels


def upright(data: bytes) -> Image.Image:
    """Opens an image file, turned as the camera's orientation tag says, of 8 bits a channel; RGBA if it is transparent.

    Raises one of ``UNREADABLE`` if the bytes are not one whole image.
    """
    try:
        file = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError(f"its {len(data)} bytes are in no known image format") from None
    with file:
        # of these two Pillow has the 16 bits of a file in 32
        if file.mode == "I" and file.format not in ("PNG", "PPM"):
            raise ValueError("its pixels are integers of 32 bits, of unknown range")
        image = _eight_bits(ImageOps.exif_transpose(file))
    return image.convert("RGBA") if "transparency" in image.info else image


def on_background(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Composites an image with alpha on one colour, 0 to 255."""
    whole = Image.new("RGBA", image.size, (*color, 255))
    whole.alpha_composite(image.convert("RGBA"))
    return whole.convert("RGB")


def fit(image: Image.Image, size: int) -> Image.Image:
    """Resizes the short side to ``size`` pixels (bicubic, antialiased) and cuts the centre ``size x size``.

    Rounds as torchvision's ``Resize(size)`` followed by ``CenterCrop(size)``.
    """
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def resized(pixels: UInt8[np.ndarray, "h w 1"], size: int) -> UInt8[np.ndarray, "{size} {size} 1"]:
    """Resizes a grey image to ``size`` pixels a side (bilinear)."""
    image = Image.fromarray(pixels[..., 0]).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)[..., None]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Keeps the high byte of 16-bit grey; Pillow's own conversion would clip it at 255."""
    if image.mode == "F":
        raise ValueError("its pixels are floating point, of unknown range")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    grey = Image.fromarray((pixels >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    # one of the 65536 greys is transparent
    grey.putalpha(Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8)))
    return grey
