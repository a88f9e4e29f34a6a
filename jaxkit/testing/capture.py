"""What a linen model computes in one step of training, module by module, as named arrays."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import PyTree

from jaxkit.recorder import Call, Recorder, shown

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# of what is closed over, which may close over itself
_DEEPEST = 12
# At level 0 XLA is not much sooner ready than at 1, and a step takes long.
_QUICK = {"xla_backend_optimization_level": 1}


class Records(NamedTuple):
    """Named arrays of one run, in the order in which they came to be, and what the run was.

    The first part of a name is its role: ``before``, ``forward``, ``loss``, ``gradient``, ``after``, ``state``,
    ``optimizer``, ``rng``.
    """

    arrays: dict[str, np.ndarray]
    configuration: dict[str, dict[str, str]]
    """The fields of every module that ran, and the settings of the optimizer, in words."""
    environment: dict[str, str]
    """Versions, device and precision: other numbers are no surprise where these differ."""


def linen_records(
    model: nn.Module,
    *inputs: Any,
    seed: int = 0,
    variables: Mapping[str, Any] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    rngs: Sequence[str] = ("dropout",),
    **keywords: Any,
) -> Records:
    """Runs a model forward and takes a step of training, every product in full precision.

    Each module's inputs and outputs are those of :class:`jaxkit.recorder.Recorder`, op by op; what runs inside a
    lifted transformation (``nn.scan``, ``nn.remat``) shows in the module around it alone. The loss is the mean of every
    output times seeded random numbers. A model with an argument ``train`` is run in training mode, its dropout drawn
    from the seed.

    Args:
        model: unbound.
        inputs: arrays, or trees of arrays.
        seed: of variables, dropout and loss.
        variables: default: the model's own initialisation.
        optimizer: default: AdamW, its epsilon large enough that a gradient of 0 but for roundings moves nothing.
        rngs: the names of the streams of random numbers that the model draws from.
        keywords: further arguments of the model, such as ``deterministic=False``; not traced.
    """
    inputs = jax.tree.map(jnp.asarray, inputs)
    key_init, *keys = jax.random.split(jax.random.key(seed), 1 + len(rngs))
    named = {"train": True} if "train" in inspect.signature(type(model).__call__).parameters else {}
    named, rngs = {**named, **keywords}, dict(zip(rngs, keys, strict=True))
    optimizer = optimizer or optax.adamw(1e-3, eps=1e-4, weight_decay=1e-2)
    with jax.default_matmul_precision("highest"):
        if variables is None:
            start = {"params": key_init, **rngs}
            variables = jax.jit(partial(model.init, **named), compiler_options=_options())(start, *inputs)
        state = dict(variables)
        params = state.pop("params", {})
        apply = partial(model.apply, **named, rngs=rngs, mutable=list(state))
        calls = _calls(partial(apply, {"params": params, **state}, *inputs))
        step = jax.jit(partial(_step, apply, optimizer, seed), compiler_options=_options())
        result = step(params, state, optimizer.init(params), inputs)
    trees = {
        "rng": {name: jax.random.key_data(key) for name, key in rngs.items()},
        "before": {"params": params, **state},
    }
    arrays = {name: leaf for role, tree in trees.items() for name, leaf in _leaves(role, tree)}
    for name, call, output in calls:
        entered = {"args": call.inputs.args, "kwargs": call.inputs.kwargs}
        arrays |= dict(_leaves(f"forward/{name}/input", entered)) | dict(_leaves(f"forward/{name}/output", output))
    arrays |= {name: leaf for role, tree in result.items() for name, leaf in _leaves(role, tree)}
    fields = {name: _fields(call.inputs.module) for name, call, _ in calls}
    return Records(arrays, {**fields, "optimizer": {"transformation": said(optimizer)}}, environment())


def environment() -> dict[str, str]:
    """What jax's numbers depend on beside the code."""
    return {
        **{name: version(name) for name in _PACKAGES},
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "x64": str(jax.config.jax_enable_x64),
        "matmul_precision": "highest",
    }


def _calls(run) -> list[tuple[str, Call, Any]]:
    """The calls of a run with their outputs, each under its path and how many of that path came before."""
    recorder, outputs = Recorder(keep_inputs=True), {}

    def watch(method, args, kwargs, context):
        before = sum(map(len, recorder.runs))
        output = recorder.intercept(method, args, kwargs, context)
        # the first call that was added is this one, those after it are of the modules inside
        if sum(map(len, recorder.runs)) > before:
            outputs[before] = output
        return output

    with nn.intercept_methods(watch):
        run()
    calls, seen = [call for run in recorder.runs for call in run], {}
    named = []
    for place, call in enumerate(calls):
        path = shown(call.path) + ("" if call.method == "__call__" else f".{call.method}")
        seen[path] = seen.get(path, -1) + 1
        named.append((f"{path}:{seen[path]}" if seen[path] else path, call, outputs[place]))
    return named


def _step(
    apply, optimizer, seed: int, params: PyTree, state: PyTree, moments: PyTree, inputs: tuple
) -> dict[str, PyTree]:
    """One step, by role."""

    def loss(params):
        output, new = apply({"params": params, **state}, *inputs)
        return _scalar(output, seed), new

    (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, moments = optimizer.update(gradient, moments, params)
    after = optax.apply_updates(params, updates)
    return {"loss": value, "gradient": gradient, "after": after, "state": new, "optimizer": moments}


def _scalar(output: PyTree, seed: int) -> jax.Array:
    """The mean of every floating output times random numbers, summed."""
    rng = np.random.default_rng(seed)
    leaves = [leaf for leaf in jax.tree.leaves(output) if jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.inexact)]
    return sum((leaf * _weights(rng, leaf)).real.mean() for leaf in leaves)


def _weights(rng: np.random.Generator, leaf: jax.Array) -> jax.Array:
    drawn = rng.normal(size=leaf.shape)
    return jnp.asarray(drawn + 1j * rng.normal(size=leaf.shape) if jnp.iscomplexobj(leaf) else drawn, leaf.dtype)


def _leaves(prefix: str, tree: PyTree) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a tree under their paths; what is no array is no leaf."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, (jax.Array, np.ndarray)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            yield f"{prefix}/{name}" if name else prefix, np.asarray(leaf)


def _fields(module: nn.Module) -> dict[str, str]:
    """A module's own fields in words, addresses left out."""
    names = [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")]
    return {"class": type(module).__qualname__, **{name: said(getattr(module, name)) for name in names}}


def said(value: Any, depth: int = 0) -> str:
    """Says what a value is, without addresses: numbers as they are, functions by name and what they close over."""
    inner = partial(said, depth=depth + 1)
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (np.generic, np.ndarray, jax.Array)) and value.size == 1:
        return repr(value.item())
    if depth == _DEEPEST:
        return "..."
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(inner, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {inner(item)}' for key, item in value.items())}}}"
    if isinstance(value, partial):
        return f"{inner(value.func)}{inner(value.args)}{inner(value.keywords)}"
    if inspect.isfunction(value):
        # the numbers of a gradient transformation are in its closures, and nowhere else
        closed = inspect.getclosurevars(value).nonlocals
        return f"{value.__qualname__}({', '.join(f'{name}={inner(item)}' for name, item in closed.items())})"
    return getattr(value, "__qualname__", None) or getattr(value, "name", None) or type(value).__qualname__


def _options() -> dict[str, int] | None:
    return _QUICK if jax.default_backend() == "cpu" else None
