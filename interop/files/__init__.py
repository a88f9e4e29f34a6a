"""Weight files of every kind, both ways: recognised by content, checked before use, one tensor in memory at a time.

with open_weights("model.safetensors.index.json") as weights:
    write_weights("model.msgpack", weights.specs, ((name, weights.read(name)) for name in weights.specs), ...)
"""

from functools import partial
from pathlib import Path

from interop.files import archive, folders, msgpack, npz, safetensors, shards, torch_files
from interop.files.errors import FileError, missing
from interop.files.weights import Entry, Format, Weights
from interop.files.write import KINDS, write_weights
from jaxkit.errors import ConfigError

__all__ = ["KINDS", "Entry", "FileError", "Format", "Weights", "open_weights", "write_weights"]

# what users hand in that is none of it, with what to do instead
_FOREIGN = {
    b"\x89HDF": ("an HDF5 file, as Keras writes", "save its weights as .npz or .safetensors"),
    b"\x1f\x8b": ("compressed by gzip", "unpack it first"),
    b"BZh": ("compressed by bzip2", "unpack it first"),
    b"\xfd7zXZ": ("compressed by xz", "unpack it first"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it first"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file", "run git lfs pull"),
    b"<": ("a web page, not weights", "download it again, logged in if need be"),
}


def open_weights(path: str | Path, container: str | None = None) -> Weights:
    """Opens a weight file or folder; only names, shapes and types are read.

    Files: safetensors, torch (.pt, .pth, .bin, .tar), Flax msgpack, NumPy .npz, and indices of shards. Folders: those
    of ``save_pretrained``, Orbax checkpoints, workdirs of training runs and their ``checkpoints/<step>``.

    Args:
        path: what to open.
        container: the name of the dict to take, of a file or checkpoint that has several (``model_ema``, ``params``);
            by default the plain weights of a torch file, and what a training run evaluates.

    Raises:
        FileError: if it is damaged, unsafe or unknown.
        ConfigError: if it does not exist, or has no such container.
    """
    path = Path(path)
    if not path.exists():
        raise missing(path)
    try:
        if path.is_dir():
            return folders.open_folder(path, container, partial(_open_file, container=container))
        return _open_file(path, container)
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from error


def _open_file(path: Path, container: str | None) -> Weights:
    if path.name.endswith(shards.SUFFIX):
        return shards.open_index(path, partial(_open_file, container=container))
    with path.open("rb") as file:
        head = file.read(512)
        zipped = archive.begins(head)
        # A safetensors file begins with its header's length, whose bytes may be those that begin a pickle.
        pickled = head[:1] == b"\x80" and len(head) > 1 and not safetensors.looks_like(head)
        torch = pickled or (zipped and not archive.is_npz(file, path))
    if torch:
        return torch_files.open_file(path, container)
    if container is not None:
        raise ConfigError(f"{path} has no containers; leave {container!r} out")
    if zipped:
        return npz.open_file(path)
    if safetensors.looks_like(head) or path.suffix == ".safetensors":
        return safetensors.open_file(path)
    if not head:
        raise FileError(path, "it is empty")
    for start, (description, remedy) in _FOREIGN.items():
        if head.startswith(start):
            raise FileError(path, f"it is {description}", remedy=remedy)
    if head[257:262] == b"ustar":
        raise FileError(path, "it is a tar archive, as torch wrote before 0.2", remedy="unpack it, or save it anew")
    if msgpack.looks_like(head):
        return msgpack.open_file(path)
    raise FileError(path, "it is no weight file of a known kind: safetensors, torch, msgpack, npz", remedy="name one")
