"""Runs a torch module and its Flax port side by side, layer by layer: forward, gradients, training."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import torch

from interop.engine import Table, flatten
from interop.parity.flax_side import trains
from interop.parity.forward import compare_forward
from interop.parity.outputs import Alignment, Target
from interop.parity.pair import Pair, pair_up
from interop.parity.torch_side import exact_products
from interop.parity.training import compare_gradients, compare_training, reconsidered, step_size
from interop.report import Leaf, Report, modules
from interop.report.difference import PRECISIONS, RATIOS, TOLERANCES, Precision, limit
from interop.rules import module_pairs
from jaxkit.errors import ConfigError

if TYPE_CHECKING:
    from flax import linen as nn

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


def crosscheck(
    torch_module: torch.nn.Module,
    flax_module: "nn.Module",
    table: Table,
    inputs: np.ndarray | tuple[np.ndarray, ...],
    *,
    variables: Mapping[str, Any] | None = None,
    dtype: str = "f32",
    steps: int = 3,
    learning_rate: float | None = None,
    seed: int = 0,
) -> Report:
    """Compares a torch module with a Flax module on the same weights and inputs. Changes neither.

    Every layer the table names is compared as it comes out of the running model, and alone, given torch's own inputs
    (in float32, and in float64); then the gradient of every parameter, in evaluation and in training, the parameters
    after one step of SGD with momentum and weight decay, and losses, parameters and statistics after ``steps`` of them.
    The loss is the cross-entropy of random labels where the output is [b k], else the mean of its product with random
    numbers. What fails of gradients and training in float32 is looked at again in float64.

    Args:
        torch_module: any module, on any device.
        flax_module: a linen module. With an argument ``train`` it is trained in training mode, else in evaluation.
        table: as for :func:`interop.engine.to_flax`.
        inputs: one array, or one for each argument. Four axes are images [b h w c], which torch is given as [b c h w];
            others are passed as they are.
        variables: what the Flax module runs with; default: the torch module's weights, converted after the table.
        dtype: f32, f64, or bf16 or f16: both sides run in it, and torch in float32 too, as what is exact.
        steps: of training; 0 compares the forward pass alone.
        learning_rate: default: one at which the first step moves no parameter, nor the loss, by more than a thousandth
            of its size.
        seed: of labels and cotangents.

    Raises:
        WeightsError: if the weights do not fit the Flax module.
        ConfigError: if an argument makes no sense, the outputs have unlike shapes, or the torch module is to be trained
            with dropout, whose masks no two frameworks share.
    """
    inputs = tuple(map(np.asarray, inputs if isinstance(inputs, tuple) else (inputs,)))
    train = trains(flax_module)
    _check(torch_module, train, dtype, steps)
    if any(np.isnan(array).any() for array in inputs if array.dtype.kind == "f"):
        raise ConfigError("the inputs hold not-a-numbers, which no output can be compared by")

    def sides(precision: Precision) -> Pair:
        return pair_up(torch_module, flax_module, table, inputs, variables, precision)

    precision = PRECISIONS[dtype]
    with jax.default_matmul_precision("highest"), exact_products(), _wide(precision):
        pair, wide, refused = sides(precision), None, None
        if precision.name == "float32":
            with _wide(PRECISIONS["f64"]):
                wide = sides(PRECISIONS["f64"])
                refused = wide.flax.refusal()
        if refused:
            wide = None
        paths = {module for path in flatten(pair.flax.variables) for module in modules(path)}
        names = module_pairs(table, [name for name, _ in torch_module.named_modules()], paths)
        forward = compare_forward(pair, names, wide)

        leaves, losses, rates = {}, ([], []), {}
        if steps:
            target = _target(forward.outputs[0].shape, forward.alignment, seed)
            rate = step_size(pair, target, train) if learning_rate is None else learning_rate
            rates = {"lr": rate, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
            leaves, losses = _learning(pair, wide, target, steps, rates, train)

    order = [layer.flax for layer in forward.layers]
    return Report(
        setup=_setup(pair, inputs, train, steps, seed, rates),
        layers=forward.layers,
        final=forward.final,
        outputs=forward.outputs,
        leaves={title: _in_order(found, order) for title, found in leaves.items()},
        losses=losses,
        unseen={**forward.unseen, **({"float64": f"the Flax module does not run in it: {refused}"} if refused else {})},
        blind={path: why for move in pair.plan.moves if (why := move.blindness()) for path in move.flax},
    )


def _check(torch_module: torch.nn.Module, train: bool, dtype: str, steps: int) -> None:
    if dtype not in PRECISIONS:
        raise ConfigError(f"dtype {dtype!r} is none of {', '.join(PRECISIONS)}")
    if steps < 0:
        raise ConfigError(f"steps {steps}: give the number of training steps; 0 compares the forward pass alone")
    if not (train and steps):
        return
    for name, module in torch_module.named_modules():
        layer = isinstance(module, torch.nn.modules.dropout._DropoutNd)
        rate = module.p if layer else getattr(module, "dropout", None)
        if isinstance(rate, float) and rate > 0:
            raise ConfigError(
                f"{name or 'the torch module'} drops out at random in training, and each framework draws masks of its "
                "own: build both modules with a rate of 0 to compare them"
            )


def _learning(
    pair: Pair, wide: Pair | None, target: Target, steps: int, rates: Mapping[str, float], train: bool
) -> tuple[dict[str, list[Leaf]], tuple[list[float], list[float]]]:
    """Compares gradients and training, again in float64 (``wide``) what failed; torch's losses and Flax's too."""
    training, losses = compare_training(pair, target, steps, rates, train)
    evaluation = {"gradients": compare_gradients(pair, target)} if train else {}
    if wide is not None:
        with _wide(wide.precision):
            evaluation = reconsidered(evaluation, lambda: {"gradients": compare_gradients(wide, target)})
            needed = 1 if all(leaf.difference.passed for leaf in training["trajectory"]) else steps
            training = reconsidered(training, lambda: compare_training(wide, target, needed, rates, train)[0])
    return {**evaluation, **training}, losses


def _wide(precision: Precision) -> AbstractContextManager:
    return jax.enable_x64(True) if precision.numpy == np.float64 else nullcontext()


def _target(shape: tuple[int, ...], alignment: Alignment, seed: int) -> Target:
    rng = np.random.default_rng(seed)
    if len(shape) == 2 and shape[1] > 1:
        return Target(rng.integers(0, shape[1], shape[0]), None, alignment)
    return Target(None, rng.normal(size=shape), alignment)


def _in_order(leaves: list[Leaf], layers: list[str]) -> list[Leaf]:
    """Sorts leaves by the layers' order of execution; those of no layer that was seen come first."""
    order = {path: i for i, path in enumerate(layers)}

    def rank(leaf: Leaf) -> int:
        return max((order[path] for path in modules(leaf.name) if path in order), default=-1)

    return sorted(leaves, key=rank)


def _setup(
    pair: Pair, inputs: tuple[np.ndarray, ...], train: bool, steps: int, seed: int, rates: Mapping[str, float]
) -> dict[str, Any]:
    precision = pair.precision
    limits = {"ratio": RATIOS} if precision.short else {kind: limit(kind, precision) for kind in TOLERANCES}
    return {
        "dtype": precision.name,
        "inputs": [list(array.shape) for array in inputs],
        "jax_default_matmul_precision": "highest",
        "torch_tf32": False,
        "torch_threads": torch.get_num_threads(),
        "devices": {"torch": str(pair.torch.inputs[0].device), "jax": jax.default_backend()},
        "versions": {name: version(name) for name in ("torch", "jax", "flax", "optax", "numpy")},
        "training_mode": train,
        "steps": steps,
        "optimizer": {"name": "sgd", **rates},
        "seed": seed,
        "limits": limits,
    }
