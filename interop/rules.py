"""A table spelled out: one rule for every leaf of a layer, and which keys of a side it takes."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

from interop.layers import Dropped, Filled, Kind, Place, Tied
from interop.layout import Layout, Shape, parse
from interop.problems import Problems
from jaxkit.errors import ConfigError

Table = tuple[tuple[str, str, Kind], ...]
# what a layer of a stack may be numbered, whatever else is there
_LAYERS, _DIGITS = 1000, 9


class Rule(NamedTuple):
    """The patterns of some leaves' names on both sides, and the layout between them."""

    torch: tuple[str, ...]
    flax: tuple[str, ...]
    layout: Layout
    sums: tuple[tuple[int, ...], ...]
    """For each Flax leaf, which parts along the layout's leading axis are summed in it; empty if there is none."""
    row: tuple[str, str]
    """The torch and the flax module of the row it comes from."""

    @property
    def stack(self) -> str | None:
        """The number in the torch names that is an axis in Flax."""
        found = re.search(r"\[(\w+)\]", self.flax[0])
        return found and found[1]

    @property
    def parts(self) -> tuple[int, ...]:
        """The leading axis of the layout on Flax's side that no leaf has: its size, or none."""
        return (1 + max(i for terms in self.sums for i in terms),) if self.sums else ()

    def sizes_to_flax(self, shapes: Sequence[Shape], target: Shape) -> dict[str, int] | None:
        """Sizes of the layout's axes for torch leaves of these shapes and a Flax leaf of that; None if they clash."""
        source = (len(self.torch),) * (len(self.torch) > 1) + shapes[0]
        return self.layout.sizes(source, self.layout.known(self.parts + target[self.stack is not None :]))

    def sizes_to_torch(self, shapes: Sequence[Shape]) -> dict[str, int] | None:
        """Sizes of the layout's axes for Flax leaves of these shapes; None if they clash."""
        known = {self.layout.source[0][0]: len(self.torch)} if len(self.torch) > 1 else {}
        return self.layout.inverse.sizes(self.parts + shapes[0][self.stack is not None :], known)


class Group(NamedTuple):
    """The keys that one rule takes together, in order, and the numbers in their names."""

    rule: Rule
    numbers: dict[str, str]
    keys: tuple[str, ...]


def compiled(table: Table) -> list[Rule]:
    """Spells out what a table says of every leaf that is converted.

    Raises ConfigError for a row one of whose columns has a number that the other has not.
    """
    rules = []
    for torch, flax, kind in table:
        for names, place in kind.items():
            if isinstance(place, Place):
                paths = tuple(_within(path, flax) for path in _tuple(place.paths))
                sums = place.sums or (tuple((i,) for i in range(len(paths))) if len(paths) > 1 else ())
                keys = tuple(_joined(torch, _first_layer(name, flax)) for name in _tuple(names))
                _require_same_numbers((torch, flax), keys, paths)
                rules.append(Rule(keys, paths, parse(place.layout), sums, (torch, flax)))
    return rules


def exceptions(table: Table) -> tuple[dict[str, Dropped], dict[str, str], dict[str, Filled]]:
    """The patterns of torch leaves that are dropped, of those tied to others, and of Flax leaves that are filled."""
    dropped, tied, filled = {}, {}, {}
    for torch, flax, kind in table:
        for name, place in kind.items():
            match place:
                case Dropped():
                    dropped[_joined(torch, name)] = place
                case Tied():
                    tied[_joined(torch, name)] = place.to
                case Filled():
                    filled[_within(place.path, flax)] = place
    return dropped, tied, filled


def grouped(
    keys: Iterable[str], rules: list[Rule], near: Callable[[Rule], tuple[str, ...]], far: Callable
) -> tuple[list[Group], set[str], Problems]:
    """Finds the rule of every key of one side and puts together what one rule takes at once.

    ``near(rule)`` are the patterns of this side, ``far(rule)`` those of the other. Returns the whole groups, the names
    on the other side that the keys lead to (also those of groups of which a key is missing), and what is wrong.
    """
    keys, problems, members = list(keys), Problems(), {}
    for key in keys:
        found = [
            (i, position, match(pattern, key).groupdict())
            for i, rule in enumerate(rules)
            for position, pattern in enumerate(near(rule))
            if match(pattern, key)
        ]
        if not found:
            problems.unexpected.append(key)
            continue
        if len(found) > 1:
            places = " and ".join(written(far(rules[i])[0], numbers) for i, _, numbers in found)
            problems.ambiguous.append(f"{key} has several rows: it becomes {places}")
        i, position, numbers = found[0]
        digits = numbers.pop(rules[i].stack, "0")
        # one key must not make a stack of any height, each of whose layers would be named as missing
        if len(digits) > _DIGITS or int(digits) >= max(_LAYERS, len(keys)):
            problems.unexpected.append(key)
            continue
        place, taken = (int(digits), position), members.setdefault((i, tuple(numbers.items())), {})
        if place in taken:
            problems.ambiguous.append(f"{taken[place]} and {key} are both number {place[0]} of a stack")
        taken.setdefault(place, key)

    groups, claims = [], {}
    for (i, numbers), taken in members.items():
        rule, numbers = rules[i], dict(numbers)
        layers = range(1 + max(layer for layer, _ in taken))
        names = {
            (layer, position): written(pattern, {**numbers, rule.stack or "": layer})
            for layer, (position, pattern) in product(layers, enumerate(near(rule)))
        }
        problems.missing += [name for place, name in names.items() if place not in taken]
        for pattern in far(rule):
            first, target = next(iter(taken.values())), written(pattern, {**numbers, rule.stack or "": 0})
            if claims.setdefault(target, first) != first:
                problems.ambiguous.append(f"{first} and {claims[target]} both become {target}")
        if len(taken) == len(names):
            groups.append(Group(rule, numbers, tuple(taken[place] for place in names)))
    return groups, set(claims), problems


def origins(path: str, rules: list[Rule], shape: Shape) -> list[str]:
    """The torch keys that a Flax leaf comes from; its own path if no rule makes it."""
    for rule in rules:
        for pattern in rule.flax:
            if found := match(pattern, path):
                layers = range(shape[0]) if rule.stack and shape else [0]
                numbers = [{**found.groupdict(), rule.stack or "": layer} for layer in layers]
                return [written(key, names) for names in numbers for key in rule.torch]
    return [path]


def module_pairs(table: Table, torch_modules: Iterable[str], flax_modules: Iterable[str]) -> dict[str, str]:
    """Pairs the names of torch modules with those of Flax modules that the table's first two columns equate."""
    present, pairs = set(flax_modules), {}
    for name in torch_modules:
        for torch, flax, _ in table:
            numbers = (found := match(torch, name)) and found.groupdict()
            # a recurrent layer's number is in its leaves' names: its row has no one module
            if (
                found
                and set(re.findall(r"{(\w+)}", flax)) <= set(numbers)
                and (path := written(flax, numbers)) in present
            ):
                pairs[name] = path
    return pairs


def match(pattern: str, key: str) -> re.Match | None:
    """Matches a whole key; the numbers are the groups of the match."""
    return _regex(pattern).fullmatch(key)


def written(pattern: str, numbers: Mapping[str, str | int]) -> str:
    """The pattern with its numbers put in; numbers that are an axis leave no trace."""
    return re.sub(r"\{(\w+)\}", lambda found: str(numbers[found[1]]), re.sub(r"\[\w+\]", "", pattern))


@cache
def _regex(pattern: str) -> re.Pattern:
    literals = re.split(r"\{(\w+)\}", re.sub(r"\[\w+\]", "", pattern))
    seen = set()
    for i, text in enumerate(literals):
        if i % 2 == 0:
            literals[i] = re.escape(text)
        else:
            literals[i] = rf"(?P={text})" if text in seen else rf"(?P<{text}>\d+)"
            seen.add(text)
    return re.compile("".join(literals))


def _first_layer(name: str, flax: str) -> str:
    """A recurrent layer's leaf; that of its first layer, where the Flax column has no place for more."""
    return name if re.search(r"[{\[]layer[}\]]", flax) else name.replace("{layer}", "0")


def _require_same_numbers(row: tuple[str, str], keys: tuple[str, ...], paths: tuple[str, ...]) -> None:
    sides = [{number for name in names for number in re.findall(r"[{\[](\w+)[}\]]", name)} for names in (keys, paths)]
    if odd := sides[0] ^ sides[1]:
        raise ConfigError(f"the table's row {row[0]!r}, {row[1]!r}: write {{{min(odd)}}} into both columns")


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _joined(torch: str, name: str) -> str:
    return f"{torch}.{name}" if torch else name


def _within(path: str, flax: str) -> str:
    return path.replace("{}", flax) if flax else path.replace("{}/", "")
