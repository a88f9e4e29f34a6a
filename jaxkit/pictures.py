"""Images as files: read, put together, written."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from einops import rearrange, repeat
from jaxtyping import Float, UInt8

from jaxkit.errors import ConfigError

# Pixels: the longer side of an image in a grid, at least about.
SMALLEST = 48
# Between images.
LINE = 0.25


def read(path: Path) -> Float[np.ndarray, "h w c"]:
    """Reads an image as values in [0, 1], float32, with 1 channel if it is grey and 3 otherwise.

    Raises:
        ConfigError: if it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path}: is no image that can be read: {error}") from None
    return pixels.reshape(*pixels.shape[:2], -1).astype(np.float32) / 255


def in_channels(image: Float[np.ndarray, "h w c"], channels: int) -> Float[np.ndarray, "h w k"]:
    """Takes a grey image for one in colour, or the other way round where all its pixels are grey; no colour is lost.

    The files that samples of one channel are written to have three, all equal.
    """
    if image.shape[-1] == 1:
        return np.repeat(image, channels, -1)
    grey = channels == 1 and (image == image[..., :1]).all()
    return image[..., :1] if grey else image


def require_free(out: Path | None, folder: Path | None, force: bool) -> None:
    """Checks that nothing would be overwritten, and that a grid has the name of a PNG, before the work begins.

    Raises:
        ConfigError: naming what is there, or what the grid may be called.
    """
    if out is not None and out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: a PNG is written; call it {out.with_suffix('.png').name}")
    if force:
        return
    if out is not None and out.exists():
        raise ConfigError(f"--out {out} is there already; choose another name or give --force")
    if folder is not None and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"--folder {folder} is not empty; choose another or give --force")


def write(images: Float[np.ndarray, "n h w c"], out: Path | None, folder: Path | None) -> Iterator[Path]:
    """Writes images in [0, 1] as a grid and one by one, as asked for; says what was written."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_png(out, grid(images))
        yield out
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            save_png(folder / f"{number:05d}.png", _pixels(image))
        yield folder


def grid(images: Float[np.ndarray, "n h w c"], columns: int | None = None) -> UInt8[np.ndarray, "y x 3"]:
    """Puts images in [0, 1] side by side, near to a square or in so many ``columns``; black where there are none.

    A grey line of a pixel parts them. Small ones are enlarged by repeating pixels, to ``SMALLEST`` or almost.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    blank = np.zeros((rows * columns - len(images), *images.shape[1:]), images.dtype)
    lined = np.pad(np.concatenate([images, blank]), ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=LINE)
    sheet = rearrange(lined, "(r k) h w c -> (r h) (k w) c", r=rows)[:-1, :-1]
    times = max(1, SMALLEST // max(images.shape[1:3]))
    return repeat(_pixels(sheet), "h w c -> (h i) (w j) c", i=times, j=times)


def _pixels(image: Float[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def save_png(path: Path, pixels: UInt8[np.ndarray, "y x 3"]) -> None:
    """Writes a picture so that it is there in full or not at all."""
    from PIL import Image

    part = path.with_suffix(".part.png")
    Image.fromarray(pixels).save(part)
    part.replace(path)
