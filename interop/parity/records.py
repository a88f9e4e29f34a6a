"""What a torch module computes in one step of training, for :mod:`jaxkit.testing.baselines`."""

from collections.abc import Callable, Iterable
from importlib.metadata import version

import numpy as np
import torch

from interop.parity.outputs import Alignment, Target
from interop.parity.torch_side import TorchSide, exact_products, to_numpy
from interop.report.difference import PRECISIONS
from jaxkit.testing.capture import Records, said


def torch_records(
    module: torch.nn.Module,
    *inputs: np.ndarray,
    seed: int = 0,
    optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer] | None = None,
) -> Records:
    """Runs a torch module forward in evaluation, and takes a step of training. Changes it not.

    Modules are watched as in :func:`interop.parity.crosscheck`, by the names they have, with all tensors that they
    return; the loss is the mean of the main output times seeded random numbers. Parameters that need no gradient have
    none, and stay.

    Args:
        module: all in one floating type, on any device.
        inputs: as for crosscheck: images are [b h w c].
        seed: of dropout and loss.
        optimizer: makes one of parameters; default: AdamW as in :func:`jaxkit.testing.capture.linen_records`.
    """
    optimizer = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, eps=1e-4, weight_decay=1e-2))
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    (precision,) = [one for one in PRECISIONS.values() if one.name == str(dtype).removeprefix("torch.")]
    with exact_products():
        side = TorchSide(module, precision, inputs)
        for own, theirs in zip(side.net.parameters(), module.parameters(), strict=True):
            own.requires_grad_(theirs.requires_grad)
        arrays = {f"before/{name}": array for name, array in side.weights().items()}
        output, calls = side.forward(name for name, _ in module.named_modules())
        seen: dict[str, int] = {}
        for call in calls:
            seen[call.name] = seen.get(call.name, -1) + 1
            name = (call.name or ".") + (f":{seen[call.name]}" if seen[call.name] else "")
            arrays |= {f"forward/{name}/input/{i}": array for i, array in enumerate(call.inputs)}
            arrays |= {f"forward/{name}/output{part}": array for part, array in call.outputs.items()}
        cotangent = np.random.default_rng(seed).normal(size=output.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            stepped, settings = _step(side, Target(None, cotangent, Alignment("... -> ...", {})), optimizer)
    configuration = {**_configuration(module), "optimizer": settings}
    return Records(arrays | stepped, configuration, _environment(side, precision.name))


def _step(side: TorchSide, target: Target, optimizer: Callable) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A step of the side's own network, which it changes; and the optimizer's settings in words."""
    loss, gradients = side.gradients(target, train=True)
    for name, parameter in side.net.named_parameters():
        if parameter.requires_grad:
            parameter.grad = torch.from_numpy(gradients[name]).to(parameter)
    stepped = optimizer(side.net.parameters())
    stepped.step()
    names = {id(parameter): name for name, parameter in side.net.named_parameters()}
    moments = {
        _within("optimizer", key, names[id(parameter)]): to_numpy(torch.as_tensor(value))
        for parameter, state in stepped.state.items()
        for key, value in state.items()
    }
    settings = {
        f"{i}.{key}": said(value)
        for i, group in enumerate(stepped.param_groups)
        for key, value in group.items()
        if key != "params"
    }
    arrays = {
        "loss": np.asarray(loss),
        **{_within("gradient", name): array for name, array in gradients.items()},
        **{f"after/{name}": array for name, array in side.weights().items()},
        **moments,
        "rng": torch.random.get_rng_state().numpy(),
    }
    return arrays, {"class": type(stepped).__qualname__, **settings}


def _within(*path: str) -> str:
    """The name of an array of a parameter, the module's and its own apart: it is compared within its module."""
    *parts, parameter = path
    module, _, own = parameter.rpartition(".")
    return "/".join(part for part in (*parts, module, own) if part)


def _configuration(module: torch.nn.Module) -> dict[str, dict[str, str]]:
    """What each module says of itself: its plain attributes, and which of its parameters are trained."""
    return {name or ".": _fields(one) for name, one in module.named_modules()}


def _fields(module: torch.nn.Module) -> dict[str, str]:
    plain = {
        name: said(value)
        for name, value in vars(module).items()
        # not whether it was in training: it is run in both ways
        if not name.startswith("_") and name != "training" and isinstance(value, bool | int | float | str | tuple)
    }
    trained = {name: str(p.requires_grad) for name, p in module.named_parameters(recurse=False)}
    return {"class": type(module).__qualname__, "repr": module.extra_repr(), **plain, **trained}


def _environment(side: TorchSide, dtype: str) -> dict[str, str]:
    return {
        "torch": version("torch"),
        "numpy": version("numpy"),
        "device": str(side.inputs[0].device),
        "dtype": dtype,
    }
