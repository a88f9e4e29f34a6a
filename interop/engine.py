"""Renames weights between torch and Flax after a table, in either direction, and refuses what does not fit.

A table has rows of three columns: torch module, flax module, layer kind. ``{name}`` in a module stands for a number,
the same in both columns. The way back is derived from the same rows. NumPy in, NumPy out; types stay as they are and
values keep every bit.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from einops import EinopsError, rearrange

from interop.layers import Dropped, Kind
from jaxkit.errors import UserError

_NUMBER = re.compile(r"\d+")

Table = tuple[tuple[str, str, Kind], ...]


class WeightsError(UserError):
    """The weights do not fit the model; one message lists every key that is to blame.

    ``missing`` and ``unexpected`` are keys of the weights given, ``ambiguous`` and ``misshapen`` are sentences.
    """

    def __init__(self, missing: list[str], unexpected: list[str], ambiguous: list[str], misshapen: list[str]):
        self.missing, self.unexpected, self.ambiguous, self.misshapen = missing, unexpected, ambiguous, misshapen
        lines = (
            [f"missing     {line}" for line in _with_nearest(missing, unexpected, "given")]
            + [f"unexpected  {line}" for line in _with_nearest(unexpected, missing, "missing")]
            + [f"ambiguous   {sentence}" for sentence in ambiguous]
            + [f"misshapen   {sentence}" for sentence in misshapen]
        )
        super().__init__("the weights do not fit the model:\n  " + "\n  ".join(lines))


def to_flax(state_dict: Mapping[str, np.ndarray], table: Table, like: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a torch state dict into Flax variables, nested dicts ``{params: ..., batch_stats: ...}``.

    ``like`` has the variables' structure and shapes: arrays, or what ``jax.eval_shape`` of the model's ``init`` gives.
    Leaves that the table drops may be given or not.

    Raises WeightsError unless every other key is used exactly once and every leaf of ``like`` is filled.
    """
    leaves, shapes = _leaves(table), {path: tuple(leaf.shape) for path, leaf in flatten(like).items()}
    dropped = [pattern for pattern, _ in _dropped(table)]
    given = {key: array for key, array in state_dict.items() if not any(_match(pattern, key) for pattern in dropped)}

    routes, unexpected, ambiguous = _route(given, leaves)
    unexpected += [key for key, (path, _) in routes.items() if path not in shapes]
    filled, misshapen = {}, []
    for key, (path, layout) in routes.items():
        if path in shapes:
            filled[path] = _relayout(given[key], layout, shapes[path])
            if filled[path] is None:
                misshapen.append(f"{key} {_dimensions(given[key])} for {path} {list(shapes[path])} by '{layout}'")

    back = _reverse(leaves)
    missing = [next(_renamed(path, back), (path, ""))[0] for path in shapes if path not in filled]
    if missing or unexpected or ambiguous or misshapen:
        raise WeightsError(missing, unexpected, ambiguous, misshapen)
    return unflatten({path: filled[path] for path in shapes})


def to_torch(variables: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """Turns Flax variables into a torch state dict; what the table drops gets the refill stated there.

    Raises WeightsError unless every leaf is used exactly once and has the axes of its layout.
    """
    given = flatten(variables)
    routes, unexpected, ambiguous = _route(given, _reverse(_leaves(table)))
    filled = {key: _relayout(given[path], layout, None) for path, (key, layout) in routes.items()}
    misshapen = [
        f"{path} {_dimensions(given[path])} for {key} by '{layout}'"
        for path, (key, layout) in routes.items()
        if filled[key] is None
    ]
    if unexpected or ambiguous or misshapen:
        raise WeightsError([], unexpected, ambiguous, misshapen)

    modules = dict.fromkeys(key.rpartition(".")[0] for key in filled)
    for pattern, refill in _dropped(table):
        name = pattern.rpartition(".")[2]
        filled |= {f"{module}.{name}": refill.copy() for module in modules if _match(pattern, f"{module}.{name}")}
    return filled


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Joins the keys of nested mappings: ``{"params": {"head": {"bias": b}}}`` becomes ``{"params/head/bias": b}``."""
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes :func:`flatten`."""
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


class _Leaf(NamedTuple):
    """The patterns of a leaf's key on both sides, and its layout, einops from source to target."""

    source: str
    target: str
    layout: str


def _leaves(table: Table) -> list[_Leaf]:
    return [
        _Leaf(f"{torch}.{name}", place[0].format(flax), place[1])
        for torch, flax, kind in table
        for name, place in kind.items()
        if not isinstance(place, Dropped)
    ]


def _reverse(leaves: list[_Leaf]) -> list[_Leaf]:
    return [_Leaf(leaf.target, leaf.source, " -> ".join(leaf.layout.split(" -> ")[::-1])) for leaf in leaves]


def _dropped(table: Table) -> list[tuple[str, np.ndarray]]:
    return [
        (f"{torch}.{name}", place.refill)
        for torch, _, kind in table
        for name, place in kind.items()
        if isinstance(place, Dropped)
    ]


def _route(keys: Iterable[str], leaves: list[_Leaf]) -> tuple[dict[str, tuple[str, str]], list[str], list[str]]:
    """Finds for each key its target and layout; lists the keys that have none, and those that quarrel over one."""
    routes, origins, unexpected, ambiguous = {}, {}, [], []
    for key in keys:
        matches = list(_renamed(key, leaves))
        if not matches:
            unexpected.append(key)
            continue
        if len(matches) > 1:
            ambiguous.append(f"{key} has several rows: it becomes {' and '.join(target for target, _ in matches)}")
        routes[key] = matches[0]
        origin = origins.setdefault(matches[0][0], key)
        if origin != key:
            ambiguous.append(f"{key} and {origin} both become {matches[0][0]}")
    return routes, unexpected, ambiguous


def _renamed(key: str, leaves: list[_Leaf]) -> Iterator[tuple[str, str]]:
    for leaf in leaves:
        if found := _match(leaf.source, key):
            yield leaf.target.format(**found.groupdict()), leaf.layout


def _match(pattern: str, key: str) -> re.Match | None:
    return _regex(pattern).fullmatch(key)


@cache
def _regex(pattern: str) -> re.Pattern:
    literals = re.split(r"\{(\w+)\}", pattern)
    literals[::2] = map(re.escape, literals[::2])
    literals[1::2] = [rf"(?P<{name}>\d+)" for name in literals[1::2]]
    return re.compile("".join(literals))


def _relayout(array: Any, layout: str, shape: tuple[int, ...] | None) -> np.ndarray | None:
    """Copies the array into the layout, contiguous; None where it cannot have that shape (None: any)."""
    axes = layout.split(" -> ")[1].split()
    merged = "(" in layout.split(" -> ")[0]
    sizes = dict(zip(axes, shape, strict=False)) if merged and shape is not None else {}
    try:
        moved = rearrange(np.asarray(array), layout, **sizes)
    except EinopsError:
        return None
    return np.array(moved, order="C") if shape in (None, moved.shape) else None


def _dimensions(array: Any) -> str:
    return str(list(np.shape(array)))


def _with_nearest(keys: list[str], others: list[str], word: str) -> Iterator[str]:
    """Puts after each key the most similar of the others; numbers are set apart, as layers repeat by the hundred."""
    kinds = {}
    for other in others:
        kinds.setdefault(_NUMBER.sub("#", other), {})[tuple(_NUMBER.findall(other))] = other
    nearest = cache(lambda kind: get_close_matches(kind, kinds))
    for key in keys:
        numbers = tuple(_NUMBER.findall(key))
        alike = [kinds[kind] for kind in nearest(_NUMBER.sub("#", key))]
        hints = [same[numbers] for same in alike if numbers in same] or [next(iter(same.values())) for same in alike]
        yield f"{key} ({word}: {hints[0]})" if hints else key
