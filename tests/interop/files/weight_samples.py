"""Random tensors of every type and awkward shape, and files written by hand, right or wrong."""

import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

from interop.files import Weights, write_weights
from interop.files.dtypes import DTYPES
from interop.layout import Spec

SHAPES = [(), (3,), (2, 3), (0, 4), (2, 1, 5)]


def random_array(dtype: np.dtype, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random bytes: NaN, infinities and subnormal numbers with the rest."""
    raw = np.frombuffer(np.random.default_rng(seed).bytes(math.prod(shape) * dtype.itemsize), np.uint8)
    return (raw % 2).astype(bool).reshape(shape) if dtype.kind == "b" else raw.view(dtype).reshape(shape)


def every_type(format: str, without: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Tensors of every type but ``without``, in every shape, under names of a format."""
    separator = "/" if format == "flax" else "."
    return {
        separator.join(["params", name, f"w{number}"]): random_array(dtype, shape, number)
        for name, dtype in DTYPES.items()
        if name not in without
        for number, shape in enumerate(SHAPES)
    }


def specs_of(arrays: dict[str, np.ndarray]) -> dict[str, Spec]:
    return {name: Spec(array.shape, array.dtype) for name, array in arrays.items()}


def write(path: Path, arrays: dict[str, np.ndarray], format: str = "flax", **options) -> list[Path]:
    settings = {"metadata": {}, "max_shard_size": None, "force": False, **options}
    return write_weights(path, specs_of(arrays), arrays.items(), format=format, **settings)


def contents(weights: Weights) -> dict[str, np.ndarray]:
    return {name: weights.read(name) for name in weights.specs}


def identical(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether names, shapes, types and bytes are the same, NaN and all."""

    def signature(array):
        return array.shape, array.dtype, np.ascontiguousarray(array).tobytes()

    return {name: signature(a) for name, a in one.items()} == {name: signature(a) for name, a in other.items()}


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with any header: an object, text or bytes."""
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def tensor(offsets: tuple[int, int] = (0, 8), shape=(2,), dtype="F32", **more) -> dict:
    """A header entry of safetensors."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def zipped(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(descr: object, shape: object, data: bytes, head: bytes | None = None) -> bytes:
    """An array as NumPy stores it, whatever its head claims."""
    text = head or repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


class _Storage:
    """Stands for a storage in a handmade torch pickle."""

    def __init__(self, key: str, count: int):
        self.key, self.count = key, count


class _View:
    """A float32 tensor over a storage, as a pickle claims it."""

    def __init__(self, key: str, count: int, offset: int, shape: tuple, strides: tuple):
        self.storage, self.view = _Storage(key, count), (offset, shape, strides)

    def __reduce__(self):
        import torch

        return torch._utils._rebuild_tensor_v2, (self.storage, *self.view, False, OrderedDict())


def torch_zip(count: int, stored: int, offset: int = 0, shape: tuple = (4,), strides: tuple = (1,)) -> bytes:
    """A torch file whose tensor ``w`` claims ``count`` numbers where ``stored`` are."""
    import torch

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, _Storage):
                return "storage", torch.FloatStorage, value.key, "cpu", value.count
            return None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"w": _View("0", count, offset, shape, strides)})
    return zipped([("a/data.pkl", buffer.getvalue()), ("a/version", b"3\n"), ("a/data/0", bytes(4 * stored))])
