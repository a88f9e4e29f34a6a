"""Embeddings in files of ``torch.save``: dicts in dicts, texts and numbers, where weights are dicts of tensors."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from interop.files import archive, torch_files
from interop.files.errors import FileError
from interop.files.weights import Entry

PARAMETERS = "string_to_param"


class Parameters(dict):
    """Stands in for torch's ParameterDict, the one class that embeddings name: its tensors, and nothing it could do."""

    def __setstate__(self, state: Mapping[str, Any]):
        self.update(state["_parameters"])


def content(path: Path) -> Any:
    """Reads all that a torch file holds, by the restricted unpickler that weights are read by.

    Returns:
        an :class:`~interop.files.weights.Entry`; or a dict, in which and in whose ``string_to_param`` tensors are such.

    Raises:
        FileError: if its pickle names what could run code, or a tensor is no plain one.
        ConfigError: if torch is missing or old.
    """
    torch = torch_files.require_torch()
    allowed = [(Parameters, "torch.nn.modules.container.ParameterDict")]
    with path.open("rb") as file, torch.serialization.safe_globals(allowed):
        if archive.begins(file.read(4)):
            archive.members(file, path)
        file.seek(0)
        loaded = torch_files._loaded(torch, file, path, "cpu")

    def entry(name: Any, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if not isinstance(name, str):
            raise FileError(path, f"the name of a tensor is a {type(name).__name__}, no text")
        torch_files._require_plain(torch, value, path, name)
        return Entry(torch_files._spec(value), partial(torch_files._bytes, torch, value))

    if not isinstance(loaded, Mapping):
        return entry("the tensor", loaded)
    found = {name: entry(name, value) for name, value in loaded.items()}
    if isinstance(parameters := found.get(PARAMETERS), Mapping):
        found[PARAMETERS] = {name: entry(name, value) for name, value in parameters.items()}
    return found
