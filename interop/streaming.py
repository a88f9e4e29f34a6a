"""The tensors of a planned conversion, one at a time, in the order they are written."""

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import numpy as np

from interop.engine import Move, Plan
from interop.layout import Spec
from interop.problems import Problems, WeightsError

# Above this a tensor is not converted ahead while the one before it is written: memory holds one large one at a time.
_AHEAD = 64 << 20


def torch_specs(plan: Plan, specs: Mapping[str, Any], restored: Mapping[str, np.ndarray] | None = None):
    """The tensors of a torch file, in the order they are written."""
    planned = {
        key: Spec(move.torch_shape, np.dtype(specs[move.flax[0]].dtype)) for move in plan.moves for key in move.torch
    }
    planned |= {key: Spec(a.shape, a.dtype) for key, a in (plan.refills | dict(restored or {})).items()}
    return planned | {alias: planned[key] for alias, key in plan.tied.items()}


def torch_arrays(plan: Plan, read: Callable[[str], np.ndarray], specs: Mapping[str, Spec], restored=None):
    """The tensors of a torch file, one at a time."""
    yield from moved(plan.moves, False, read, specs)
    yield from (plan.refills | dict(restored or {})).items()
    origin = {key: move for move in plan.moves for key in move.torch}
    for alias, key in plan.tied.items():
        move = origin[key]
        leaf = move.to_torch([read(path) for path in move.flax])[move.torch.index(key)]
        yield alias, cast_array(alias, leaf, specs[alias].dtype)


def cast_array(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in a type; itself if it is of that type.

    Raises WeightsError for numbers that are too large for the type.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    lost = int(np.isinf(cast).sum()) - int(np.isinf(array).sum())
    if lost:
        raise WeightsError(Problems(narrowed=[f"{name} holds {lost} numbers too large for {dtype}"]))
    return cast


def moved(
    moves: list[Move], to_flax: bool, read: Callable[[str], np.ndarray], specs: Mapping[str, Spec]
) -> Iterator[tuple[str, np.ndarray]]:
    """Converts one move after the other; small ones a step ahead of whoever consumes them."""

    def converted(move):
        sources, targets = (move.torch, move.flax) if to_flax else (move.flax, move.torch)
        apply = move.to_flax if to_flax else move.to_torch
        arrays = apply([read(name) for name in sources])
        return [(name, cast_array(name, a, specs[name].dtype)) for name, a in zip(targets, arrays, strict=True)]

    def size(move):
        names = move.flax if to_flax else move.torch
        return sum(math.prod(specs[name].shape) * specs[name].dtype.itemsize for name in names)

    with ThreadPoolExecutor(1) as ahead:
        waiting = None
        for move, upcoming in zip_longest(moves, moves[1:]):
            pairs = waiting.result() if waiting else converted(move)
            small = upcoming is not None and size(move) + size(upcoming) < _AHEAD
            waiting = ahead.submit(converted, upcoming) if small else None
            yield from pairs
