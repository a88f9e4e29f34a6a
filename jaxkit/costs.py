"""What layers cost, as a terminal table and as JSON."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

WAYS = ("forward jit", "forward eager", "backward jit", "backward eager")
EXPLANATION = """\
'outside layers' is the difference: functions between layers (pooling, relu, sums). It is negative where one model costs
less than its layers one by one: compiled, neighbours are fused; op by op, each layer alone pays linen's apply."""


class Seconds(NamedTuple):
    """A median time, compiled and op by op."""

    jit: float
    eager: float


@dataclass(frozen=True)
class Cost:
    """What the calls of one layer, or of a whole model, cost together."""

    path: str
    kind: str
    calls: int
    parameters: int
    macs: int | float
    """Multiply-accumulates of the forward pass; NaN where they depend on the data."""
    output_bytes: int | None
    """None where there is no one output."""
    forward: Seconds
    backward: Seconds
    """From the gradient of the output to those of parameters and inputs, with what the forward pass kept for it."""

    def record(self) -> dict[str, Any]:
        """All fields, for JSON; times in seconds, an unknown count as None."""
        macs = None if math.isnan(self.macs) else self.macs
        return {
            **asdict(self),
            "macs": macs,
            "forward": self.forward._asdict(),
            "backward": self.backward._asdict(),
        }


@dataclass(frozen=True)
class Profile:
    """The layers of a model in the order they run, and the model as one program."""

    layers: list[Cost]
    whole: Cost
    about: dict[str, Any]
    """What was measured, where."""

    @property
    def outside(self) -> Cost:
        """The whole less its layers: what is done between them; and, where compiled, less what one program saves.

        Its parameters are those of modules that hold others. Times can be negative.
        """

        def rest(amount: Callable[[Cost], int | float]) -> int | float:
            return amount(self.whole) - sum(amount(layer) for layer in self.layers)

        return Cost(
            path="outside layers",
            kind="",
            calls=1,
            parameters=rest(lambda cost: cost.parameters),
            macs=rest(lambda cost: cost.macs),
            output_bytes=None,
            forward=Seconds(rest(lambda cost: cost.forward.jit), rest(lambda cost: cost.forward.eager)),
            backward=Seconds(rest(lambda cost: cost.backward.jit), rest(lambda cost: cost.backward.eager)),
        )

    @property
    def activation_bytes(self) -> int:
        """Of the outputs of all layers together."""
        return sum(layer.output_bytes for layer in self.layers)

    def json(self) -> str:
        """Writes all as JSON: ``about``, then every layer in order, the rest, the whole."""
        costs = {
            "layers": [layer.record() for layer in self.layers],
            "outside": self.outside.record(),
            "whole": self.whole.record(),
            "activation_bytes": self.activation_bytes,
        }
        return json.dumps({**self.about, **costs}, indent=2) + "\n"

    def table(self) -> str:
        """Lays out all for a terminal: the layers, those that take longest compiled first; the rest; the whole."""
        layers = sorted(self.layers, key=lambda cost: cost.forward.jit + cost.backward.jit, reverse=True)
        rows = [_cells(row) for row in (*layers, self.outside, replace(self.whole, path="whole model"))]
        head = ["layer", "kind", "parameters", "MMACs", "output MB", *(f"{way} ms" for way in WAYS)]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [_aligned(cells, widths) for cells in (head, *rows)]
        rule = "-" * len(lines[0])
        about = ", ".join(f"{name} {value}" for name, value in self.about.items())
        return "\n".join([about, "", lines[0], rule, *lines[1:-2], rule, *lines[-2:], "", self._sums(), EXPLANATION])

    def _sums(self) -> str:
        """Sets the layers one by one against the model as one."""
        lines = [f"outputs of all layers: {self.activation_bytes / 1e6:,.3f} MB"]
        for name, alone, one in zip(WAYS, zip(*map(_times, self.layers), strict=True), _times(self.whole), strict=True):
            lines.append(f"{name}: {1e3 * sum(alone):.3f} ms layer by layer, {1e3 * one:.3f} ms as one model")
        return "\n".join(lines)


def _times(cost: Cost) -> tuple[float, float, float, float]:
    return (*cost.forward, *cost.backward)


def _cells(cost: Cost) -> list[str]:
    return [
        cost.path + (f" (x{cost.calls})" if cost.calls > 1 else ""),
        cost.kind,
        f"{cost.parameters:,}",
        "unknown" if math.isnan(cost.macs) else f"{cost.macs / 1e6:,.2f}",
        "" if cost.output_bytes is None else f"{cost.output_bytes / 1e6:,.3f}",
        *(f"{1e3 * seconds:.3f}" for seconds in _times(cost)),
    ]


def _aligned(cells: list[str], widths: list[int]) -> str:
    """Words to the left, numbers to the right."""
    sides = "<<" + ">" * (len(cells) - 2)
    return "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True)).rstrip()
