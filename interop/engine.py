"""Renames weights between torch and Flax after a table, in either direction, and refuses what does not fit.

A table has rows of three columns: torch module, flax module, layer kind. ``{name}`` in a module stands for a number,
the same in both columns; ``[name]`` in a flax module for a leading axis that counts it. The way back is derived from
the same rows. NumPy in, NumPy out; types stay as they are and values keep every bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from interop.layers import Dropped, Filled
from interop.layout import Shape, Spec, contiguous, spec
from interop.problems import Problems, WeightsError
from interop.rules import Rule, Table, compiled, exceptions, grouped, match, origins, written


class Move(NamedTuple):
    """Torch leaves and the Flax leaves that hold the same numbers. Of stacked layers, the first layer's come first."""

    torch: tuple[str, ...]
    flax: tuple[str, ...]
    rule: Rule
    sizes: dict[str, int]
    """Of the elementary axes of the layout."""

    def to_flax(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Maps the torch leaves to the Flax leaves."""
        several, layers = len(self.rule.torch), []
        for i in range(0, len(arrays), several):
            array = arrays[i] if several == 1 else np.stack(arrays[i : i + several])
            moved = self.rule.layout.apply(array, self.sizes)
            layers.append([_sum(moved, terms) for terms in self.rule.sums] or [moved])
        if self.rule.stack is None:
            return [contiguous(leaf) for leaf in layers[0]]
        return [np.stack(leaves) for leaves in zip(*layers, strict=True)]

    def to_torch(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Maps the Flax leaves to the torch leaves."""
        back, filled = self.rule.layout.inverse, []
        for leaves in [arrays] if self.rule.stack is None else zip(*arrays, strict=True):
            array = leaves[0]
            if self.rule.sums:
                array = np.zeros((*self.rule.parts, *leaves[0].shape), leaves[0].dtype)
                for leaf, terms in zip(leaves, self.rule.sums, strict=True):
                    array[terms[0]] = leaf
            moved = back.apply(array, self.sizes)
            filled += [moved] if len(self.rule.torch) == 1 else list(moved)
        return [contiguous(leaf) for leaf in filled]

    @property
    def torch_shape(self) -> Shape:
        """The shape of each torch leaf."""
        return self.rule.layout.inverse.shape(self.sizes)[len(self.rule.torch) > 1 :]

    @property
    def flax_shape(self) -> Shape:
        """The shape of each Flax leaf."""
        layers = () if self.rule.stack is None else (len(self.torch) // len(self.rule.torch),)
        return layers + self.rule.layout.shape(self.sizes)[len(self.rule.parts) :]

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether the sizes are known, and the leaves have the shapes that follow from them."""
        if set(self.sizes) != {axis for group in self.rule.layout.source for axis in group}:
            return False
        expected = dict.fromkeys(self.torch, self.torch_shape) | dict.fromkeys(self.flax, self.flax_shape)
        return all(shapes[name] == shape for name, shape in expected.items() if name in shapes)

    def blindness(self) -> str | None:
        """What the shapes alone cannot tell from a wrong layout; None if nothing."""
        several = max(len(self.rule.torch), len(self.flax))
        return f"{several} leaves of one shape" if several > 1 else self.rule.layout.blindness(self.sizes)


class Plan(NamedTuple):
    """What is to be done with every leaf of either side, known from names and shapes alone."""

    moves: list[Move]
    filled: dict[str, Filled]
    """Leaves of Flax that torch has not."""
    refills: dict[str, np.ndarray]
    """Leaves of torch that Flax has not."""
    dropped: dict[str, str]
    """Leaves of torch that are left out, and why."""
    tied: dict[str, str]
    """Leaves of torch that are others under a second name."""


def to_flax(state_dict: Mapping[str, np.ndarray], table: Table, like: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a torch state dict into Flax variables, nested dicts ``{params: ..., batch_stats: ...}``.

    ``like`` has the variables' structure and shapes: arrays, or what ``jax.eval_shape`` of the model's ``init`` gives.
    Leaves that the table drops may be given or not.

    Raises WeightsError unless every other key is used exactly once and every leaf of ``like`` is filled.
    """
    plan = plan_to_flax({key: spec(array) for key, array in state_dict.items()}, table, like)
    for alias, key in plan.tied.items():
        check_tied(alias, key, state_dict[alias], state_dict[key])
    leaves = flatten(like)
    done = {path: np.full(leaves[path].shape, fill.fill, leaves[path].dtype) for path, fill in plan.filled.items()}
    for move in plan.moves:
        done |= zip(move.flax, move.to_flax([np.asarray(state_dict[key]) for key in move.torch]), strict=True)
    return _like(done, like)


def to_torch(variables: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """Turns Flax variables into a torch state dict; what the table drops gets the refill stated there.

    Raises WeightsError unless every leaf is used exactly once and has the axes of its layout.
    """
    given = flatten(variables)
    plan = plan_to_torch({path: spec(leaf) for path, leaf in given.items()}, table)
    done = {}
    for move in plan.moves:
        done |= zip(move.torch, move.to_torch([np.asarray(given[path]) for path in move.flax]), strict=True)
    done |= {key: array.copy() for key, array in plan.refills.items()}
    return done | {alias: done[key].copy() for alias, key in plan.tied.items()}


def plan_to_flax(specs: Mapping[str, Spec], table: Table, like: Mapping[str, Any]) -> Plan:
    """Plans a conversion to Flax from the torch leaves' shapes; see :func:`to_flax`. Needs no data."""
    rules, (dropped, tied, filled) = compiled(table), exceptions(table)
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(like).items()}
    fills = {path: fill for path in shapes for pattern, fill in filled.items() if match(pattern, path)}
    left_out = {key: drop.reason for key in specs for pattern, drop in dropped.items() if match(pattern, key)}
    aliases = {
        key: written(to, found.groupdict())
        for key in specs
        for pattern, to in tied.items()
        if (found := match(pattern, key))
    }
    given = {key: shape for key, shape in specs.items() if key not in left_out and key not in aliases}

    groups, claimed, problems = grouped(given, rules, lambda rule: rule.torch, lambda rule: rule.flax)
    problems.unexpected += [alias for alias, key in aliases.items() if key not in given]
    moves = []
    for rule, numbers, keys in groups:
        paths = tuple(written(pattern, numbers) for pattern in rule.flax)
        if not any(path in shapes for path in paths):
            problems.unexpected += keys
            continue
        problems.missing += [path for path in paths if path not in shapes]
        target = next(shapes[path] for path in paths if path in shapes)
        move = Move(keys, paths, rule, rule.sizes_to_flax([given[key].shape for key in keys], target) or {})
        if move.fits(shapes | {key: given[key].shape for key in keys}):
            moves.append(move)
        else:
            there = f"{', '.join(paths)} {list(target)}"
            problems.misshapen.append(f"{_listed(keys, given)} for {there} by '{rule.layout.pattern}'")
    absent = [path for path in shapes if path not in claimed and path not in fills]
    problems.missing += dict.fromkeys(key for path in absent for key in origins(path, rules, shapes[path]))
    problems.raise_any()
    return Plan(moves, fills, {}, left_out, aliases)


def plan_to_torch(specs: Mapping[str, Spec], table: Table) -> Plan:
    """Plans a conversion to torch from the Flax leaves' shapes; see :func:`to_torch`. Needs no data."""
    rules, (dropped, tied, filled) = compiled(table), exceptions(table)
    fills = {path: fill for path in specs for pattern, fill in filled.items() if match(pattern, path)}
    given = {path: shape for path, shape in specs.items() if path not in fills}

    groups, _, problems = grouped(given, rules, lambda rule: rule.flax, lambda rule: rule.torch)
    moves = []
    for rule, numbers, paths in groups:
        shapes = [given[path].shape for path in paths]
        layers = range(shapes[0][0] if rule.stack and shapes[0] else 1)
        keys = [written(key, {**numbers, rule.stack or "": i}) for i in layers for key in rule.torch]
        move = Move(tuple(keys), paths, rule, rule.sizes_to_torch(shapes) or {})
        if move.fits(dict(zip(paths, shapes, strict=True))):
            moves.append(move)
        else:
            problems.misshapen.append(
                f"{_listed(paths, given)} for {', '.join(keys)} by '{rule.layout.inverse.pattern}'"
            )
    problems.raise_any()

    names = {key: None for move in moves for key in move.torch}
    refills = {
        key: drop.refill
        for pattern, drop in dropped.items()
        if drop.refill is not None
        for key in _refilled(pattern, table, names)
    }
    aliases = {
        written(alias, found.groupdict()): key
        for alias, to in tied.items()
        for key in names
        if (found := match(to, key))
    }
    return Plan(moves, fills, refills, {}, aliases)


def check_tied(alias: str, key: str, given: np.ndarray, other: np.ndarray) -> None:
    """Raises WeightsError unless two leaves that the table ties have the same bytes."""
    if given.dtype != other.dtype or given.shape != other.shape or given.tobytes() != other.tobytes():
        raise WeightsError(Problems(ambiguous=[f"{alias} and {key} are tied, but differ: Flax has one leaf for both"]))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Joins the keys of nested mappings: ``{"params": {"head": {"bias": b}}}`` becomes ``{"params/head/bias": b}``."""
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes :func:`flatten`, where no key had a slash of its own."""
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _refilled(pattern: str, table: Table, names: Mapping[str, Any]) -> list[str]:
    """The torch leaves of a pattern that is dropped, in the modules that the converted leaves lie in.

    One that no number stands in, of a row that converts nothing, is there whatever else is.
    """
    modules = dict.fromkeys(module for key in names for module in _parents(key))
    leaf = pattern.rpartition(".")[2]
    siblings = [".".join(filter(None, (module, leaf))) for module in modules]
    rows = [(torch, kind) for torch, _, kind in table if all(isinstance(place, Dropped) for place in kind.values())]
    alone = "{" not in pattern and any(
        pattern == ".".join(filter(None, (torch, name))) for torch, kind in rows for name in kind
    )
    return [pattern] if alone else [key for key in siblings if match(pattern, key)]


def _parents(key: str) -> list[str]:
    """The modules around a leaf: of ``a.b.weight``, a.b, a, and the model itself."""
    parts = key.split(".")[:-1]
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]


def _like(flat: Mapping[str, Any], like: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The flat leaves in the structure of ``like``, whose keys may have slashes of their own."""
    return {
        name: _like(flat, node, f"{prefix}{name}/") if isinstance(node, Mapping) else flat[f"{prefix}{name}"]
        for name, node in like.items()
    }


def _sum(parts: np.ndarray, terms: tuple[int, ...]) -> np.ndarray:
    return parts[terms[0]] if len(terms) == 1 else parts[list(terms)].sum(0)


def _listed(names: Sequence[str], specs: Mapping[str, Spec]) -> str:
    return ", ".join(f"{name} {list(specs[name].shape)}" for name in names)
