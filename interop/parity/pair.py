"""Both sides at once, in one precision, on the same weights and inputs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from flax import linen as nn

from interop.engine import Plan, Table, flatten, plan_to_flax, spec, to_flax
from interop.manifest import has_nan
from interop.parity.flax_side import FlaxSide, shapes
from interop.parity.torch_side import TorchSide
from interop.problems import Problems
from interop.report.difference import PRECISIONS, Precision


class Pair(NamedTuple):
    """Both sides in one precision; under a short one, torch in float32 too."""

    torch: TorchSide
    flax: FlaxSide
    exact: TorchSide | None
    precision: Precision
    plan: Plan
    table: Table
    like: Mapping[str, Any]

    def to_flax(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Renames torch's leaves, a whole state dict, to Flax paths; without those that torch has not."""
        flat = flatten(to_flax(leaves, self.table, self.like))
        return {path: leaf for path, leaf in flat.items() if path not in self.plan.filled}

    def gradients_to_flax(self, gradients: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Renames torch's gradients. Where Flax has the sum of some leaves, its gradient is that of each of them."""
        flat = self.to_flax({**self.torch.weights(), **gradients})
        for move in self.plan.moves:
            for path, terms in zip(move.flax, move.rule.sums or [(0,)] * len(move.flax), strict=True):
                flat[path] = flat[path] / len(terms)
        return {path: leaf for path, leaf in flat.items() if path.startswith("params/")}

    def torch_names(self) -> dict[str, str]:
        """The torch leaves that each Flax leaf is made of."""
        return {path: ", ".join(move.torch) for move in self.plan.moves for path in move.flax}


def pair_up(
    torch_module: torch.nn.Module,
    flax_module: nn.Module,
    table: Table,
    inputs: tuple[np.ndarray, ...],
    variables: Mapping[str, Any] | None,
    precision: Precision,
) -> Pair:
    """Copies the torch module in the precision, and converts its weights unless ``variables`` are given.

    Raises WeightsError if they do not fit the Flax module, or hold not-a-numbers.
    """
    side = TorchSide(torch_module, precision, inputs)
    weights, like = side.weights(), shapes(flax_module, inputs)
    broken = [f"{key} holds not-a-numbers" for key, array in weights.items() if has_nan(array)]
    Problems(damaged=broken).raise_any()
    plan = plan_to_flax({key: spec(array) for key, array in weights.items()}, table, like)
    converted = to_flax(weights, table, like) if variables is None else variables
    exact = TorchSide(torch_module, PRECISIONS["f32"], inputs) if precision.short else None
    return Pair(side, FlaxSide(flax_module, converted, precision, inputs), exact, precision, plan, table, like)
