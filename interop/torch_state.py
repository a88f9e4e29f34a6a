"""What a torch training loop keeps beside the network: read into arrays and numbers by name, and written back.

A slot is a name of torch's for something kept: ``exp_avg`` (an array for each parameter), ``step`` (a number).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxkit.errors import UserError
from jaxkit.optimizer import STEPS_BEFORE_DOUBLING

if TYPE_CHECKING:
    import torch

Names = Sequence[Sequence[str]]
Numbered = dict[str, tuple[int, Mapping[str, Any]]]
"""The number and the group of each parameter by its name."""

ADAM, SGD = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)
_SCALER = {"growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": STEPS_BEFORE_DOUBLING}


class OptimizerStateError(UserError):
    """The two optimizers do not keep the same things; one message lists all that is to blame."""

    exit_code = 3

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n  ".join(["the optimizer's state does not fit:", *dict.fromkeys(problems)]))


class TorchState(NamedTuple):
    """What a torch loop keeps beside the network."""

    optimizer: Mapping[str, Any]
    """``optimizer.state_dict()``."""
    step: int | None = None
    """Updates so far, at which the schedule stands. None: as many as Adam counts; SGD counts none."""
    average: Mapping[str, "torch.Tensor"] | None = None
    """``AveragedModel.state_dict()``; or averaged parameters under the network's own keys, then of ``step`` updates.
    Buffers among them are passed over."""
    scaler: Mapping[str, Any] | None = None
    """``GradScaler.state_dict()``."""


def parameter_names(optimizer: "torch.optim.Optimizer", module: "torch.nn.Module") -> Names:
    """Lists the names of the parameters of each group, in order: torch's state knows them by number only."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def numbered(optimizer: Mapping[str, Any], names: Names | None) -> Numbered:
    """Finds the number and the group of each parameter by its name.

    Raises OptimizerStateError unless there is one name for each.
    """
    groups = optimizer["param_groups"]
    held = [group.get("param_names") for group in groups]
    if names is None and None in held:
        raise OptimizerStateError(["torch's state has no names: give parameter_names(optimizer, module)"])
    names, counts = held if names is None else names, [len(group["params"]) for group in groups]
    if any(isinstance(listed, str) for listed in names) or [len(listed) for listed in names] != counts:
        raise OptimizerStateError([f"names: give a list for each group of parameters, of {counts} names"])
    found = {}
    for listed, group, own in zip(names, groups, held, strict=True):
        if own is not None and list(own) != list(listed):
            raise OptimizerStateError([f"names: {list(listed)} are given, the state has {list(own)}"])
        found |= {name: (number, group) for name, number in zip(listed, group["params"], strict=True)}
    if len(found) != sum(counts):
        raise OptimizerStateError(["names: a name is there twice"])
    return found


def kept(group: Mapping[str, Any]) -> tuple[str, ...]:
    """What torch keeps for a parameter of this group. Its settings tell which optimizer it is: the name is nowhere.

    Raises OptimizerStateError for any other than SGD, Adam and AdamW, and for amsgrad.
    """
    if group.get("amsgrad"):
        raise OptimizerStateError(["amsgrad keeps max_exp_avg_sq, for which jaxkit's optimizers have no place"])
    if "amsgrad" in group:
        return ADAM
    if "dampening" in group:
        return SGD if group["momentum"] else ()
    raise OptimizerStateError([f"these are not the settings of torch's SGD, Adam or AdamW: {', '.join(group)}"])


def read(torch_state: TorchState, names: Names | None) -> tuple[dict[str, Any], list[str]]:
    """Reads what torch keeps, by slot: numbers, and moments by parameter (none where none was stepped); and problems.

    The slot ``updates`` is the step, ``average`` and ``n_averaged`` are the average's.
    """
    known, state = numbered(torch_state.optimizer, names), torch_state.optimizer["state"]
    entries = {
        name: {slot: value for slot, value in state.get(number, {}).items() if value is not None}
        for name, (number, _) in known.items()
    }
    problems, fresh = [], not any(entries.values())
    for name, (_, group) in known.items() if not fresh else ():
        problems += [f"{name}: {line}" for line in mismatch(kept(group), entries[name], "its optimizer", "its state")]

    found = {
        slot: {name: as_numpy(entry[slot]) for name, entry in entries.items() if slot in entry}
        for slot in dict.fromkeys(slot for _, group in known.values() for slot in kept(group))
        if slot != "step"
    }
    updates = torch_state.step
    if updates and fresh and found:
        problems.append(f"step = {updates}, but no parameter was ever stepped")
    if "exp_avg" in found:
        steps = sorted({int(entry["step"]) for entry in entries.values() if "step" in entry} or {0})
        found["step"], updates = steps[-1], steps[-1] if updates is None else updates
        if len(steps) > 1:
            problems.append(f"some parameters were stepped {steps[0]} times and some {steps[-1]}, optax has one count")
        if updates < steps[-1]:
            problems.append(f"step = {updates} is less than the {steps[-1]} updates Adam counts: is it an epoch?")
    found |= {} if updates is None else {"updates": updates}
    found |= _read_average(torch_state.average, list(known), updates, problems)
    return found | _read_scaler(torch_state.scaler, problems), problems


def _read_average(average: Mapping | None, names: list[str], updates: int | None, problems: list[str]) -> dict:
    if average is None:
        return {}
    count, prefix = (average["n_averaged"], "module.") if "n_averaged" in average else (updates, "")
    problems += [f"{name} has no average" for name in names if prefix + name not in average]
    found = {"average": {name: as_numpy(average[prefix + name]) for name in names if prefix + name in average}}
    return found if count is None else found | {"n_averaged": int(count)}


def _read_scaler(scaler: Mapping | None, problems: list[str]) -> dict:
    if not scaler:  # that of a disabled one is empty
        return {}
    problems += [
        f"{key} of the scaler is {scaler[key]}, of jaxkit's {value}"
        for key, value in _SCALER.items()
        if scaler[key] != value
    ]
    return {"scale": scaler["scale"], "_growth_tracker": scaler["_growth_tracker"]}


def write(found: Mapping[str, Any], optimizer: Mapping[str, Any], known: Numbered) -> TorchState:
    """Writes what :func:`read` reads, for an optimizer with the groups and settings of the state dict given."""
    entries = {
        number: {slot: as_tensor(np.float32(found[slot]) if slot == "step" else found[slot][name]) for slot in slots}
        for name, (number, group) in known.items()
        if (slots := kept(group))
    }
    average = scaler = None
    if "average" in found:
        averaged = {f"module.{name}": as_tensor(found["average"][name]) for name in known}
        average = {"n_averaged": as_tensor(np.int64(found["n_averaged"])), **averaged}
    if "scale" in found:
        scaler = {"scale": found["scale"], **_SCALER, "_growth_tracker": found["_growth_tracker"]}
    groups = [dict(group) for group in optimizer["param_groups"]]
    step = found.get("updates", found.get("step"))
    return TorchState({"state": entries, "param_groups": groups}, step, average, scaler)


def as_numpy(tensor: "torch.Tensor") -> np.ndarray:
    """Views a tensor as an array of its type, bfloat16 included."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def as_tensor(array: np.ndarray) -> "torch.Tensor":
    """Copies an array into a tensor of its type, bfloat16 included."""
    import torch

    copied = np.array(array, order="C")
    if copied.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copied)


def mismatch(ours: Collection[str], theirs: Collection[str], here: str, there: str) -> list[str]:
    """One line for every name that only one of two sides has."""
    lines = [f"{name} is in {here} and not in {there}" for name in ours if name not in theirs]
    return lines + [f"{name} is in {there} and not in {here}" for name in theirs if name not in ours]
