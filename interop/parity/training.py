"""Gradients and training compared; what fails in float32 is looked at again in float64."""

from collections.abc import Callable, Mapping

import numpy as np

from interop.parity.outputs import Target
from interop.parity.pair import Pair
from interop.report import Leaf
from interop.report.difference import TOLERANCES, Difference, compare

# The first step moves no parameter by more than this part of its size, nor, to first order, the loss: a deep
# network of random weights magnifies a rounding at each step, the more the longer it is.
_MOVE, _LOSS_MOVE = 1e-3, 1e-3
# Parameters are judged by their size, moves by the gradients they are made of.
_MOVE_SCALE = TOLERANCES["gradients"] / TOLERANCES["training"]
# Gradients below this part of their layer's largest are judged as if they were as large: a bias in front of a
# normalisation has a gradient of zero, of which only rounding is there to compare. A short type's is as large as that.
_LEAST = 1e-2

Leaves = Mapping[str, np.ndarray]


def compare_gradients(pair: Pair, target: Target) -> list[Leaf]:
    """Compares the gradient of every parameter, in evaluation."""
    exact = pair.exact.gradients(target)[1] if pair.exact else None
    return _gradients(pair, pair.flax.gradients(target), pair.torch.gradients(target)[1], exact)


def step_size(pair: Pair, target: Target, train: bool) -> float:
    """Chooses a learning rate whose first step moves neither parameters nor loss by more than a thousandth."""
    side = pair.exact or pair.torch
    weights, (loss, gradients) = side.weights(), side.gradients(target, train)
    ratios = [
        np.abs(weights[key]).max() / np.abs(gradient).max()
        for key, gradient in gradients.items()
        if weights[key].any() and gradient.any()
    ]
    slope = sum(float(np.square(gradient, dtype=np.float64).sum()) for gradient in gradients.values())
    return min(_MOVE * float(min(ratios, default=1.0)), _MOVE * abs(loss) / (slope or 1.0))


def compare_training(
    pair: Pair, target: Target, steps: int, rates: Mapping[str, float], train: bool
) -> tuple[dict[str, list[Leaf]], tuple[list[float], list[float]]]:
    """Trains both sides; returns, by section, how what they did differs, and torch's losses and Flax's."""
    reference = pair.torch.train(target, steps, rates, train)
    found = pair.flax.train(target, steps, rates, train)
    exact = pair.exact.train(target, steps, rates, train) if pair.exact else None
    losses = [
        # A loss can be small, or cancel, while the outputs it is made of are large.
        Leaf(
            f"loss of step {i + 1}", "", _compare(pair, ours, theirs, exact and exact.losses[i], max(abs(theirs), size))
        )
        for i, (ours, theirs, size) in enumerate(zip(found.losses, reference.losses, reference.sizes, strict=True))
    ]
    step = _states(pair, found.first, reference.first, exact and exact.first)
    sections = {
        "training gradients": _gradients(pair, found.gradients, reference.gradients, exact and exact.gradients),
        "first step": [leaf for leaf in step if leaf.name.startswith("params/")],
        "trajectory": [*losses, *_states(pair, found.last, reference.last, exact and exact.last)],
    }
    return sections, (reference.losses, found.losses)


def reconsidered(sections: dict[str, list[Leaf]], again: Callable[[], dict[str, list[Leaf]]]) -> dict[str, list[Leaf]]:
    """Adds to what failed its difference in float64, for which ``again`` is called if anything did."""
    if all(leaf.difference.passed for leaves in sections.values() for leaf in leaves):
        return sections
    wide = {(title, leaf.name): leaf.difference for title, leaves in again().items() for leaf in leaves}
    return {
        title: [leaf if leaf.difference.passed else leaf._replace(float64=wide[title, leaf.name]) for leaf in leaves]
        for title, leaves in sections.items()
    }


def _gradients(pair: Pair, found: Leaves, reference: Leaves, exact: Leaves | None) -> list[Leaf]:
    reference = pair.gradients_to_flax(reference)
    exact = {} if exact is None else pair.gradients_to_flax(exact)
    sizes = {path: _size(leaf) for path, leaf in reference.items()}
    least = 1.0 if pair.precision.short else _LEAST
    scales = {path: max(sizes[path], least * largest) for path, largest in _of_layer(sizes).items()}
    names = pair.torch_names()
    return [
        Leaf(
            path,
            names[path],
            compare(found[path], leaf, pair.precision, "gradients", exact.get(path), scales[path]),
        )
        for path, leaf in reference.items()
    ]


def _states(pair: Pair, found: Leaves, reference: Leaves, exact: Leaves | None) -> list[Leaf]:
    """Compares all leaves after training, relative to their size and their move."""
    before, reference = pair.to_flax(pair.torch.weights()), pair.to_flax(reference)
    exact = {} if exact is None else pair.to_flax(exact)
    moved = {path: _size(leaf) + _MOVE_SCALE * _size(leaf - before[path]) for path, leaf in reference.items()}
    params = {path: size for path, size in moved.items() if path.startswith("params/")}
    scales, names = {**moved, **_of_layer(params)}, pair.torch_names()
    return [
        Leaf(path, names[path], _compare(pair, found[path], leaf, exact.get(path), scales[path]))
        for path, leaf in reference.items()
    ]


def _of_layer(sizes: Mapping[str, float]) -> dict[str, float]:
    """Gives each parameter the largest size in its layer."""
    largest: dict[str, float] = {}
    for path, size in sizes.items():
        layer = path.rpartition("/")[0]
        largest[layer] = max(largest.get(layer, 0.0), size)
    return {path: largest[path.rpartition("/")[0]] for path in sizes}


def _size(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0))


def _compare(pair: Pair, ours, theirs, exact, scale: float) -> Difference:
    return compare(ours, theirs, pair.precision, "training", exact, scale)
