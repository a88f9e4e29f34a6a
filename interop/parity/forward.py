"""The forward pass compared: every layer as it runs in the model, and alone on torch's own inputs."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import torch

from interop.parity.flax_side import FlaxCall
from interop.parity.outputs import Alignment, aligned, alignment
from interop.parity.pair import Pair
from interop.parity.torch_side import TorchCall, TorchSide
from interop.report import Layer
from interop.report.difference import Difference, compare, mismatch, severity
from jaxkit.errors import ConfigError

_CHANNELS_FIRST = (
    torch.nn.modules.conv._ConvNd,
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.GroupNorm,
    torch.nn.modules.pooling._MaxPoolNd,
    torch.nn.modules.pooling._AvgPoolNd,
)


class Forward(NamedTuple):
    """What a forward pass shows, and how torch's output becomes Flax's."""

    layers: list[Layer]
    final: Difference
    outputs: tuple[np.ndarray, np.ndarray]
    alignment: Alignment
    unseen: dict[str, str]


class _Match(NamedTuple):
    """One call on both sides, torch's arrays in Flax's layout (None where they do not fit)."""

    torch: TorchCall
    flax: FlaxCall
    call: int
    inputs: list[np.ndarray] | None
    output: np.ndarray | None
    exact: TorchCall | None
    channels_first: bool


def compare_forward(pair: Pair, names: Mapping[str, str], wide: Pair | None) -> Forward:
    """Runs both sides and compares the layers that ``names``, torch name to Flax path, says are the same.

    With ``wide``, the same in float64, each layer is run alone in float64 too.

    Raises ConfigError if the outputs' shapes are not one another's.
    """
    output, torch_calls = pair.torch.forward(names)
    found, flax_calls = pair.flax.forward(set(names.values()))
    exact, exact_calls = pair.exact.forward(names) if pair.exact else (None, [None] * len(torch_calls))

    # Of maps the channels are moved; of sequences of one shape on both sides nothing is.
    channels_first = output.ndim > 3
    turn = alignment(output.shape, found.shape, channels_first)
    if turn is None:
        raise ConfigError(f"torch's output {list(output.shape)} and Flax's {list(found.shape)} cannot be compared")
    reference = aligned(output, found.shape, channels_first)
    final = _compare(found, reference, pair, None if exact is None else aligned(exact, found.shape, channels_first))

    matches = _matched(pair, names, torch_calls, flax_calls, exact_calls)
    layers = _layers(pair, matches, wide)
    unseen = _unseen(names, torch_calls, flax_calls)
    return Forward(layers, final, (reference, found), turn, unseen)


def _matched(
    pair: Pair,
    names: Mapping[str, str],
    torch_calls: list[TorchCall],
    flax_calls: list[FlaxCall],
    exact_calls: list[TorchCall | None],
) -> list[_Match]:
    """Puts the i-th call of a layer on one side beside the i-th on the other, in torch's order of execution."""
    waiting: dict[str, list[FlaxCall]] = {}
    for call in flax_calls:
        waiting.setdefault(call.path, []).append(call)
    apart = _unseen(names, torch_calls, flax_calls)
    matches, counts = [], Counter()
    for call, exact in zip(torch_calls, exact_calls, strict=True):
        path = names[call.name]
        if call.name not in apart:
            other = waiting[path].pop(0)
            first = isinstance(pair.torch.net.get_submodule(call.name), _CHANNELS_FIRST)
            inputs = _aligned_all(call.inputs, [array.shape for array in other.inputs], first)
            output = aligned(call.output, other.output.shape, first)
            matches.append(_Match(call, other, counts[call.name], inputs, output, exact, first))
            counts[call.name] += 1
    return matches


def _aligned_all(arrays: list[np.ndarray], shapes: list[tuple[int, ...]], first: bool) -> list[np.ndarray] | None:
    if len(arrays) != len(shapes):
        return None
    moved = [aligned(array, shape, first) for array, shape in zip(arrays, shapes, strict=True)]
    return None if any(array is None for array in moved) else moved


def _layers(pair: Pair, matches: list[_Match], wide: Pair | None) -> list[Layer]:
    alone = [match for match in matches if match.inputs is not None and match.output is not None]
    local = _alone(pair, alone, pair.exact)
    float64 = {}
    if wide:
        with jax.enable_x64(True):
            float64 = _alone(wide, alone, wide.torch)
    return [
        Layer(
            torch=match.torch.name,
            flax=match.flax.path,
            call=match.call,
            shape=match.flax.output.shape,
            entered=_entered(pair, match),
            output=_output(pair, match),
            local=local.get(id(match)),
            local_float64=float64.get(id(match)),
        )
        for match in matches
    ]


def _alone(pair: Pair, matches: list[_Match], again: TorchSide | None) -> dict[int, Difference]:
    """Feeds torch's inputs to each Flax layer alone.

    ``again`` repeats torch's call: in float32 as what is exact for a short type, in float64 as the reference itself.
    There, what Flax computes in float32 all the same tells nothing more than it did, and is left out.
    """
    outputs = pair.flax.alone([match.flax for match in matches], [match.inputs for match in matches])
    compared = {}
    for match, output in zip(matches, outputs, strict=True):
        repeated = again and aligned(again.alone(match.torch), output.shape, match.channels_first)
        if again is None or pair.precision.short:
            compared[id(match)] = _compare(output, match.output, pair, repeated)
        elif output.dtype == np.float64:
            compared[id(match)] = _compare(output, repeated, pair, None)
    return compared


def _output(pair: Pair, match: _Match) -> Difference:
    if match.output is None:
        return mismatch(pair.precision)
    shape = match.flax.output.shape
    exact = aligned(match.exact.output, shape, match.channels_first) if match.exact else None
    return _compare(match.flax.output, match.output, pair, exact)


def _entered(pair: Pair, match: _Match) -> Difference | None:
    if match.inputs is None or not match.inputs:
        return None
    shapes = [array.shape for array in match.flax.inputs]
    exact = _aligned_all(match.exact.inputs, shapes, match.channels_first) if match.exact else [None] * len(shapes)
    arrays = zip(match.flax.inputs, match.inputs, exact, strict=True)
    return max((_compare(ours, theirs, pair, middle) for ours, theirs, middle in arrays), key=severity)


def _compare(port: np.ndarray, reference: np.ndarray, pair: Pair, exact: np.ndarray | None) -> Difference:
    return compare(port, reference, pair.precision, "forward", exact)


def _unseen(names: Mapping[str, str], torch_calls: list[TorchCall], flax_calls: list[FlaxCall]) -> dict[str, str]:
    """The layers with calls that have no counterpart: parameters may be used without a call, or inside a scan."""
    torch_counts, flax_counts = Counter(call.name for call in torch_calls), Counter(call.path for call in flax_calls)
    together = Counter()
    for name, path in names.items():
        together[path] += torch_counts[name]
    return {
        name: f"called {together[path]} times by torch, seen {flax_counts[path]} times in Flax ({path})"
        for name, path in names.items()
        if together[path] != flax_counts[path] or not flax_counts[path]
    }
