"""The dicts that torch checkpoints keep their weights in, beside the optimizer, the epoch and an average."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from interop.files.errors import FileError, listed
from jaxkit.errors import ConfigError

PLAIN = ("state_dict", "model_state_dict", "model_state", "model", "net", "module")
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
_REMEDY = "save model.state_dict() where it comes from"


def selected(
    loaded: Any, container: str | None, path: Path, is_tensor: Callable[[Any], bool]
) -> tuple[dict[str, Any], list[str]]:
    """Finds the dict of tensors in what a torch file holds.

    Args:
        loaded: the content: a dict of tensors, or dicts that hold one under a name of :data:`PLAIN` or, failing that,
            of :data:`AVERAGED`.
        container: the name to take instead.
        path: of the file, for messages.
        is_tensor: tells tensors from the rest.

    Returns:
        the tensors by key, and notes on what was taken and what was left out.

    Raises:
        ConfigError: if there is no such container; those there are are named.
        FileError: if there are no tensors, or a key is no text.
    """
    if not isinstance(loaded, Mapping):
        raise FileError(path, f"it holds a {type(loaded).__name__}, not a dict of tensors", remedy=_REMEDY)
    notes: list[str] = []
    found = loaded
    if container is not None:
        if not isinstance(found.get(container), Mapping):
            names = listed(_said(name) for name, value in found.items() if isinstance(value, Mapping))
            raise ConfigError(f"{path}: no container {container!r} is there; the dicts in it are: {names or 'none'}")
        notes.append(_taken(found, container))
        found = found[container]
    entered = {id(found)}
    while (name := _nested(found, is_tensor)) is not None:
        notes.append(_taken(found, name))
        found = found[name]
        if id(found) in entered:
            raise FileError(path, "the dict holds itself", name, _REMEDY)
        entered.add(id(found))
    for key in found:
        if not isinstance(key, str):
            raise FileError(path, "the key of a tensor must be text", _said(key), _REMEDY)
    tensors = {key: value for key, value in found.items() if is_tensor(value)}
    if not tensors:
        raise FileError(path, f"no tensors are in it, but {listed(map(_said, found)) or 'nothing'}", remedy=_REMEDY)
    others = [f"{key} ({type(value).__name__})" for key, value in found.items() if key not in tensors]
    return tensors, notes + ([f"left out, being no tensors: {listed(others)}"] if others else [])


def _nested(found: Mapping[Any, Any], is_tensor: Callable[[Any], bool]) -> str | None:
    holders = [name for name in (*PLAIN, *AVERAGED) if _holds(found.get(name), is_tensor)]
    return holders[0] if holders else None


def _holds(value: Any, is_tensor: Callable[[Any], bool]) -> bool:
    """Whether a tensor is in dicts in dicts. A pickle may have one dict in many, or in itself: each is seen once."""
    ahead, seen = [value], set()
    while ahead:
        node = ahead.pop()
        if isinstance(node, Mapping) and id(node) not in seen:
            seen.add(id(node))
            if any(map(is_tensor, node.values())):
                return True
            ahead += node.values()
    return False


def _taken(found: Mapping[Any, Any], name: str) -> str:
    return f"took '{name}' of {listed(map(_said, found))}"


def _said(key: Any) -> str:
    """A key for a message: of what is neither text nor a whole number, and may be of any depth, the type."""
    return str(key) if isinstance(key, str | int) else f"a {type(key).__name__}"
