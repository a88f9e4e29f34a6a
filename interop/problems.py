"""What can be wrong with weights for a model: all of it in one message, alike layers in one line."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache

from jaxkit.errors import UserError

_NUMBER = re.compile(r"\d+")
_SHOWN = 12


@dataclass
class Problems:
    """Lists of what is wrong. ``missing`` and ``unexpected`` hold keys of the weights, the others sentences."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    narrowed: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def raise_any(self) -> None:
        """Raises WeightsError if there is any problem."""
        if any(vars(self).values()):
            raise WeightsError(self)


class WeightsError(UserError):
    """The weights do not fit the model; one message lists every key that is to blame.

    ``problems`` has them in full; the message has one line for the keys that differ in their numbers alone.
    """

    exit_code = 3

    def __init__(self, problems: Problems):
        self.problems = problems
        lines = []
        for name, entries in vars(problems).items():
            others = {"missing": problems.unexpected, "unexpected": problems.missing}.get(name, [])
            word = {"missing": "given", "unexpected": "missing"}.get(name, "")
            collapsed = list(_collapsed(_with_nearest(entries, others, word)))
            lines += [f"{name:<12}{line}" for line in collapsed[:_SHOWN]]
            if len(collapsed) > _SHOWN:
                lines.append(f"{name:<12}... and {len(collapsed) - _SHOWN} more lines like these")
        super().__init__("the weights do not fit the model:\n  " + "\n  ".join(lines))


def _collapsed(lines: Iterable[str]) -> Iterator[str]:
    """Joins lines that differ in numbers only: ``layer1.{0...2}.conv1.weight (x3)``.

    A number that differs is shown as its range; the lines of a group come where its first one stood.
    """
    groups = {}
    for line in lines:
        groups.setdefault(_NUMBER.sub("#", line), []).append(_NUMBER.findall(line))
    for masked, numbers in groups.items():
        columns = [sorted(set(column), key=_size) for column in zip(*numbers, strict=True)]
        shown = [c[0] if len(c) == 1 else f"{{{c[0]}...{c[-1]}}}" for c in columns]
        literals = masked.split("#")
        text = "".join(a + b for a, b in zip(literals, [*shown, ""], strict=True))
        yield text if len(numbers) == 1 else f"{text} (x{len(numbers)})"


def _size(digits: str) -> tuple[int, str]:
    """Orders numbers by size; ``int`` reads no more than some thousand digits."""
    digits = digits.lstrip("0")
    return len(digits), digits


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
