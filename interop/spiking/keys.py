"""A state_dict of inferno's, checked: every key used once, copies compared, shapes and types right; or one message."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from interop.problems import Problems
from interop.spiking.parts import copies

_CELL = re.compile(r"cells_\.([^.]+)\.([^.]+)\.")
EXTRA = "_extra_state"


def as_numpy(value: Any) -> np.ndarray:
    """A torch tensor, or anything array-like, as a NumPy array."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


class Keys:
    """The tensors of a state_dict, taken one by one; :meth:`close` raises what was wrong with them.

    The second and third copies that layers save of their parts, for each cell, are compared with the first and left
    out; ``notes`` say so. Where the first is missing, a copy stands for it.
    """

    def __init__(self, state_dict: Mapping[str, Any]):
        self.notes: list[str] = []
        self.problems = Problems()
        self._state = self._without_copies(state_dict)

    def _without_copies(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        cells = dict.fromkeys(match.groups() for match in map(_CELL.match, state_dict) if match)
        state, left_out = dict(state_dict), 0
        for copy, own in copies(cells).items():
            for key in [key for key in state if key.startswith(copy)]:
                first, value = own + key.removeprefix(copy), state.pop(key)
                left_out += not key.endswith(EXTRA)
                if not _equal(state.setdefault(first, value), value):
                    self.problems.ambiguous.append(f"{key} differs from {first}, of which it is a copy")
        if left_out:
            listed = ", ".join(f"{connection} to {neuron}" for connection, neuron in cells)
            self.notes.append(f"{left_out} tensors are copies, equal to the first, for the cells {listed}")
        return state

    def shape(self, key: str) -> tuple[int, ...] | None:
        """The shape of a tensor, if it is there."""
        return tuple(self._state[key].shape) if key in self._state else None

    def take(self, key: str, shape: tuple[int, ...], dtype: type, *, optional: bool = False) -> np.ndarray:
        """Takes a tensor, which must have this shape and type; zeros where it is wrong, as :meth:`close` will raise."""
        value = self._state.pop(key, None)
        if value is None:
            if not optional:
                self.problems.missing.append(key)
            return np.zeros(shape, dtype)
        array = as_numpy(value)
        extra = array.ndim - len(shape)
        if extra > 0 and array.shape == (1,) * extra + tuple(shape):
            # a Biclique that combines by a word leaves an axis of 1 in front of its neurons' state
            array = array.reshape(shape)
        if array.shape != tuple(shape):
            self.problems.misshapen.append(f"{key} is {list(array.shape)}, and must be {list(shape)}")
        elif array.dtype != dtype:
            self.problems.misshapen.append(f"{key} is {array.dtype}, and must be {np.dtype(dtype)}")
        else:
            return array.copy()
        return np.zeros(shape, dtype)

    def pointer(self, prefix: str, name: str, record: int) -> int:
        """Takes a ring's pointer, the slot that would be written next, from its module's extra state."""
        key = f"{prefix}{EXTRA}"
        extra = dict(self._state.get(key, {}))
        pointer = extra.pop(name, None)
        self._state[key] = extra
        if pointer is None:
            self.problems.missing.append(f"{key}[{name!r}]")
            return 0
        if not isinstance(pointer, int) or not 0 <= pointer < record:
            self.problems.damaged.append(f"{key}[{name!r}] is {pointer!r}, no slot of {record}")
            return 0
        return pointer

    def close(self) -> None:
        """Raises WeightsError if a key was missing, wrong, or is left over."""
        left = (key for key, value in self._state.items() if not (key.endswith(EXTRA) and not value))
        self.problems.unexpected.extend(left)
        self.problems.raise_any()


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Mapping) or isinstance(second, Mapping):
        return first == second
    a, b = as_numpy(first), as_numpy(second)
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def batch_of(keys: Keys, rings: Iterable[str], states: Iterable[str]) -> int | None:
    """The batch of the first ring ``[r b ...]`` or neuron's state ``[b ...]`` that is there."""
    for axis, names in ((1, rings), (0, states)):
        for shape in map(keys.shape, names):
            if shape is not None and len(shape) > axis:
                return shape[axis]
    return None
