"""Watches linen modules at work: which layers run, with what inputs, how long each takes where it runs."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from jaxkit.errors import UserError


class Layer(NamedTuple):
    """A layer of a model that ran, over the calls of one run."""

    path: str
    kind: str
    calls: int
    parameters: int
    output_bytes: int
    seconds: float
    """Median over the runs."""


class Inputs(NamedTuple):
    """What it takes to make a call again, without the model around it."""

    module: nn.Module
    """Unbound."""
    params: dict[str, Any]
    state: dict[str, Any]
    """The other collections."""
    args: tuple
    kwargs: dict[str, Any]
    rngs: dict[str, jax.Array]
    mutable: Any
    """The collections that the model could change."""


@dataclass(eq=False)
class Call:
    """One entrance to a module from outside of it."""

    path: tuple[str, ...]
    kind: str
    method: str
    parameters: int
    enclosing: "Call | None"
    inputs: "Inputs | None"
    """Where the recorder keeps them."""
    leaf: bool = True
    """Whether no module was entered within."""
    output_bytes: int = 0
    seconds: float = 0.0

    def is_layer(self, depth: int | None) -> bool:
        """Whether this is a layer at ``depth``: a module so deep, or one less deep with none inside. None: a leaf."""
        if depth is None:
            return self.leaf
        outer, above = self.enclosing, False
        while outer is not None:
            outer, above = outer.enclosing, above or len(outer.path) >= depth
        return (len(self.path) >= depth or self.leaf) and not above


@dataclass
class Recorder:
    """The calls of every run, a run being one call of a model. What sees tracers is no call, but part of its caller."""

    keep_inputs: bool = False
    runs: list[list[Call]] = field(default_factory=list)
    _stack: list[Call] = field(default_factory=list)

    def layers(self, depth: int | None = None) -> list[Layer]:
        """Sums the calls of each layer in a run, and takes the median over the runs; in order of first call.

        Args:
            depth: of the modules that count as layers, 1 being those of the model itself; None: modules without others.

        Raises:
            UserError: if nothing ran, or nothing that can be timed.
        """
        if not self.runs:
            raise UserError(
                "no layer was recorded: inside jit, grad and vmap there are only tracers, which take no time; "
                "call the model itself"
            )
        kinds, seconds = {}, defaultdict(list)
        for run in self.runs:
            for path, calls in by_path(run, depth).items():
                kinds[path] = calls
                seconds[path].append(sum(call.seconds for call in calls))
        return [
            Layer(
                shown(path),
                calls[0].kind,
                len(calls),
                calls[0].parameters,
                sum(call.output_bytes for call in calls),
                statistics.median(seconds[path]),
            )
            for path, calls in kinds.items()
        ]

    def intercept(self, run, args, kwargs, context):
        """Times one call; the interceptor that :func:`record` hands to linen."""
        module = context.module
        outer = self._stack[-1] if self._stack else None
        if module.scope is None or module.is_initializing() or _traced((args, kwargs, module.variables)):
            return run(*args, **kwargs)
        if outer is not None and outer.path == module.path:
            return run(*args, **kwargs)
        if outer is None:
            self.runs.append([])
        else:
            outer.leaf = False
        parameters = sum(leaf.size for leaf in jax.tree.leaves(module.variables.get("params", {})))
        inputs = _inputs(module, args, kwargs) if self.keep_inputs else None
        call = Call(module.path, type(module).__name__, context.method_name, parameters, outer, inputs)
        self.runs[-1].append(call)
        self._stack.append(call)
        try:
            jax.block_until_ready((args, kwargs))
            began = time.perf_counter()
            output = jax.block_until_ready(run(*args, **kwargs))
            call.seconds = time.perf_counter() - began
        finally:
            self._stack.pop()
        call.output_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(output) if isinstance(leaf, jax.Array))
        return output


@contextmanager
def record() -> Iterator[Recorder]:
    """Records the layers of whatever linen code runs inside, op by op, each waiting for the device.

    A model may run several times: the first run compiles its operations, the median over the runs leaves that out::

        with record() as recorder:
            for _ in range(5):
                model.apply(variables, images)
        for layer in recorder.layers():
            print(layer.path, layer.seconds)
    """
    recorder = Recorder()
    with nn.intercept_methods(recorder.intercept):
        yield recorder


def by_path(calls: list[Call], depth: int | None) -> dict[tuple[str, ...], list[Call]]:
    """The layers among the calls of a run, at ``depth``, with the calls of each; in order of first call."""
    found = defaultdict(list)
    for call in calls:
        if call.is_layer(depth):
            found[call.path].append(call)
    return dict(found)


def shown(path: tuple[str, ...]) -> str:
    """The path as people read it; that of the model itself is a point."""
    return "/".join(path) or "."


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _inputs(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Inputs:
    alone, variables = module.unbind()
    # the model moves its statistics in place: these are those before the call
    state = dict(jax.tree.map(lambda leaf: leaf, variables))
    params = state.pop("params", {})
    rngs = {name: rng.as_jax_rng() for name, rng in module.scope.rngs.items()}
    return Inputs(alone, params, state, args, kwargs, rngs, module.scope.mutable)
