"""Whether a NIR graph does what a network does: both run on random spikes, compared group by group, step by step.

The graph is run in NumPy, by the contract that its metadata states, by code that shares nothing with the network's.
"""

from collections.abc import Callable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum
from jax import lax

from interop.spiking.nir_graph import circuit, package, read_nir
from jaxkit.errors import ConfigError
from jaxkit.spiking.layers import Biclique, Layer, RecurrentSerial

Stepper = Callable[[np.ndarray], np.ndarray]


class Trace(NamedTuple):
    """What neurons did: ``spikes`` and ``voltage`` in mV, ``[t b ...]``."""

    spikes: np.ndarray
    voltage: np.ndarray


class Difference(NamedTuple):
    """How far a group of neurons is from the network's, the largest of every step ``[t]``."""

    spikes: np.ndarray
    voltage: np.ndarray
    """mV"""
    fired: float
    """The part of all neurons and steps that spiked: a comparison of silence says little."""


def compare_nir(
    network: Any, params: Any, source: Any, *, steps: int = 50, batch: int = 2, rate: float = 0.3, seed: int = 0
) -> dict[str, Difference]:
    """Runs a network and the graph that was written of it on the same random spikes.

    Args:
        network, params: as given to :func:`interop.spiking.to_nir`.
        source: the graph, or the path of its file.
        steps, batch: of the run.
        rate: how likely an input spikes at a step.
        seed: of the inputs.

    Returns:
        of every group of neurons, by its node's name, the differences.
    """
    graph = read_nir(source) if isinstance(source, str | Path) else source
    parts, rng = circuit(network, params), np.random.default_rng(seed)
    inputs = {name: rng.random((steps, batch, *shape)) < rate for name, shape in parts.inputs.items()}
    theirs = run_graph(graph, {name: spikes.astype(np.float32) for name, spikes in inputs.items()})
    ours = _run_network(network, params, {name: jnp.asarray(spikes, jnp.float32) for name, spikes in inputs.items()})
    found = {}
    for name, trace in ours.items():
        flat = [value.reshape(steps, -1) for value in (*trace, *theirs[name])]
        spikes, voltage = (np.abs(a - b).max(1) for a, b in zip(flat[:2], flat[2:], strict=True))
        found[name] = Difference(spikes, voltage, float(trace.spikes.mean()))
    return found


def _run_network(network: Any, params: Any, inputs: Mapping[str, jax.Array]) -> dict[str, Trace]:
    [batch] = {spikes.shape[1] for spikes in inputs.values()}
    layers = [network] if isinstance(network, Layer) else list(network)
    given = [params] if isinstance(network, Layer) else list(params)
    x: Any = {name.removeprefix("input_"): spikes for name, spikes in inputs.items()}
    x = x if isinstance(network, Biclique) else x["input"]
    found = {}
    for number, (layer, one) in enumerate(zip(layers, given, strict=True)):
        plans = layer.plan(jax.tree.map(jnp.asarray, dict(one)))

        def advance(carry, x, layer=layer, plans=plans):
            step = layer.step(plans, carry, x)
            return step.carry, (step.spikes, {name: state.voltage for name, state in step.carry.neurons.items()})

        with jax.default_matmul_precision("highest"):
            _, (spikes, voltages) = lax.scan(advance, layer.initialize_carry(batch), x)
        named = spikes if isinstance(layer, Biclique | RecurrentSerial) else {"neuron": spikes}
        suffix = "" if isinstance(network, Layer) else str(number)
        found |= {f"{name}{suffix}": Trace(np.asarray(named[name]), np.asarray(voltages[name])) for name in named}
        x = spikes
    return found


def run_graph(graph: Any, inputs: Mapping[str, np.ndarray], dt: float | None = None) -> dict[str, Trace]:
    """Runs a graph by the contract, in float32: what every group of neurons did.

    Args:
        graph: of Input, Output, Linear, Affine, Scale, Conv2d, Delay, Flatten, LIF and CubaLIF nodes.
        inputs: of each Input, by name, ``[t b ...]``.
        dt: s; None: the metadata's.

    Raises:
        ConfigError: for other nodes, loops without a Delay, and a graph without ``dt``.
    """
    dt = graph.metadata.get("dt") if dt is None else dt
    if dt is None:
        raise ConfigError("the graph's metadata has no dt; give one, in seconds")
    batch = next(iter(inputs.values())).shape[1]
    steppers = {name: _stepper(node, name, batch, dt) for name, node in graph.nodes.items()}
    late = {name for name, node in graph.nodes.items() if _is_late(node, dt)}
    before = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    try:
        order = [*TopologicalSorter({name: [] if name in late else before[name] for name in before}).static_order()]
    except CycleError as error:
        raise ConfigError(f"the graph has a loop without a Delay: {' -> '.join(error.args[1])}") from error
    traces: dict[str, list] = {name: [] for name in graph.nodes if isinstance(steppers[name], _Spiking)}
    for t in range(len(next(iter(inputs.values())))):
        values: dict[str, np.ndarray] = {}
        for name in order:
            if name in late:
                values[name] = steppers[name].arriving()
            elif name in inputs:
                values[name] = inputs[name][t]
            else:
                values[name] = steppers[name](sum(values[source] for source in before[name]))
            if name in traces:
                traces[name].append((values[name], steppers[name].voltage))
        for name in late:
            steppers[name].push(sum(values[source] for source in before[name]))
    return {name: Trace(*map(np.stack, zip(*found, strict=True))) for name, found in traces.items()}


def _is_late(node: Any, dt: float) -> bool:
    return isinstance(node, package().Delay) and bool((np.round(node.delay / dt) >= 1).all())


def _stepper(node: Any, name: str, batch: int, dt: float) -> Any:
    """What takes a node through a step."""
    nir = package()
    match node:
        case nir.Input() | nir.Output():
            return lambda x: x
        case nir.Flatten():
            return lambda x: x.reshape(batch, -1)
        case nir.Affine():
            return lambda x: x @ np.float32(node.weight).T + np.float32(node.bias)
        case nir.Linear():
            return lambda x: x @ np.float32(node.weight).T
        case nir.Scale():
            return lambda x: x * np.float32(node.scale)
        case nir.Conv2d(groups=1):
            return lambda x: _convolved(x, node)
        case nir.Delay():
            return _Delayed(node, batch, dt)
        case nir.LIF() | nir.CubaLIF():
            return _Spiking(node, batch, dt)
    raise ConfigError(f"{name}: a {type(node).__name__} node is not run")


def _convolved(x: np.ndarray, node: Any) -> np.ndarray:
    (top, left), (down, right), (wide, long) = (
        np.broadcast_to(value, 2) for value in (node.padding, node.stride, node.dilation)
    )
    kh, kw = node.weight.shape[2:]
    padded = np.pad(x, [(0, 0), (0, 0), (top, top), (left, left)])
    reach = (wide * (kh - 1) + 1, long * (kw - 1) + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, (2, 3))[:, :, ::down, ::right, ::wide, ::long]
    y = einsum(windows, np.float32(node.weight), "b c h w kh kw, f c kh kw -> b f h w")
    return y + np.float32(node.bias)[:, None, None]


class _Delayed:
    """Keeps the past of a Delay."""

    def __init__(self, node: Any, batch: int, dt: float):
        self.steps = np.round(node.delay / dt).astype(int)
        self.past = np.zeros((self.steps.max() + 1, batch, *self.steps.shape), np.float32)

    def push(self, x: np.ndarray) -> None:
        self.past = np.concatenate([x[None], self.past[:-1]])

    def read(self, steps: np.ndarray) -> np.ndarray:
        index = np.broadcast_to(steps, self.past.shape[1:])[None]
        return np.take_along_axis(self.past, index, 0)[0]

    def arriving(self) -> np.ndarray:
        """What arrives at a step, before what is sent at it is known."""
        return self.read(self.steps - 1)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.push(x)
        return self.read(self.steps)


class _Spiking:
    """The state of LIF or CubaLIF neurons."""

    def __init__(self, node: Any, batch: int, dt: float):
        names = ("r", "v_leak", "v_threshold", "v_reset")
        self.r, self.v_leak, self.v_threshold, self.v_reset = (np.float32(getattr(node, name)) for name in names)
        self.filter = hasattr(node, "tau_syn")
        tau = node.tau_mem if self.filter else node.tau
        self.decay = np.float32(np.exp(-dt / tau))
        if self.filter:
            self.fade, self.gain = np.float32(np.exp(-dt / node.tau_syn)), np.float32(dt / node.tau_syn * node.w_in)
        start = np.float32(node.metadata.get("v_initial", node.v_leak))
        self.voltage = np.broadcast_to(start, (batch, *node.v_leak.shape))
        self.current = np.zeros_like(self.voltage)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.current = self.current * self.fade + self.gain * x if self.filter else x
        driven = self.r * self.current
        voltage = self.v_leak + (self.voltage - self.v_leak - driven) * self.decay + driven
        spikes = voltage >= self.v_threshold
        self.voltage = np.where(spikes, self.v_reset, voltage)
        return spikes.astype(np.float32)
