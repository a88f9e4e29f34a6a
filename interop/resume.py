"""Whole training runs: one stopped in torch goes on in jaxkit, and one stopped in jaxkit in torch."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from interop import engine
from interop.optimizer_state import parameters, to_flax, to_torch
from interop.torch_state import Names, OptimizerStateError, TorchState, as_numpy, as_tensor, numbered, read
from jaxkit.optimizer import decay_mask
from jaxkit.schema.optimizer import Adam, AdamW, Optimizer, Sgd
from jaxkit.step import TrainState

if TYPE_CHECKING:
    import torch


class Checkpoint(NamedTuple):
    """A torch training run: its network's ``state_dict()``, and what its loop keeps beside it."""

    model: Mapping[str, "torch.Tensor"]
    state: TorchState


def checkpoint(saved: Mapping[str, Any], updates_per_epoch: int | None = None) -> Checkpoint:
    """Finds the parts of a training checkpoint under the names that torch loops give them.

    ``model``, ``state_dict`` or ``model_state_dict``; ``optimizer`` or ``optimizer_state_dict``; ``step``,
    ``global_step``, or ``epoch``, the number of finished ones; ``average`` and ``scaler`` (see :class:`TorchState`).

    Raises OptimizerStateError if network or optimizer is missing, or for an ``epoch`` of unknown length.
    """

    def first(*names: str) -> Any:
        return next((saved[name] for name in names if name in saved), None)

    model = first("model", "state_dict", "model_state_dict")
    optimizer, step = first("optimizer", "optimizer_state_dict"), first("step", "global_step")
    if model is None or optimizer is None:
        raise OptimizerStateError([f"a training checkpoint has model and optimizer, this one {', '.join(saved)}"])
    if step is None and "epoch" in saved:
        if updates_per_epoch is None:
            raise OptimizerStateError([f"it stands at epoch {saved['epoch']}: give updates_per_epoch"])
        step = saved["epoch"] * updates_per_epoch
    return Checkpoint(model, TorchState(optimizer, step, first("average"), first("scaler")))


def resume_in_jaxkit(
    source: Checkpoint,
    like: TrainState,
    table: engine.Table,
    config: Optimizer,
    rate: Callable[[int], Any],
    names: Names | None = None,
) -> tuple[TrainState, list[str]]:
    """Makes the state, of NumPy arrays, from which a jaxkit run goes on where a torch run stopped.

    Args:
        source: the torch run.
        like: the jaxkit run at step 0 (``jaxkit.train.initial_state``); its key is kept.
        table: of the network.
        config: of the jaxkit run's optimizer.
        rate: its learning rate by step (``jaxkit.schedules.make_schedule``).
        names: as for :func:`interop.optimizer_state.to_flax`. None, for one group without names: the network's
            parameters in order.

    Returns the state, and a line for each setting that torch's optimizer has and jaxkit's has not.

    Raises:
        WeightsError: if the weights do not fit.
        OptimizerStateError: if the optimizer's state does not; if a type differs from that in ``like``.
    """
    paths = parameters(like.params, table)
    groups = source.state.optimizer["param_groups"]
    if names is None and len(groups) == 1 and "param_names" not in groups[0]:
        names = [[key for key in source.model if key in paths]]
    opt_state = to_flax(source.state, names, table, like.opt_state)
    # to_flax has it from torch, for every optimizer of jaxkit's has a schedule
    step = read(source.state, names)[0]["updates"]
    params, state = _variables(source.model, {"params": like.params, **like.state}, table)
    _check_buffers(source, params, state, paths, table)
    filled = like._replace(step=np.int32(step), params=params, state=state, opt_state=opt_state)
    _check_types(filled, like)

    decayed = engine.flatten(decay_mask(like.params, config.no_decay))
    wanted = {name: {config.weight_decay * decayed[path] for path in leaves} for name, leaves in paths.items()}
    known = numbered(source.state.optimizer, names)
    lines = [line for i, group in enumerate(groups) for line in _disagreements(i, group, config, float(rate(step)))]
    return filled, lines + _decay_disagreements({name: known[name][1]["weight_decay"] for name in known}, wanted)


def resume_in_torch(
    state: TrainState, table: engine.Table, optimizer: Mapping[str, Any], names: Names | None = None
) -> Checkpoint:
    """Makes the torch run that goes on where a jaxkit run stopped; arguments and errors as of ``to_torch``.

    The parts load with ``strict=True``; the average into an ``AveragedModel`` of the network.
    """
    arrays = engine.to_torch(jax.tree.map(np.asarray, {"params": state.params, **state.state}), table)
    model = {key: as_tensor(array) for key, array in arrays.items()}
    kept = to_torch(state.opt_state, names, table, optimizer)
    if kept.average is not None:
        kept = kept._replace(average={f"module.{key}": tensor for key, tensor in model.items()} | kept.average)
    return Checkpoint(model, kept._replace(step=int(state.step)))


def _variables(model: Mapping[str, "torch.Tensor"], like: PyTree, table: engine.Table) -> tuple[PyTree, PyTree]:
    variables = engine.to_flax({key: as_numpy(tensor) for key, tensor in model.items()}, table, like)
    return variables.pop("params"), variables


def _check_buffers(source: Checkpoint, params: PyTree, state: PyTree, paths: Mapping, table: engine.Table) -> None:
    """Raises where running statistics are averaged: jaxkit averages parameters, and evaluates with the network's."""
    average = {key.removeprefix("module."): value for key, value in (source.state.average or {}).items()}
    buffers = {key: value for key, value in average.items() if key in source.model and key not in paths}
    if not buffers:
        return
    _, averaged = _variables({**source.model, **buffers}, {"params": params, **state}, table)
    theirs = engine.flatten(averaged)
    apart = [path for path, leaf in engine.flatten(state).items() if leaf.tobytes() != theirs[path].tobytes()]
    if apart:
        shown = f"{len(apart)} buffers, {apart[0]} first,"
        raise OptimizerStateError([f"{shown} of the average are not the network's: jaxkit averages parameters only"])


def _check_types(filled: TrainState, like: TrainState) -> None:
    pairs = zip(jax.tree_util.tree_leaves_with_path(filled), jax.tree.leaves(like), strict=True)
    apart = {}
    for (path, ours), theirs in pairs:
        if ours.dtype != theirs.dtype:
            place = jax.tree_util.keystr(path, simple=True, separator="/")
            apart.setdefault((str(ours.dtype), str(theirs.dtype)), []).append(place)
    if apart:
        raise OptimizerStateError(
            [
                f"{len(places)} arrays, {places[0]} first, are {ours} in torch and {theirs} in jaxkit"
                for (ours, theirs), places in apart.items()
            ]
        )


def _disagreements(i: int, group: Mapping[str, Any], config: Optimizer, rate: float) -> list[str]:
    """What a group of torch's parameters is set to, and jaxkit's optimizer is not; all but weight decay."""
    ours = {"lr": float(f"{rate:.6g}"), "initial_lr": config.learning_rate, "maximize": False}
    match config:
        case Sgd(momentum=momentum, nesterov=nesterov):
            ours |= {"momentum": momentum, "nesterov": nesterov, "dampening": 0.0 if momentum else group["dampening"]}
        case Adam(b1=b1, b2=b2, eps=eps) | AdamW(b1=b1, b2=b2, eps=eps):
            decoupled = {"decoupled_weight_decay": isinstance(config, AdamW)} if group["weight_decay"] else {}
            ours |= {"betas": (b1, b2), "eps": eps, **decoupled}
    # 1e-5: the rate is computed in float32. Settings that this version of torch has not are as if never set.
    return [
        f"param_groups[{i}]: {name} is {group[name]} in torch, {value} in jaxkit"
        for name, value in ours.items()
        if name in group and not np.allclose(np.float64(group[name]), np.float64(value), rtol=1e-5, atol=0)
    ]


def _decay_disagreements(theirs: Mapping[str, float], ours: Mapping[str, set[float]]) -> list[str]:
    apart = Counter()
    first = {}
    for name, decay in theirs.items():
        if not all(math.isclose(decay, wanted, rel_tol=1e-5) for wanted in ours[name]):
            pair = (decay, " and ".join(map(str, sorted(ours[name]))))
            apart[pair] += 1
            first.setdefault(pair, name)
    return [
        f"weight_decay of {count} parameters, {first[pair]} first, is {pair[0]} in torch, {pair[1]} in jaxkit"
        for pair, count in apart.items()
    ]
