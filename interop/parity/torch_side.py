"""The torch module: run with its layers watched, differentiated, trained."""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange

from interop.parity.outputs import Target, Trained, main_output
from interop.report.difference import Precision


class TorchCall(NamedTuple):
    """One call of a layer, in torch's layouts and types; tensors are copies."""

    name: str
    args: tuple
    kwargs: dict[str, Any]
    output: np.ndarray
    """The main one."""
    outputs: dict[str, np.ndarray]
    """All tensors of what was returned, by where they are in it: ``""``, or ``/0``, ``/sample``."""

    @property
    def inputs(self) -> list[np.ndarray]:
        """The arrays that entered, each once: self-attention is given one tensor three times."""
        given = [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, torch.Tensor)]
        return [to_numpy(tensor) for tensor in {id(tensor): tensor for tensor in given}.values()]


class TorchSide:
    """A copy of the module in one precision. The module itself stays as it is."""

    def __init__(self, module: torch.nn.Module, precision: Precision, inputs: tuple[np.ndarray, ...]):
        dtype = getattr(torch, precision.name)
        self.net = copy.deepcopy(module).to(dtype).eval()
        for parameter in self.net.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        device = next((p.device for p in self.net.parameters()), torch.device("cpu"))
        self.inputs = [_tensor(array, dtype).to(device) for array in inputs]

    def weights(self) -> dict[str, np.ndarray]:
        """The state dict; of short types in float32, which holds them exactly."""
        return {key: to_numpy(value) for key, value in self.net.state_dict().items()}

    def forward(self, names: Iterable[str]) -> tuple[np.ndarray, list[TorchCall]]:
        """Runs the module in evaluation; returns the output and the calls of the named layers as they ended."""
        calls = []
        with torch.no_grad(), _watched(self.net, names, calls.append):
            output = main_output(self.net(*self.inputs))
        return to_numpy(output), calls

    def alone(self, call: TorchCall) -> np.ndarray:
        """Repeats another precision's call of a layer in this one."""
        dtype = next(self.net.parameters()).dtype
        args = [_cast(value, dtype) for value in call.args]
        kwargs = {key: _cast(value, dtype) for key, value in call.kwargs.items()}
        with torch.no_grad():
            return to_numpy(main_output(self.net.get_submodule(call.name)(*args, **kwargs)))

    def gradients(self, target: Target, train: bool = False) -> tuple[float, dict[str, np.ndarray]]:
        """Differentiates the loss by every parameter, zeros where it does not depend on one; returns both."""
        net = copy.deepcopy(self.net).train(train)
        loss, _ = _loss(net, self.inputs, target)
        loss.backward()
        return loss.item(), _gradients(net)

    def train(self, target: Target, steps: int, rates: Mapping[str, float], train: bool) -> Trained:
        """Takes some steps of SGD; with ``train``, in training mode. ``rates`` are ``lr`` and others of torch's SGD."""
        net = copy.deepcopy(self.net).train(train)
        optimizer = torch.optim.SGD(net.parameters(), **rates)
        losses, sizes, gradients, states = [], [], [], []
        for _ in range(steps):
            optimizer.zero_grad()
            loss, output = _loss(net, self.inputs, target)
            loss.backward()
            for parameter in net.parameters():
                if parameter.grad is None:
                    # Torch leaves such a parameter alone; optax decays it like the others.
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            losses.append(loss.item())
            sizes.append(output.detach().abs().max().item())
            gradients.append(_gradients(net))
            states.append({key: to_numpy(value) for key, value in net.state_dict().items()})
        return Trained(losses, sizes, gradients[0], states[0], states[-1])


@contextmanager
def exact_products() -> Iterator[None]:
    """Keeps torch from rounding products to TF32, and from fused attention, which hides the layers inside."""
    fast = torch.backends.mha.get_fastpath_enabled()
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Copies a tensor; short types become float32, which holds them exactly."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return tensor.numpy().copy()


def _tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Images become [b c h w]."""
    array = np.asarray(rearrange(array, "b h w c -> b c h w") if array.ndim == 4 else array)
    return _cast(torch.from_numpy(array.copy()), dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _loss(net: torch.nn.Module, inputs: list[torch.Tensor], target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the output it is made of."""
    output = main_output(net(*inputs))
    if target.labels is not None:
        labels = torch.from_numpy(target.labels).to(output.device)
        return torch.nn.functional.cross_entropy(output, labels), output
    turned = rearrange(output, target.alignment.pattern, **target.alignment.sizes)
    return (turned * torch.from_numpy(target.cotangent).to(output)).mean(), output


def _gradients(net: torch.nn.Module) -> dict[str, np.ndarray]:
    named = net.named_parameters(remove_duplicate=False)
    return {key: to_numpy(torch.zeros_like(p) if p.grad is None else p.grad) for key, p in named}


@contextmanager
def _watched(net: torch.nn.Module, names: Iterable[str], record: Callable[[TorchCall], None]) -> Iterator[None]:
    """Records every call of the named layers.

    Inputs are copied before the call and outputs at once: both may be overwritten in place later.
    """
    entered: dict[str, list] = {}

    def watch(name: str) -> list:
        def before(_module, args, kwargs):
            copies: dict[int, torch.Tensor] = {}
            entered.setdefault(name, []).append(
                (tuple(_copied(a, copies) for a in args), {key: _copied(v, copies) for key, v in kwargs.items()})
            )

        def after(_module, _args, _kwargs, output):
            args, kwargs = entered[name].pop()
            copies: dict[int, np.ndarray] = {}
            outputs = {place: _array(tensor, copies) for place, tensor in _tensors("", output)}
            record(TorchCall(name, args, kwargs, _array(main_output(output), copies), outputs))

        module = net.get_submodule(name)
        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    handles = [handle for name in names for handle in watch(name)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(place: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of nested tuples, lists, dicts and data classes."""
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(f"{place}/{key}", part)
    elif isinstance(value, tuple | list):
        yield from _tensors(place, dict(enumerate(value)))
    elif dataclasses.is_dataclass(value):
        yield from _tensors(place, vars(value))


def _array(tensor: torch.Tensor, copies: dict[int, np.ndarray]) -> np.ndarray:
    """Copies a tensor to the host, the same one once."""
    if id(tensor) not in copies:
        copies[id(tensor)] = to_numpy(tensor)
    return copies[id(tensor)]


def _copied(value: Any, copies: dict[int, torch.Tensor]) -> Any:
    """Copies a tensor, a repeated one into the same copy."""
    if not isinstance(value, torch.Tensor):
        return value
    return copies.setdefault(id(value), value.detach().clone())
