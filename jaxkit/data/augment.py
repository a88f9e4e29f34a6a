"""On the device, inside jit: random crop, flip and rotation of raw pixels, then normalisation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Num, UInt8, UInt32

from jaxkit.data import DataError
from jaxkit.schema.data import Augment, Data, Normalize

AUGMENTATIONS = {
    "none": Augment(),
    "cifar": Augment(crop_padding=4, flip=0.5, rotation=15),
    "cifar_plain": Augment(crop_padding=4, flip=0.5),
    "tiny_imagenet": Augment(flip=0.5, rotation=20),
}
NORMALIZATIONS = {
    "none": None,
    "cifar100": Normalize(
        mean=(0.5070751592, 0.4865488733, 0.4409178434), std=(0.2673342859, 0.2564384629, 0.2761504713)
    ),
    "cifar100_repdistiller": Normalize(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
    "tiny_imagenet": Normalize(mean=(0.4802, 0.4481, 0.3975), std=(0.2302, 0.2265, 0.2262)),
    "imagenet": Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
# Pillow's fixed-point coefficients need float64, so they come from a table; on 224 pixels the steps of an angle
# drawn from ± 20 degrees move no pixel by more than 0.03.
ANGLES = 4096

Pixels = tuple[Int[Array, "h w"], Int[Array, "h w"]]


def augment(keys: UInt32[Array, "b 2"], images: Num[Array, "b h w c"], config: Augment) -> Num[Array, "b h w c"]:
    """Crops, then flips, then rotates each image by draws of its own key; zeros outside, the dtype kept.

    - crop: ``crop_padding`` zeros on each side, then a window of the image's size, every position equally likely
    - flip: left to right with probability ``flip``
    - rotation: by an angle uniform in ± ``rotation`` degrees, see :func:`rotate`

    ``keys`` are threefry key data, one key an example: no draw depends on the other examples or on the device.
    Source: torchvision's RandomCrop(size, padding), RandomHorizontalFlip and RandomRotation, as in TfKD's data loaders.
    """
    if config == Augment():
        return images
    table = rotation_table(np.linspace(-1, 1, 2 * ANGLES + 1)[1::2] * config.rotation, *images.shape[1:3])

    def one(key: UInt32[Array, " 2"], image: Num[Array, "h w c"]) -> Num[Array, "h w c"]:
        key_crop, key_flip, key_rotate = jax.random.split(jax.random.wrap_key_data(key, impl="threefry2x32"), 3)
        # Each change maps where a pixel lands to where it comes from: the last one is undone first, in one gather.
        rows, columns = jnp.indices(image.shape[:2], dtype=jnp.int32)
        inside = jnp.ones_like(rows, dtype=bool)
        if config.rotation:
            coefficients = jnp.asarray(table)[jax.random.randint(key_rotate, (), 0, ANGLES)]
            rows, columns = _rotated(rows, columns, coefficients)
            inside &= _within(rows, columns)
        if config.flip:
            columns = jnp.where(jax.random.bernoulli(key_flip, config.flip), columns.shape[1] - 1 - columns, columns)
        if config.crop_padding:
            down, right = jax.random.randint(key_crop, (2,), -config.crop_padding, config.crop_padding + 1)
            rows, columns = rows + down, columns + right
            inside &= _within(rows, columns)
        return _gather(image, rows, columns, inside)

    return jax.vmap(one)(keys, images)


def rotate(image: Num[Array, "h w c"], coefficients: Int32[Array, "6"]) -> Num[Array, "h w c"]:
    """Rotates about the centre, nearest pixel, zeros outside: pixel for pixel Pillow's ``Image.rotate(degrees)``.

    ``coefficients`` is a row of :func:`rotation_table`; degrees are counted counterclockwise.
    """
    rows, columns = _rotated(*jnp.indices(image.shape[:2], dtype=jnp.int32), coefficients)
    return _gather(image, rows, columns, _within(rows, columns))


def rotation_table(degrees: Float[np.ndarray, " n"], height: int, width: int) -> Int32[np.ndarray, "n 6"]:
    """Computes Pillow's 16.16 fixed-point map from a rotated image's pixels back to the image's, one row an angle.

    ``column = (a0 x + a1 y + a2) >> 16`` and ``row = (a3 x + a4 y + a5) >> 16``, at pixel centres.
    """
    angle = np.radians(degrees)
    # Right angles are exact in Pillow: it rounds sines and cosines to 15 places.
    cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    x, y = 0.5 - width / 2, 0.5 - height / 2
    rows = [cos, -sin, x * cos - y * sin + width / 2, sin, cos, x * sin + y * cos + height / 2]
    return np.floor(np.stack(rows, axis=1) * 2**16 + 0.5).astype(np.int32)


def normalize(
    images: UInt8[Array, "*b h w c"] | Float[Array, "*b h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float32[Array, "*b h w c"]:
    """Returns ``(x - mean) / std`` per channel; uint8 is divided by 255 first, floats are in [0, 1] already."""
    return (_unit(images) - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def make_augment(config: Data, image_shape: tuple[int, int, int]) -> Callable[[Array, dict], dict]:
    """Returns ``(keys [b 2], batch) -> batch`` for training: augmented, then normalised, images; the rest untouched.

    Raises :class:`DataError` if ``normalize`` has another number of channels than ``image_shape`` (h w c).
    """
    changes = AUGMENTATIONS[config.augment] if isinstance(config.augment, str) else config.augment
    preprocess = make_preprocess(config, image_shape)

    def augment_batch(keys, batch):
        return preprocess(_with_image(batch, lambda images: augment(keys, images, changes)))

    return augment_batch


def make_preprocess(config: Data, image_shape: tuple[int, int, int]) -> Callable[[dict], dict]:
    """Returns ``batch -> batch`` for evaluation: float32, normalised images; the rest untouched.

    Raises :class:`DataError` as :func:`make_augment` does.
    """
    values = NORMALIZATIONS[config.normalize] if isinstance(config.normalize, str) else config.normalize
    if values is None:
        return lambda batch: _with_image(batch, _unit)
    if len(values.mean) != image_shape[-1]:
        name = config.normalize if isinstance(config.normalize, str) else "the mean"
        raise DataError(
            f"data.normalize: {name} has {len(values.mean)} channels but the images of {config.name} have "
            f"{image_shape[-1]}; give mean and std with as many values, or none"
        )
    return lambda batch: _with_image(batch, lambda images: normalize(images, values.mean, values.std))


def _with_image(batch: dict, change: Callable[[Array], Array]) -> dict:
    """The batch with its images changed; one of tokens has none."""
    return {**batch, "image": change(batch["image"])} if "image" in batch else batch


def _unit(images: Num[Array, "*b h w c"]) -> Float32[Array, "*b h w c"]:
    scale = 255 if images.dtype == jnp.uint8 else 1
    return images.astype(jnp.float32) / scale


def _rotated(rows: Int32[Array, "h w"], columns: Int32[Array, "h w"], coefficients: Int32[Array, "6"]) -> Pixels:
    a0, a1, a2, a3, a4, a5 = coefficients
    return (a3 * columns + a4 * rows + a5) >> 16, (a0 * columns + a1 * rows + a2) >> 16


def _within(rows: Int32[Array, "h w"], columns: Int32[Array, "h w"]) -> Bool[Array, "h w"]:
    height, width = rows.shape
    return (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)


def _gather(
    image: Num[Array, "h w c"], rows: Int32[Array, "h w"], columns: Int32[Array, "h w"], inside: Bool[Array, "h w"]
) -> Num[Array, "h w c"]:
    return jnp.where(inside[..., None], image[rows, columns], 0)
