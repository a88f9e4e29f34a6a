"""What is in a weight file, in what two of them differ, and what a table does with a key: text for the terminal."""

import math
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from interop.architecture import architecture
from interop.engine import Move, flatten, plan_to_torch
from interop.files import open_weights
from interop.files.errors import shown
from interop.layout import spec
from interop.rules import exceptions, match, written
from jaxkit.errors import ConfigError


def inspect(path: str | Path, container: str | None = None) -> Iterator[str]:
    """Lists names, shapes, types and bytes of a weight file of either framework. Reads no tensor."""
    with open_weights(Path(path), container) as weights:
        yield f"{path}: {weights.format} layouts, {len(weights.specs)} tensors"
        yield from (f"  {note}" for note in weights.notes)
        yield from (f"  {shown(key)}: {shown(text[:100])}" for key, text in weights.metadata.items())
        width = max(map(len, weights.specs), default=0)
        total = 0
        for name, spec in weights.specs.items():
            size = math.prod(spec.shape) * spec.dtype.itemsize
            total += size
            yield f"{name:<{width}}  {spec.dtype!s:<10} {list(spec.shape)!s:<24} {size:>14,}"
        yield f"{sum(math.prod(spec.shape) for spec in weights.specs.values()):,} numbers, {total:,} bytes"


def explain(model: str, key: str) -> list[str]:
    """Says what the model's table does with a torch key or a Flax path: row, layout, shapes, both ways.

    Raises ConfigError if the table has no row for it.
    """
    found = architecture(model)
    dropped, tied, filled = exceptions(found.table)
    for pattern, drop in dropped.items():
        if match(pattern, key):
            back = "nothing" if drop.refill is None else f"{drop.refill.dtype} {drop.refill.tolist()}"
            return [f"{key} is left out in Flax: {drop.reason}", f"on the way back torch gets {back}"]
    for pattern, to in tied.items():
        if there := match(pattern, key):
            return [f"{key} is {written(to, there.groupdict())} under a second name; Flax has one leaf for both"]
    for pattern, fill in filled.items():
        if match(pattern, key):
            return [f"{key} is not in torch and is filled with {fill.fill}: {fill.reason}"]
    like = {path: spec(leaf) for path, leaf in flatten(found.like({})).items()}
    moves = plan_to_torch(like, found.table).moves
    for move in moves:
        if key in (*move.torch, *move.flax):
            return _explained(move)
    nearest = get_close_matches(key, [name for move in moves for name in (*move.torch, *move.flax)], 1, 0)
    raise ConfigError(f"{model} has no {key}; did you mean {nearest[0]}?")


def diff(first: str | Path, second: str | Path) -> list[str]:
    """Lists in what two weight files of one framework differ: names, shapes, types, numbers.

    The list is empty if they hold the same tensors, byte for byte.
    """
    with open_weights(Path(first)) as a, open_weights(Path(second)) as b:
        if a.format != b.format:
            raise ConfigError(f"{first} has {a.format} layouts and {second} {b.format} ones: convert one of them first")
        lines = [f"only in {first}: {name}" for name in a.specs if name not in b.specs]
        lines += [f"only in {second}: {name}" for name in b.specs if name not in a.specs]
        for name in a.specs:
            if name in b.specs and (line := _difference(a.read(name), b.read(name))):
                lines.append(f"{name}: {line}")
    return lines


def _difference(x: np.ndarray, y: np.ndarray) -> str | None:
    """Says in what two arrays differ; None if in nothing."""
    if x.shape != y.shape:
        return f"{list(x.shape)} and {list(y.shape)}"
    types = "" if x.dtype == y.dtype else f"{x.dtype} and {y.dtype}, "
    x, y = np.ascontiguousarray(x).reshape(-1), np.ascontiguousarray(y).reshape(-1)
    places = np.not_equal(*_exact(x, y)) if types else (_bytes(x) != _bytes(y)).any(1)
    count = int(places.sum())
    if count == 0:
        return f"{types}the same numbers" if types else None
    # infinities have no difference, and those of large numbers may be none
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(np.subtract(*_exact(x[places], y[places]))).max()
    return f"{types}largest difference {gap:.3g} in {count:,} of {x.size:,}"


def _exact(*arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays in one type that holds every number of both, and their differences where they are whole."""
    kinds = {array.dtype.kind for array in arrays}
    if kinds <= set("biu"):
        # the difference of two integers of 64 bits has 65
        target = object if max(array.dtype.itemsize for array in arrays) == 8 else np.int64
    else:
        target = np.complex128 if "c" in kinds else np.float64
    return [array.astype(target) for array in arrays]


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, 1).view(np.uint8)


def _explained(move: Move) -> list[str]:
    torch, flax = move.rule.row
    doubt = move.blindness()
    return [
        f"row      {torch or '(top)'}  <->  {flax or '(top)'}",
        f"torch    {', '.join(move.torch)} {list(move.torch_shape)}",
        f"flax     {', '.join(move.flax)} {list(move.flax_shape)}",
        f"to flax  {move.rule.layout.pattern}",
        f"to torch {move.rule.layout.inverse.pattern}",
        f"shape    {'excludes every other layout' if doubt is None else f'leaves open {doubt}: only numbers can tell'}",
    ]
