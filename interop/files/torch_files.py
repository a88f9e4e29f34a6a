"""Files of ``torch.save``. A pickle can run code, so only torch's restricted unpickler reads it, and nothing else ever.

Of a zip archive torch reads the pickle alone, onto its ``meta`` device: names, shapes, and where the bytes lie. Those
are then mapped as from any other file. Files from before torch 1.6 are one pickle, and are read whole.
"""

import io
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from interop.files import archive
from interop.files.containers import selected
from interop.files.dtypes import DTYPES, nbytes, raw, shape_problem
from interop.files.errors import FileError, shown
from interop.files.strict_json import parse, require_printable, text_map
from interop.files.weights import Entry, Weights, mapped
from interop.layout import Spec
from jaxkit.errors import ConfigError

METADATA = ".metadata.json"
_MAX_METADATA = 100_000_000
WRITABLE = frozenset(DTYPES)
# the classes that torch's pickles name; types younger than these have none, and go by untyped bytes
_STORAGES = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage",
    "uint8": "ByteStorage", "bool": "BoolStorage", "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}  # fmt: skip
_REMEDY = "where it comes from, save model.state_dict() by torch.save"
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def open_file(path: Path, container: str | None) -> Weights:
    """Opens the tensors of one container (:func:`interop.files.containers.selected`) of a torch file.

    Raises:
        FileError: if its pickle names what could run code, or does not fit the bytes beside it.
        ConfigError: if torch is missing or old, or there is no such container.
    """
    torch = require_torch()
    with ExitStack() as opened:
        file = opened.enter_context(path.open("rb"))
        zipped = archive.begins(file.read(4))
        members = archive.members(file, path) if zipped else {}
        metadata = _metadata(file, members, path)
        file.seek(0)
        loaded = _loaded(torch, file, path, "meta" if zipped else "cpu")
        tensors, notes = selected(loaded, container, path, lambda value: isinstance(value, torch.Tensor))
        for name, tensor in tensors.items():
            _require_plain(torch, tensor, path, name, without_bytes=zipped)
        if zipped:
            ends = {member.offset: member.size for member in members.values()}
            entries = {name: _placed(tensor, ends, file, path, name) for name, tensor in tensors.items()}
        else:
            entries = {name: Entry(_spec(tensor), partial(_bytes, torch, tensor)) for name, tensor in tensors.items()}
            notes.append("an old torch file: it is in memory as a whole")
        return Weights(path, "torch", entries, files=[path], metadata=metadata, notes=notes, opened=opened.pop_all())


def require_torch() -> Any:
    """Imports torch.

    Raises:
        ConfigError: if it is missing, or its restricted unpickler has known holes (CVE-2025-32434, CVE-2026-24747).
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise ConfigError("torch files need torch: pip install 'jaxkit[torch]'") from None
    if torch.__version__ < (2, 10):
        raise ConfigError(f"torch {torch.__version__} cannot read pickles safely: pip install 'torch>=2.10'")
    return torch


def _loaded(torch: Any, file: BinaryIO, path: Path, location: str) -> Any:
    try:
        return torch.load(file, map_location=location, weights_only=True)
    except Exception as error:
        reason = str(error)
        if found := _refused_globals(torch, file, reason):
            raise FileError(
                path,
                f"its pickle names {', '.join(found)}, which could run code",
                remedy="where the file comes from, save model.state_dict() alone, to .safetensors or by torch.save; "
                "numbers beside it, NumPy's too, as float() or int()",
            ) from None
        # all before and after it is how to load the file without restraint
        said = reason.rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0].partition(". ")[0]
        raise FileError(path, f"torch does not read it ({shown(said)})") from error


def _refused_globals(torch: Any, file: BinaryIO, reason: str) -> list[str]:
    """What the pickle names that is not allowed; torch lists it all in zip files, elsewhere names the first."""
    file.seek(0)
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (ValueError, RuntimeError, EOFError, LookupError, AttributeError, TypeError, pickle.UnpicklingError):
        # no archive that torch can take apart: what it said of the first one remains
        names = []
    return sorted(names) or _GLOBAL.findall(reason)[:1]


def _metadata(file: BinaryIO, members: Mapping[str, archive.Member], path: Path) -> dict[str, str]:
    found = [name for name in members if name.endswith(f"/{METADATA}")]
    if not found:
        return {}
    content = archive.read(file, members[found[0]], _MAX_METADATA, path, found[0])
    return text_map(parse(content, path, METADATA), path, METADATA)


def _require_plain(torch: Any, tensor: Any, path: Path, name: str, without_bytes: bool = False) -> None:
    """Raises FileError for what is no dense tensor with numbers; ``without_bytes``: those are looked for elsewhere."""
    require_printable(name, path)
    dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    if not (dense and plain) or tensor.is_conj() or tensor.is_neg() or (tensor.is_meta and not without_bytes):
        raise FileError(
            path, "it is no plain dense tensor", name, "save it as one (to_dense, dequantize, resolve_conj)"
        )
    if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
        raise FileError(path, f"its type {tensor.dtype} is not read", name, f"convert it to one of {', '.join(DTYPES)}")
    spec, stored = _spec(tensor), tensor.untyped_storage().nbytes()
    if problem := shape_problem(spec.shape, spec.dtype):
        raise FileError(path, problem, name)
    if nbytes(spec) > stored:
        # an expanded tensor: a file of some bytes may claim to hold any number of them
        problem = f"it repeats its numbers: its shape takes {nbytes(spec):,} bytes, {stored:,} are there"
        raise FileError(path, problem, name, "where it comes from, save tensor.clone()")


def _spec(tensor: Any) -> Spec:
    return Spec(tuple(tensor.shape), DTYPES[str(tensor.dtype).removeprefix("torch.")])


def _placed(tensor: Any, sizes: Mapping[int, int], file: BinaryIO, path: Path, name: str) -> Entry:
    """Finds the bytes of a tensor without bytes: its storage must be a member of the archive, to the byte."""
    spec, storage, strides = _spec(tensor), tensor.untyped_storage(), tensor.stride()
    if nbytes(spec) == 0:
        return Entry(spec, partial(np.empty, spec.shape, spec.dtype))
    start = getattr(storage, "_checkpoint_offset", None)
    last = tensor.storage_offset() + sum((size - 1) * step for size, step in zip(spec.shape, strides, strict=True))
    # a view that reaches outside its storage has made it grow
    if sizes.get(start) != storage.nbytes() or (last + 1) * spec.dtype.itemsize > storage.nbytes():
        raise FileError(path, "its bytes are not in the archive as its pickle says", name)
    offset = start + tensor.storage_offset() * spec.dtype.itemsize
    if tensor.is_contiguous():
        return Entry(spec, partial(mapped, path, file, offset, spec, name))
    span = Spec((last + 1 - tensor.storage_offset(),), spec.dtype)
    return Entry(spec, partial(_strided, path, file, offset, span, spec, strides, name))


def _strided(path: Path, file: BinaryIO, offset: int, span: Spec, spec: Spec, strides: tuple[int, ...], name: str):
    flat = mapped(path, file, offset, span, name)
    steps = [step * spec.dtype.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(flat, spec.shape, steps, writeable=False)


def _bytes(torch: Any, tensor: Any) -> np.ndarray:
    spec = _spec(tensor)
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat.view(spec.dtype).reshape(spec.shape)


def write_file(
    path: Path, specs: Mapping[str, Spec], arrays: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str]
) -> None:
    """Writes what ``torch.load`` reads as a dict of tensors; the pickle from ``specs``, then each array as it comes.

    Raises:
        ConfigError: if torch is missing: the pickle names its classes.
    """
    with path.open("xb") as file, archive.Writer(file) as writer:
        for name, content in (
            ("data.pkl", _pickled(specs)),
            ("byteorder", b"little"),
            ("version", b"3\n"),
            (METADATA, json.dumps(dict(metadata)).encode()),
        ):
            writer.add(f"archive/{name}", [content], len(content))
        numbers = iter(range(len(specs)))
        for _, array in arrays:
            writer.add(f"archive/data/{next(numbers)}", [raw(array)], array.nbytes)
            del array


class _Storage:
    """Stands in a pickle for the bytes of a tensor, which lie beside it under its number."""

    def __init__(self, number: int, spec: Spec):
        self.number, self.spec = number, spec


class _Tensor:
    """Pickles as the call that rebuilds a contiguous tensor."""

    def __init__(self, number: int, spec: Spec, torch: Any):
        self.storage, self.torch = _Storage(number, spec), torch

    def __reduce__(self) -> tuple:
        (shape, dtype), torch = self.storage.spec, self.torch
        strides = tuple(int(np.prod([max(1, size) for size in shape[axis + 1 :]])) for axis in range(len(shape)))
        arguments = (self.storage, 0, shape, strides, False, OrderedDict())
        if str(dtype) in _STORAGES:
            return torch._utils._rebuild_tensor_v2, arguments
        return torch._utils._rebuild_tensor_v3, (*arguments, getattr(torch, str(dtype)))


def _pickled(specs: Mapping[str, Spec]) -> bytes:
    torch = require_torch()
    tensors = {name: _Tensor(number, spec, torch) for number, (name, spec) in enumerate(specs.items())}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> tuple | None:
            if not isinstance(value, _Storage):
                return None
            typed = _STORAGES.get(str(value.spec.dtype))
            count = nbytes(value.spec) // (value.spec.dtype.itemsize if typed else 1)
            return "storage", getattr(torch, typed or "UntypedStorage"), str(value.number), "cpu", count

    buffer = io.BytesIO()
    # the protocol of torch.save, which is what its restricted unpickler knows
    Pickler(buffer, protocol=2).dump(tensors)
    return buffer.getvalue()
