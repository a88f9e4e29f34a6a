"""NIR graphs as our networks, where these do exactly what the contract says; anything else is refused by name.

Read are chains of LIF and CubaLIF neurons, fed by Linear, Affine, Scale or Conv2d nodes, each behind a Delay or not:
branches that differ in their delay become one connection with a delay of each synapse's own.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from interop.spiking.nir_graph import MS, read_nir
from jaxkit.errors import ConfigError
from jaxkit.spiking.connections import Connection, Conv2D, LinearDense, LinearDirect
from jaxkit.spiking.layers import Serial
from jaxkit.spiking.neurons import LIF
from jaxkit.spiking.synapses import DeltaPlusCurrent, SingleExponentialCurrent

_SPIKING = ("LIF", "CubaLIF")
_WEIGHTS = {"Linear": "dense", "Affine": "dense", "Scale": "direct", "Conv2d": "convolution"}
_PASSED = ("Delay", "Flatten")
_KNOWN = ("Input", "Output", *_SPIKING, *_WEIGHTS, *_PASSED)


class Imported(NamedTuple):
    """A Serial layer and its parameters, or lists of both in the order of the chain; and what there is to say."""

    network: Any
    params: Any
    notes: list[str]


class Branch(NamedTuple):
    """Weights on their way from one node to another."""

    name: str
    node: Any
    delay: np.ndarray
    """ms, of every input"""
    origin: str


def from_nir(source: Any, step_time: float | None = None) -> Imported:
    """Reads a graph as layers.

    Spikes weigh what the graph says (``spike_charge`` is the step time). A ``v_leak`` that differs from the metadata's
    ``v_initial`` is a bias. What the graph calls spiking above the threshold spikes at it.

    Args:
        source: a graph, or the path of its file.
        step_time: ms; None: the metadata's ``dt``.

    Raises:
        ConfigError: naming every node of another kind, or the first that cannot be what it says.
        FileError: if the file is none.
    """
    graph = read_nir(source) if isinstance(source, str | Path) else source
    strange = [f"{name} ({_kind(node)})" for name, node in graph.nodes.items() if _kind(node) not in _KNOWN]
    if strange:
        raise ConfigError(f"no layers do what these nodes say: {', '.join(strange)}; known: {', '.join(_KNOWN)}")
    dt = graph.metadata.get("dt")
    if step_time is None and dt is None:
        raise ConfigError("the graph's metadata has no dt; give a step_time, in ms")
    step = step_time if step_time is not None else round(float(dt) / MS, 9)
    notes: list[str] = []
    layers, params = [], []
    for name, found in _chain(graph):
        layer, given = _layer(graph, name, found, step, notes)
        layers.append(layer)
        params.append(given)
    return Imported(*((layers[0], params[0]) if len(layers) == 1 else (layers, params)), notes)


def _kind(node: Any) -> str:
    return type(node).__name__


def _before(graph: Any, name: str) -> list[str]:
    return [a for a, b in graph.edges if b == name]


def _chain(graph: Any) -> list[tuple[str, list[Branch]]]:
    """The groups of neurons from the input to the output, with what feeds each."""
    fed = {}
    for name, node in graph.nodes.items():
        if _kind(node) not in _SPIKING:
            continue
        found = [_branch(graph, source, name) for source in _before(graph, name)]
        if len(origins := {branch.origin for branch in found}) != 1:
            raise ConfigError(f"{name} is fed by {sorted(origins) or 'nothing'}; a layer's connection has one source")
        if (first := origins.pop()) in fed:
            raise ConfigError(f"{first} feeds both {fed[first][0]} and {name}; layers are read one after the other")
        fed[first] = (name, found)
    heads = [name for name, node in graph.nodes.items() if _kind(node) == "Input"]
    chain, last = [], heads[0] if heads else ""
    while last in fed:
        chain.append(fed.pop(last))
        last = chain[-1][0]
    if len(heads) != 1 or fed or not chain:
        left = ", ".join([*heads[1:], *(name for name, _ in fed.values())]) or "it has no input or no neurons"
        raise ConfigError(f"the graph is no chain from one input on: {left}; loops are not read")
    outputs = [name for name, node in graph.nodes.items() if _kind(node) == "Output"]
    if any(_before(graph, name) != [last] for name in outputs):
        raise ConfigError(f"the outputs {', '.join(outputs)} must come from {last} alone, the last neurons")
    return chain


def _branch(graph: Any, name: str, target: str) -> Branch:
    """Follows what feeds neurons back to where it comes from."""
    node, delay, at = graph.nodes[name], np.zeros(()), name
    if _kind(node) not in _WEIGHTS:
        raise ConfigError(f"{name} ({_kind(node)}) feeds {target}; weights must: {', '.join(_WEIGHTS)}")
    while True:
        sources = _before(graph, at)
        if len(sources) != 1:
            raise ConfigError(f"{at} is fed by {sources or 'nothing'}; one node can be read")
        [at] = sources
        kind = _kind(graph.nodes[at])
        if kind not in _PASSED:
            break
        if kind == "Delay":
            delay = delay + np.asarray(graph.nodes[at].delay, np.float64).reshape(_inputs(node)) / MS
    if kind not in ("Input", *_SPIKING):
        raise ConfigError(f"{at} ({kind}) feeds {name}; only an input or neurons can")
    return Branch(name, node, np.broadcast_to(delay, _inputs(node)), at)


def _inputs(node: Any) -> tuple[int, ...]:
    if _kind(node) == "Conv2d":
        return (node.weight.shape[1], *map(int, node.input_shape))
    return (node.scale if _kind(node) == "Scale" else node.weight).shape[-1:]


def _layer(graph: Any, name: str, found: list[Branch], step: float, notes: list[str]) -> tuple[Serial, Any]:
    node = graph.nodes[name]
    kinds = {_WEIGHTS[_kind(branch.node)] for branch in found}
    if len(kinds) > 1:
        raise ConfigError(f"{name} is fed by {' and '.join(sorted(kinds))} weights; a connection is of one kind")
    weight, delay, bias = _joined(found, name)
    start = float(node.metadata["v_initial"] if "v_initial" in node.metadata else _same(node, "v_leak", name))
    bias = bias + (node.v_leak - start) / node.r
    filtered = _kind(node) == "CubaLIF"
    if filtered:
        weight = weight * _same(node, "w_in", name)
        if any(np.any(getattr(branch.node, "bias", 0)) for branch in found):
            raise ConfigError(f"{name}: a bias that goes through tau_syn, as that of its weights, is no bias of ours")
    between = np.abs(delay / step - np.round(delay / step)) > 1e-3
    if count := int(between.sum()):
        notes.append(f"{name}: {count} delays lie between steps, and arrive at the next")
    options = {
        "synapse": _synapse(node, name, step),
        "bias": bool(np.any(bias)),
        "delay": float(delay.max()) if delay.any() else None,
    }
    connection = _connection(graph, found[0], step, options)
    params = {"weight": weight, "delay": delay, "bias": _biases(connection, bias, name)}
    names = ("weight", *(("bias",) if connection.bias else ()), *(("delay",) if connection.delayed else ()))
    given = {key: jnp.asarray(params[key], jnp.float32) for key in names}
    return Serial(connection, _neuron(node, name, start, connection.outshape, step)), {"connection": given}


def _joined(found: list[Branch], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, delays in ms and bias of all branches together."""
    weights = [np.asarray(getattr(branch.node, "scale", getattr(branch.node, "weight", None))) for branch in found]
    delays = [np.broadcast_to(_delays(branch), weight.shape) for branch, weight in zip(found, weights, strict=True)]
    used = np.stack([weight != 0 for weight in weights])
    if twice := int((used.sum(0) > 1).sum()):
        raise ConfigError(f"{name}: {twice} synapses are there with several delays; one connection has one of each")
    bias = sum(np.asarray(getattr(branch.node, "bias", 0.0), np.float64) for branch in found)
    if _kind(found[0].node) == "Conv2d":
        bias = bias[:, None, None]
    return sum(weights), (used * np.stack(delays)).sum(0), bias


def _delays(branch: Branch) -> np.ndarray:
    if _kind(branch.node) != "Conv2d":
        return branch.delay
    if np.any(branch.delay != branch.delay[:, :1, :1]):
        raise ConfigError(f"{branch.name}: the Delay before it differs between pixels; a convolution's does not")
    return branch.delay[:, :1, :1]


def _connection(graph: Any, branch: Branch, step: float, options: dict[str, Any]) -> Connection:
    node = branch.node
    if _kind(node) == "Scale":
        return LinearDirect(int(node.scale.size), step, **options)
    if _kind(node) != "Conv2d":
        source = graph.nodes[branch.origin].output_type["output"]
        return LinearDense(tuple(map(int, source)), int(node.weight.shape[0]), step, **options)
    if node.groups != 1 or isinstance(node.padding, str):
        raise ConfigError(f"{branch.name}: groups and paddings by name are not read")
    filters, channels, *kernel = node.weight.shape
    given = {
        name: tuple(map(int, np.broadcast_to(getattr(node, name), 2))) for name in ("stride", "padding", "dilation")
    }
    return Conv2D(*map(int, node.input_shape), channels, filters, step, tuple(kernel), **given, **options)


def _biases(connection: Connection, bias: np.ndarray, name: str) -> np.ndarray:
    full = np.broadcast_to(bias, connection.product_shape)
    if not isinstance(connection, Conv2D):
        return full
    if np.any(full != full[:, :1, :1]):
        raise ConfigError(f"{name}: v_leak differs between the pixels of a map; a convolution has a bias of each map")
    return full[:, 0, 0]


def _synapse(node: Any, name: str, step: float) -> DeltaPlusCurrent | SingleExponentialCurrent:
    # float32 cannot hold every multiple of a step
    given = {"spike_charge": step, "interp_tol": 1e-3 * step}
    if _kind(node) == "LIF":
        return DeltaPlusCurrent(**given)
    return SingleExponentialCurrent(time_constant=_same(node, "tau_syn", name) / MS, **given)


def _neuron(node: Any, name: str, rest: float, shape: tuple[int, ...], step: float) -> LIF:
    tau = _same(node, "tau" if _kind(node) == "LIF" else "tau_mem", name) / MS
    try:
        return LIF(
            shape,
            step,
            rest_v=rest,
            reset_v=_same(node, "v_reset", name),
            thresh_v=_same(node, "v_threshold", name),
            refrac_t=0.0,
            time_constant=tau,
            resistance=_same(node, "r", name),
        )
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def _same(node: Any, field: str, name: str) -> float:
    """The value of a field that all neurons must share."""
    values = np.unique(getattr(node, field))
    if len(values) != 1:
        raise ConfigError(
            f"{name}: {field} differs between neurons, {values.min():g} to {values.max():g}; ours share it"
        )
    return float(values[0])
