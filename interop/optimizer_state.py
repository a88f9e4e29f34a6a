"""Optimizer state between torch and optax, both ways: moments and counts of SGD, Adam, AdamW; average; loss scale.

Moments are laid out as their parameters are, through the same table, and keep type and bytes. Every part of an optax
state must find its counterpart in torch and the other way round: what has none is named, all of it in one error.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from interop import engine
from interop.layout import spec
from interop.torch_state import (
    ADAM,
    SGD,
    Names,
    OptimizerStateError,
    TorchState,
    kept,
    mismatch,
    numbered,
    parameter_names,
    read,
    write,
)
from jaxkit.optimizer import AverageState, ScaleState

__all__ = ["OptimizerStateError", "TorchState", "parameter_names", "parameters", "to_flax", "to_torch"]

# What torch calls each field of an optax state. Fields that are not here are states themselves.
_SLOTS = {
    optax.ScaleByAdamState: {"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq"},
    optax.TraceState: {"trace": "momentum_buffer"},
    optax.ScaleByScheduleState: {"count": "updates"},
    AverageState: {"count": "n_averaged", "average": "average"},
    ScaleState: {"scale": "scale", "finite_steps": "_growth_tracker"},
}
_KNOWN = {slot for fields in _SLOTS.values() for slot in fields.values()}
_REMEDIES = {
    "updates": " (give step, the number of updates made: torch's SGD counts none)",
    "n_averaged": " (it comes with the average; if that has none, give step)",
    "average": " (give average, or leave ema out of the config)",
    "scale": " (give scaler, or train in another precision than fp16)",
}


def to_flax(torch_state: TorchState, names: Names | None, table: engine.Table, state: PyTree) -> PyTree:
    """Fills the optax ``state`` of an optimizer with what its torch twin keeps; the leaves are NumPy's.

    Args:
        torch_state: the source.
        names: of the parameters, a list for each group (:func:`parameter_names`). None: the groups hold them, as they
            do where the torch optimizer was given ``named_parameters()``.
        table: of the network.
        state: gives structure and shapes: ``optimizer.init(params)``, or its ``jax.eval_shape``.

    If no parameter was ever stepped, all moments are zeros. torch's first momentum buffer is the gradient and optax's
    trace begins at zero, which are equal from the first update on.

    Raises OptimizerStateError if either side keeps what the other does not, if only some parameters were stepped, or
    some more often, or if moments do not fit the table.
    """
    found, problems = read(torch_state, names)
    used = {"updates"}  # known wherever Adam is, and of no use to a chain with a constant rate

    def fill(slot: str, old: Any) -> Any:
        used.add(slot)
        if slot not in _KNOWN:
            problems.append(f"{slot} is in the optax state and torch.optim keeps nothing like it")
        elif slot not in found:
            problems.append(f"{slot} is in the optax state and not in torch's{_REMEDIES.get(slot, '')}")
        elif isinstance(found[slot], Mapping):
            return _moment_to_flax(slot, found[slot], table, old, problems)
        else:
            return np.asarray(found[slot], old.dtype)
        return old

    filled = _walk(state, fill)
    problems += [f"{slot} is in torch's state and not in the optax state" for slot in found if slot not in used]
    if problems:
        raise OptimizerStateError(problems)
    return filled


def to_torch(state: PyTree, names: Names | None, table: engine.Table, optimizer: Mapping[str, Any]) -> TorchState:
    """Makes torch's state of an optax ``state``; its ``optimizer`` part goes into ``load_state_dict``.

    Args:
        state: the source.
        names: as for :func:`to_flax`.
        table: of the network.
        optimizer: ``state_dict()`` of a torch optimizer with the groups wanted. Their settings come back as they are,
            the learning rate too: take it once a scheduler stands where it shall.

    Raises OptimizerStateError if that optimizer keeps other things than optax, or if names or moments do not fit.
    """
    known = numbered(optimizer, names)
    found, problems = {}, []

    def gather(slot: str, value: Any) -> None:
        if slot not in _KNOWN:
            problems.append(f"{slot} is in the optax state and torch.optim keeps nothing like it")
            return
        moment = isinstance(value, Mapping)
        converted = _moment_to_torch(slot, value, table, known, problems) if moment else np.asarray(value).item()
        if slot in found and (moment or converted != found[slot]):
            problems.append(f"two parts of the optax state keep {slot}, torch has one place for it")
        found[slot] = converted

    _walk(state, gather)
    ours = [slot for slot in found if slot in ADAM + SGD]
    for _, group in known.values():
        problems += mismatch(ours, kept(group), "the optax state", "torch's optimizer")
    if problems:
        raise OptimizerStateError(problems)
    return write(found, optimizer, known)


def parameters(params: PyTree, table: engine.Table) -> dict[str, tuple[str, ...]]:
    """Lists torch's parameters, and the paths of the Flax leaves each becomes; ``params`` gives names and shapes.

    Raises OptimizerStateError where the frameworks train different parameters, so that no state could be the same: a
    Flax leaf is the sum of torch's, each of which moves by its gradient, or is none of torch's.
    """
    plan = engine.plan_to_torch({path: spec(p) for path, p in engine.flatten({"params": params}).items()}, table)
    summed = [move.torch for move in plan.moves if any(len(terms) > 1 for terms in move.rule.sums)]
    problems = [f"{' and '.join(keys)} are trained apart in torch, and as their sum in Flax" for keys in summed]
    problems += [f"{path} is trained in Flax, torch has no such parameter" for path in plan.filled]
    if problems:
        raise OptimizerStateError(problems)
    return {key: tuple(path.removeprefix("params/") for path in move.flax) for move in plan.moves for key in move.torch}


def _walk(part: Any, visit: Callable[[str, Any], Any], where: str = "") -> Any:
    """Rebuilds a chain's state with ``visit(slot, value)`` for each value; an unknown one's slot is its place."""
    if not isinstance(part, tuple):
        return visit(where, part)
    if not hasattr(part, "_fields"):
        return tuple(_walk(value, visit, where) for value in part)
    slots, name = _SLOTS.get(type(part), {}), type(part).__name__
    return type(part)(
        *(
            visit(slots[field], value) if field in slots else _walk(value, visit, f"{name}.{field}")
            for field, value in part._asdict().items()
        )
    )


def _moment_to_flax(slot: str, moment: Mapping, table: engine.Table, like: PyTree, problems: list[str]) -> PyTree:
    parameters(like, table)
    if not moment:
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    try:
        return engine.to_flax(moment, table, {"params": like})["params"]
    except engine.WeightsError as error:
        problems.append(
            f"{slot}: {error}\n  Are the names in the order in which the optimizer was given the parameters?"
        )
        return like


def _moment_to_torch(
    slot: str, moment: PyTree, table: engine.Table, names: Collection[str], problems: list[str]
) -> dict[str, np.ndarray]:
    expected = parameters(moment, table)
    problems += mismatch(expected, names, f"the {slot} of optax", "names")
    return engine.to_torch({"params": jax.tree.map(np.asarray, moment)}, table)
