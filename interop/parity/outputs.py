"""What both sides share: which output is compared, in which layout, and the scalar that is made of it."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange


class Alignment(NamedTuple):
    """How one of torch's activations becomes Flax's: an einops pattern, and the sizes it needs."""

    pattern: str
    sizes: dict[str, int]


class Target(NamedTuple):
    """What makes a scalar of an output [b ...]: labels for a cross-entropy, or a cotangent whose product is averaged.

    A cotangent has Flax's layout, to which ``alignment`` turns torch's output.
    """

    labels: np.ndarray | None
    cotangent: np.ndarray | None
    alignment: Alignment


class Trained(NamedTuple):
    """A run of some steps: the loss before each, the first gradients, all leaves after the first step and the last.

    ``sizes`` are the largest outputs, that the losses are made of; torch tells them.
    """

    losses: list[float]
    sizes: list[float] | None
    gradients: dict[str, np.ndarray]
    first: dict[str, np.ndarray]
    last: dict[str, np.ndarray]


def main_output(output: Any) -> Any:
    """Picks what is compared: ``logits`` where a name says so, else the first of several."""
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping):
        return output["logits"] if "logits" in output else next(iter(output.values()))
    return main_output(output[0]) if isinstance(output, tuple | list) else output


def alignment(torch: tuple[int, ...], flax: tuple[int, ...], channels_first: bool) -> Alignment | None:
    """Finds how an activation of torch's shape becomes one of Flax's; None if it cannot.

    Channels move last, or nothing moves: the shapes tell which, and where both would do, ``channels_first`` does.
    Torch flattens a map channels first before a dense layer, and to a sequence before attention; Flax's counterpart may
    keep the map.
    """
    last = len(torch) > 2 and (torch[0], *torch[2:], torch[1]) == flax
    if last and (channels_first or torch != flax):
        return Alignment("b c ... -> b ... c", {})
    if torch == flax:
        return Alignment("... -> ...", {})
    if len(torch) == 2 and len(flax) == 4 and torch == (flax[0], math.prod(flax[1:])):
        return Alignment("b (c h w) -> b h w c", dict(zip("hwc", flax[1:], strict=True)))
    if len(torch) == 3 and len(flax) == 4 and torch[0] == flax[0]:
        _, h, w, c = flax
        sequences = {"b c (h w) -> b h w c": (c, h * w), "b (h w) c -> b h w c": (h * w, c)}
        fitting = [pattern for pattern, shape in sequences.items() if shape == torch[1:]]
        if fitting:
            return Alignment(fitting[0 if channels_first else -1], {"h": h, "w": w})
    return None


def aligned(array: np.ndarray, shape: tuple[int, ...], channels_first: bool) -> np.ndarray | None:
    """Turns one of torch's activations to Flax's shape; see :func:`alignment`."""
    found = alignment(array.shape, shape, channels_first)
    if found is not None:
        return rearrange(array, found.pattern, **found.sizes)
    # one row for all examples, such as that of positions
    repeated = array.ndim == len(shape) and all(a in (1, b) for a, b in zip(array.shape, shape, strict=True))
    return np.broadcast_to(array, shape) if repeated else None
