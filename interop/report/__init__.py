"""What a cross-check found, as text, JSON and a page. See :func:`interop.parity.crosscheck`."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from interop.report.difference import Difference, severity


class Layer(NamedTuple):
    """One call of a layer that the table names on both sides, in torch's order of execution."""

    torch: str
    flax: str
    call: int
    shape: tuple[int, ...]
    entered: Difference | None
    """What entered it; None where the two sides are called with unlike arguments."""
    output: Difference
    local: Difference | None
    """Its output given torch's own inputs; None where these do not fit the Flax layer."""
    local_float64: Difference | None = None
    """The same in float64, where roundings hide no small mistake: another epsilon, an approximate function."""

    @property
    def right_alone(self) -> bool:
        """Whether, as far as is known, the layer itself is right."""
        return all(difference is None or difference.passed for difference in (self.local, self.local_float64))

    @property
    def passed(self) -> bool:
        """Whether neither its output nor, alone, itself differs."""
        return self.output.passed and self.right_alone

    @property
    def name(self) -> str:
        """The torch name, and which call if it is not the first."""
        return self.torch if self.call == 0 else f"{self.torch} (call {self.call + 1})"


class Leaf(NamedTuple):
    """A gradient, a parameter, a statistic or a loss compared, under its Flax path."""

    name: str
    torch: str
    difference: Difference
    float64: Difference | None = None
    """The same in float64, where float32 failed."""

    @property
    def verdict(self) -> str:
        """``ok``, ``fail``, or ``kink``: a float32 difference that is not there in float64."""
        if self.difference.passed:
            return "ok"
        return "kink" if self.float64 is not None and self.float64.passed else "fail"


class Report(NamedTuple):
    """Every comparison of a cross-check. ``print(report.table())`` for people, :meth:`json` for programs."""

    setup: dict[str, Any]
    """Versions, device, precision, seed, limits."""
    layers: list[Layer]
    final: Difference
    """The model's output."""
    outputs: tuple[np.ndarray, np.ndarray]
    """Some of the output's values: torch's and Flax's."""
    leaves: dict[str, list[Leaf]]
    """By section: gradients, training gradients, first step, trajectory. Gradients in evaluation only where the module
    tells evaluation from training."""
    losses: tuple[list[float], list[float]]
    """Torch's and Flax's, step by step."""
    unseen: dict[str, str]
    """Layers of the table of which no output was compared, and why."""
    blind: dict[str, str]
    """Flax leaves whose shape cannot tell a right layout from a wrong one, and what could be mixed up in them."""

    @property
    def passed(self) -> bool:
        """Whether nothing differs but across kinks."""
        return self.forward_passed and not self.of_verdict("fail")

    @property
    def forward_passed(self) -> bool:
        """Whether every layer and the model's output agree."""
        return self.final.passed and all(layer.passed for layer in self.layers)

    def of_verdict(self, verdict: str) -> list[tuple[str, Leaf]]:
        """The leaves of a verdict, each with its section."""
        return [(title, leaf) for title, leaves in self.leaves.items() for leaf in leaves if leaf.verdict == verdict]

    @property
    def first_local(self) -> Layer | None:
        """The first layer that is wrong itself: given torch's input, it gives another output."""
        return next((layer for layer in self.layers if not layer.right_alone), None)

    @property
    def first_divergent(self) -> Layer | None:
        """The first layer whose output differs."""
        return next((layer for layer in self.layers if not layer.output.passed), None)

    @property
    def first_gradient(self) -> Leaf | None:
        """The gradient that differs first on the way back."""
        for title in ("gradients", "training gradients"):
            failed = [leaf for leaf in self.leaves.get(title, []) if leaf.verdict == "fail"]
            if failed:
                return failed[-1]
        return None

    @property
    def without_evidence(self) -> dict[str, str]:
        """The blind leaves of layers that were not compared alone: nothing shows that their layout is right."""
        alone = {layer.flax for layer in self.layers if layer.local is not None}
        return {path: why for path, why in self.blind.items() if not alone & modules(path)}

    def diagnosis(self) -> list[str]:
        """Says where to look: the likeliest cause, as what follows from it differs too. Empty if passed."""
        if self.passed:
            return []
        if forward := self._where_forward():
            return forward
        if self.first_gradient is not None:
            return [f"the outputs agree; on the way back from the loss gradients part at {self.first_gradient.name}"]
        title, furthest = max(self.of_verdict("fail"), key=lambda found: severity(found[1].difference))
        return [f"outputs and gradients agree; what differs most in training is {furthest.name} ({title})"]

    def table(self, width: int = 120, rows: int = 20) -> str:
        """Writes the report for a terminal of that width: a line a section, and up to ``rows`` of each that failed."""
        from interop.report.terminal import render

        return render(self, width, rows)

    def json(self) -> str:
        """Writes every number as JSON; what is not a finite number is null."""
        from interop.report.tree import render

        return render(self)

    def html(self, path: str | Path) -> None:
        """Writes a page with plots that needs no other file and no network."""
        from interop.report.page import render
        from jaxkit.tracking import write_atomically

        write_atomically(Path(path), render(self))

    def _where_forward(self) -> list[str]:
        local, output = self.first_local, self.first_divergent
        if output is None and local is None:
            return [] if self.final.passed else ["every layer agrees, the model's output does not: see its last lines"]
        order = {id(layer): i for i, layer in enumerate(self.layers)}
        if output is None or (local is not None and order[id(local)] <= order[id(output)]):
            return [f"{_both(local)} is wrong itself: given torch's own input it gives another output"]
        sentences = [self._before(output)]
        if local is not None:
            sentences.append(f"{_both(local)} is wrong itself, too")
        return sentences

    def _before(self, layer: Layer) -> str:
        """What lies in front of a layer that is right itself, as far as is known, but gives another output."""
        if layer.local is None:
            return f"{_both(layer)} differs, and could not be checked alone: the fault is in it or in front of it"
        earlier = self.layers[: [other is layer for other in self.layers].index(True)]
        last = f"after {_both(earlier[-1])}, the last that agrees, or beside it" if earlier else "at the model's input"
        return f"{_both(layer)} is right itself but gets another input: look at the code in front of it, {last}"


def _both(layer: Layer) -> str:
    return f"{layer.name} ({layer.flax})"


def modules(path: str) -> set[str]:
    """The modules a leaf belongs to: those of ``params/a/b/kernel`` are a and a/b, and the model itself."""
    parts = path.split("/")[1:-1]
    return {"/".join(parts[:i]) for i in range(len(parts) + 1)}
