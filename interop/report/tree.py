"""The report as JSON."""

import json
import math
from typing import Any

from interop.report import Layer, Leaf, Report
from interop.report.difference import Difference


def render(report: Report) -> str:
    """Writes every comparison; a number that is not finite is null, and so is what could not be compared."""
    return json.dumps(_finite(tree(report)), indent=1) + "\n"


def tree(report: Report) -> dict[str, Any]:
    """The report as dicts, lists and numbers."""
    first = {
        "divergent": report.first_divergent and report.first_divergent.name,
        "local": report.first_local and report.first_local.name,
        "gradient": report.first_gradient and report.first_gradient.name,
    }
    return {
        "passed": report.passed,
        "diagnosis": report.diagnosis(),
        "first": first,
        "setup": report.setup,
        "output": _difference(report.final),
        "layers": [_layer(layer) for layer in report.layers],
        **{title.replace(" ", "_"): [_leaf(leaf) for leaf in leaves] for title, leaves in report.leaves.items()},
        "losses": dict(zip(("torch", "flax"), report.losses, strict=True)),
        "not_compared": report.unseen,
        "shape_blind": report.blind,
        "without_evidence": report.without_evidence,
    }


def _layer(layer: Layer) -> dict[str, Any]:
    return {
        "torch": layer.torch,
        "flax": layer.flax,
        "call": layer.call,
        "shape": list(layer.shape),
        "passed": layer.passed,
        "entered": _difference(layer.entered),
        "output": _difference(layer.output),
        "local": _difference(layer.local),
        "local_float64": _difference(layer.local_float64),
    }


def _leaf(leaf: Leaf) -> dict[str, Any]:
    return {
        "name": leaf.name,
        "torch": leaf.torch,
        "verdict": leaf.verdict,
        "difference": _difference(leaf.difference),
        "float64": _difference(leaf.float64),
    }


def _difference(difference: Difference | None) -> dict[str, float] | None:
    return None if difference is None else {**difference._asdict(), "passed": difference.passed}


def _finite(value: Any) -> Any:
    """JSON has neither infinity nor what is not a number."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
