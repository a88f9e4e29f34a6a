"""The Flax module: run with its layers watched, each of them run alone, differentiated, trained."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.core.tracers import current_trace

from interop.engine import flatten
from interop.parity.outputs import Target, Trained, main_output
from interop.report.difference import Precision

# At level 0 a step of a deep network in float64 takes as long as its compilation.
_QUICK = {"xla_backend_optimization_level": 1}


class FlaxCall(NamedTuple):
    """One call of a layer: how it was called, and its output. Of arrays among its arguments, only their places."""

    path: str
    module: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    inputs: list[np.ndarray]
    output: np.ndarray


class _Place(NamedTuple):
    """Stands for the i-th array of a call."""

    index: int


class FlaxSide:
    """The module and its variables in one precision."""

    def __init__(
        self, module: nn.Module, variables: Mapping[str, Any], precision: Precision, inputs: tuple[np.ndarray, ...]
    ):
        self.module, self.precision = module, precision
        self.variables = jax.tree.map(self._cast, dict(variables))
        self.inputs = tuple(map(self._cast, inputs))

    def forward(self, paths: Collection[str]) -> tuple[np.ndarray, list[FlaxCall]]:
        """Runs the module in evaluation; returns the output and the calls of the layers at these paths.

        Calls inside a scan or a rematerialised part are not seen: their arrays do not outlive it.
        """
        calls = []

        def run(variables, inputs):
            outside = current_trace()

            def watch(method, args, kwargs, context):
                output = method(*args, **kwargs)
                path = "/".join(context.module.path)
                if context.method_name == "__call__" and path in paths and current_trace() == outside:
                    calls.append(_call(path, context.module.unbind()[0], args, kwargs, output))
                return output

            with nn.intercept_methods(watch):
                output = main_output(self._apply(variables, inputs, train=False))
            return output, [(call.inputs, call.output) for call in calls]

        output, arrays = _jit(run)(self.variables, self.inputs)
        seen = [
            call._replace(inputs=[_numpy(x) for x in entered], output=_numpy(left))
            for call, (entered, left) in zip(calls, arrays, strict=True)
        ]
        return _numpy(output), seen

    def refusal(self) -> str | None:
        """Says why the module cannot be traced in this precision; None if it can."""
        try:
            jax.eval_shape(partial(self._apply, train=False), self.variables, self.inputs)
        except TypeError as error:
            return str(error).splitlines()[0]
        return None

    def alone(self, calls: Sequence[FlaxCall], inputs: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Repeats the calls, each alone and on the inputs given for it, in one program."""

        def run(variables, inputs):
            return [
                main_output(
                    call.module.apply(
                        _below(variables, call.path),
                        *(_filled(value, arrays) for value in call.args),
                        **{key: _filled(value, arrays) for key, value in call.kwargs.items()},
                    )
                )
                for call, arrays in zip(calls, inputs, strict=True)
            ]

        outputs = _jit(run)(self.variables, [[self._cast(array) for array in arrays] for arrays in inputs])
        return [_numpy(output) for output in outputs]

    def gradients(self, target: Target) -> dict[str, np.ndarray]:
        """Differentiates the loss by every parameter, in evaluation."""

        def loss(params, state, inputs):
            return _loss(self._apply({"params": params, **state}, inputs, train=False), target)

        gradients = _jit(jax.grad(loss))(self.variables["params"], self._state(), self.inputs)
        return _leaves({"params": gradients})

    def train(self, target: Target, steps: int, rates: Mapping[str, float], train: bool) -> Trained:
        """Takes some steps of SGD; with ``train``, in training mode. ``rates`` are named as torch's SGD names them."""
        optimizer = optax.chain(
            optax.add_decayed_weights(rates["weight_decay"]), optax.sgd(rates["lr"], momentum=rates["momentum"])
        )

        def step(params, state, moments, inputs):
            def loss(params):
                variables = {"params": params, **state}
                if not train:
                    return _loss(self._apply(variables, inputs, train=False), target), state
                output, new = self.module.apply(variables, *inputs, train=True, mutable=list(state))
                return _loss(output, target), new

            (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            updates, moments = optimizer.update(gradients, moments, params)
            return optax.apply_updates(params, updates), new, moments, value, gradients

        params, state = self.variables["params"], self._state()
        moments, step = optimizer.init(params), _jit(step)
        losses, slopes, states = [], [], []
        for _ in range(steps):
            params, state, moments, value, gradients = step(params, state, moments, self.inputs)
            losses.append(float(value))
            slopes.append(_leaves({"params": gradients}))
            states.append(_leaves({"params": params, **state}))
        return Trained(losses, None, slopes[0], states[0], states[-1])

    def _state(self) -> dict[str, Any]:
        return {name: tree for name, tree in self.variables.items() if name != "params"}

    def _apply(self, variables: Mapping[str, Any], inputs: tuple, train: bool) -> Any:
        return self.module.apply(variables, *inputs, **({"train": train} if trains(self.module) else {}))

    def _cast(self, array: Any) -> jax.Array:
        array = jnp.asarray(array)
        return array.astype(self.precision.numpy) if jnp.issubdtype(array.dtype, jnp.floating) else array


def trains(module: nn.Module) -> bool:
    """Whether the module tells training from evaluation by an argument ``train``."""
    return "train" in inspect.signature(type(module).__call__).parameters


def shapes(module: nn.Module, inputs: tuple[np.ndarray, ...]) -> Any:
    """The variables' shapes, for ``interop.engine.to_flax``."""
    given = {"train": False} if trains(module) else {}
    return jax.eval_shape(lambda key, *inputs: module.init(key, *inputs, **given), jax.random.key(0), *inputs)


def _jit(function):
    """Compiles for few runs: on a CPU XLA's simpler code is ready sooner."""
    return jax.jit(function, compiler_options=_QUICK if jax.default_backend() == "cpu" else None)


def _loss(output: Any, target: Target) -> jax.Array:
    output = main_output(output)
    if target.labels is not None:
        return optax.softmax_cross_entropy_with_integer_labels(output, target.labels).mean()
    return (output * jnp.asarray(target.cotangent, output.dtype)).mean()


def _call(path: str, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> FlaxCall:
    inputs = []

    def place(value):
        if not isinstance(value, jax.Array):
            return value
        inputs.append(value)
        return _Place(len(inputs) - 1)

    args, kwargs = tuple(map(place, args)), {key: place(value) for key, value in kwargs.items()}
    return FlaxCall(path, module, args, kwargs, inputs, main_output(output))


def _filled(value: Any, arrays: Sequence[jax.Array]) -> Any:
    return arrays[value.index] if isinstance(value, _Place) else value


def _below(variables: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The variables of the module at a path."""
    prefix = f"{path}/" if path else ""
    below: dict[str, Any] = {}
    for collection, tree in variables.items():
        for name in path.split("/") if prefix else []:
            tree = tree.get(name, {})
        below |= {collection: tree} if tree else {}
    return below


def _leaves(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {path: _numpy(leaf) for path, leaf in flatten(variables).items()}


def _numpy(array: jax.Array) -> np.ndarray:
    """Short types become float32, which holds them exactly."""
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array
