"""What a model costs, layer by layer: time forward and backward, parameters, multiply-accumulates, activations."""

import statistics
import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxkit import models
from jaxkit.costs import Cost, Profile, Seconds
from jaxkit.errors import ConfigError, UserError
from jaxkit.macs import macs
from jaxkit.recorder import Call, Recorder, by_path, shown
from jaxkit.spelling import nearest

DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


def profile(run: Callable[[], Any], depth: int | None = None, iterations: int = 10) -> Profile:
    """Measures the linen model that ``run`` calls once, such as ``lambda: model.apply(variables, images)``.

    Each layer is then called by itself with the input it had in the model, compiled alone (jit) and op by op
    (``jax.disable_jit``). A time is the median over the iterations, each waiting for the device, after a warm-up that
    compiles. The backward pass of every layer, the first too, includes the gradient of its input.

    Args:
        run: called once; its mode, keys and mutable collections are those of the measurement.
        depth: of the modules that are layers, 1 being those that the model calls itself; None: those that call no
            others. What runs under ``nn.scan``, ``nn.remat`` or ``nn.jit`` has no input that could be held: it is part
            of the module that calls it.
        iterations: timed ones, 1 or more.

    Raises:
        UserError: unless ``run`` calls one linen model, once, outside of jit.
    """
    recorder = Recorder(keep_inputs=True)
    with nn.intercept_methods(recorder.intercept):
        jax.block_until_ready(run())
    if len(recorder.runs) != 1:
        raise UserError(f"a profile is of one call of one linen model, outside jit; there were {len(recorder.runs)}")
    (calls,) = recorder.runs
    cost = partial(_cost, programs={}, iterations=iterations)
    about = {
        "depth": depth,
        "iterations": iterations,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "flax": flax.__version__,
    }
    return Profile([cost(layer) for layer in by_path(calls, depth).values()], cost(calls[:1]), about)


def profile_model(
    name: str,
    batch: int,
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
    train: bool = False,
    dtype: str = "f32",
    depth: int | None = None,
    iterations: int = 10,
) -> Profile:
    """Measures a classifier of the zoo on ``batch`` random images.

    Args:
        name: one of :data:`jaxkit.models.MODELS`.
        batch: the number of images.
        image_size: their sides in pixels; None: those of the images the model was made for.
        num_classes: None: 1000 for models made for 224 pixels or more, else 100.
        train: whether batch statistics and dropout are as in training.
        dtype: ``f32`` or ``bf16``, of the arithmetic. Parameters are float32.
        depth: as in :func:`profile`.
        iterations: as in :func:`profile`.

    Raises:
        ConfigError: for an unknown name, a number below 1, or a size that the model cannot serve.
    """
    numbers = {"batch": batch, "image-size": image_size, "num-classes": num_classes, "iterations": iterations}
    for flag, number in {**numbers, "depth": depth}.items():
        if number is not None and number < 1:
            raise ConfigError(f"--{flag} {number}: must be 1 or more")
    if name not in models.MODELS:
        raise ConfigError(f"--model {name}: no model is named {name!r}{nearest(name, models.MODELS)}")
    side = image_size or models.IMAGE_SIDES[name]
    classes = num_classes or (1000 if models.IMAGE_SIDES[name] >= 224 else 100)
    model = models.build(name, num_classes=classes, dtype=DTYPES[dtype])
    images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, side, side, 3)), jnp.float32)
    key = jax.random.key(0)
    # the program runs once: it is not worth compiling well
    variables = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 1})(key, images)
    apply = partial(model.apply, variables, images)
    if train:
        state = [collection for collection in variables if collection != "params"]
        apply = partial(apply, train=True, mutable=state, rngs={"dropout": key})
    measured = profile(apply, depth, iterations)
    about = {
        "model": name,
        "batch": batch,
        "image_size": side,
        "num_classes": classes,
        "train": train,
        "dtype": dtype,
        "macs_per_image": measured.whole.macs / batch,
    }
    return replace(measured, about={**about, **measured.about})


class Program(NamedTuple):
    """A layer as functions of the arrays that have gradients and those that have none: ``moving, fixed -> ...``."""

    forward: Callable
    jitted_forward: Callable
    vjp: Callable
    """To the output and the function that takes its gradient back."""
    jitted_vjp: Callable


def _cost(calls: list[Call], programs: dict[Hashable, Program], iterations: int) -> Cost:
    """Measures each call of one layer, and adds them up."""
    counts, forward, backward = zip(*(_measure(call, programs, iterations) for call in calls), strict=True)
    return Cost(
        path=shown(calls[0].path),
        kind=calls[0].kind,
        calls=len(calls),
        parameters=calls[0].parameters,
        macs=sum(counts),
        output_bytes=sum(call.output_bytes for call in calls),
        forward=Seconds(*map(sum, zip(*forward, strict=True))),
        backward=Seconds(*map(sum, zip(*backward, strict=True))),
    )


def _measure(call: Call, programs: dict[Hashable, Program], iterations: int) -> tuple[int | float, Seconds, Seconds]:
    """Multiply-accumulates, time forward and time backward of one call."""
    program, moving, fixed = _program(call, programs)
    output, back = program.jitted_vjp(moving, fixed)
    gradient = jax.tree.map(jnp.ones_like, output)
    forward_jit = _median(partial(program.jitted_forward, moving, fixed), iterations)
    backward_jit = _median(partial(_pull_back, back, gradient), iterations)
    with jax.disable_jit():
        forward_eager = _median(partial(program.forward, moving, fixed), iterations)
        _, back = program.vjp(moving, fixed)
        backward_eager = _median(partial(back, gradient), iterations)
    count = macs(program.forward, moving, fixed)
    return count, Seconds(forward_jit, forward_eager), Seconds(backward_jit, backward_eager)


@jax.jit
def _pull_back(back: Callable, gradient: Any) -> Any:
    return back(gradient)


def _median(run: Callable[[], Any], iterations: int) -> float:
    # the first call compiles, the second finds everything in its place
    for _ in range(2):
        jax.block_until_ready(run())
    seconds = []
    for _ in range(iterations):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _program(call: Call, programs: dict[Hashable, Program]) -> tuple[Program, dict[int, Any], dict[int, Any]]:
    """The functions of a call, and their arguments; kept in ``programs``, so of many equal layers one is compiled."""
    inputs = call.inputs
    learnt = (inputs.params, inputs.args, inputs.kwargs)
    leaves, tree = jax.tree.flatten((learnt, (inputs.state, inputs.rngs)))
    moving = {i: leaf for i, leaf in enumerate(leaves[: len(jax.tree.leaves(learnt))]) if _has_gradient(leaf)}
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, (jax.Array, np.ndarray))}
    fixed = {i: leaf for i, leaf in arrays.items() if i not in moving}
    constants = {i: leaf for i, leaf in enumerate(leaves) if i not in arrays}

    typed = tuple((i, type(leaf), leaf) for i, leaf in constants.items())
    key = (inputs.module, call.method, tree, typed, repr(inputs.mutable))
    key = key if _hashable(key) else id(call)
    if key not in programs:
        programs[key] = _functions(inputs.module, call.method, tree, constants, inputs.mutable)
    return programs[key], moving, fixed


def _functions(module: nn.Module, method: str, tree: Any, constants: dict[int, Any], mutable: Any) -> Program:
    """Makes a module's method a function of the numbered leaves of all that it reads."""

    def forward(moving, fixed):
        leaves = constants | moving | fixed
        ordered = [leaves[i] for i in range(len(leaves))]
        (params, args, kwargs), (state, rngs) = jax.tree.unflatten(tree, ordered)
        variables = {"params": params, **state}
        result = module.apply(variables, *args, **kwargs, method=method, rngs=rngs, mutable=mutable)
        return (result, {}) if mutable is False else result

    def vjp(moving, fixed):
        def output(moving):
            return [leaf for leaf in jax.tree.leaves(forward(moving, fixed)[0]) if _has_gradient(leaf)]

        return jax.vjp(output, moving)

    return Program(forward, jax.jit(forward), vjp, jax.jit(vjp))


def _has_gradient(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray)) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
