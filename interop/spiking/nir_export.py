"""Our networks as NIR graphs: per-synapse delays as branches, one Delay and its weights for every step that is read."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from interop.spiking.nir_graph import CONTRACT, MS, UNITS, Circuit, Wire, circuit, package
from jaxkit.errors import ConfigError, UserError
from jaxkit.spiking.connections import Connection, Conv2D
from jaxkit.spiking.neurons import GLIF1, GLIF2, LIF, Neuron
from jaxkit.spiking.neurons.adaptive import AdaptiveThreshold
from jaxkit.spiking.synapses import DoubleExponentialCurrent, SingleExponentialCurrent, Synapse


class Exported(NamedTuple):
    """A graph, and what of the network it does not say."""

    graph: Any
    losses: list[str]


class Branches(NamedTuple):
    """A connection as a graph has it: weights ``[o i]`` (or its own layout) of every delay in steps, and a bias."""

    weights: dict[int, np.ndarray]
    bias: np.ndarray | None


def to_nir(network: Any, params: Any, *, strict: bool = False) -> Exported:
    """Writes a network as a graph of Linear, Affine, Scale, Conv2d, Delay, Flatten, LIF and CubaLIF nodes.

    The graph's metadata has the step time in s and the contract (:data:`interop.spiking.nir_graph.CONTRACT`) by which
    it does what the network does. A spike is 1; its charge is in the weights. An exponential synapse becomes the
    neurons' ``tau_syn``, and its bias part of their ``v_leak``. A feedback has its step of delay as a Delay. State,
    surrogate gradients and longest delays are no part of NIR.

    Args:
        network: a layer, or a list of Serial layers that follow one another.
        params: of the layer, or a list of each one's.
        strict: whether losses are refused.

    Raises:
        ConfigError: naming it, for what no graph is near to.
        UserError: listing all losses, if ``strict``.
    """
    nir, parts, losses = package(), circuit(network, params), []
    step_time = _step_time(parts)
    nodes = {name: nir.Input({"input": np.array(shape)}) for name, shape in parts.inputs.items()}
    shapes = {name: _node_shape(parts, name) for name in parts.neurons}
    edges: list[tuple[str, str]] = []
    drives = {name: np.zeros(shape) for name, shape in shapes.items()}
    for wire in parts.wires:
        source = parts.inputs.get(wire.source) or shapes[wire.source]
        bias = _wire(nir, nodes, edges, wire, source, losses)
        for target in wire.targets:
            drives[target] = drives[target] + bias
    for name, neuron in parts.neurons.items():
        tau_syn = _shared_filter(parts, name, losses)
        nodes[name] = _neuron(nir, neuron, tau_syn, drives[name], name, losses)
    for name in parts.outputs:
        output = "output" if len(parts.outputs) == 1 else f"output_{name}"
        nodes[output] = nir.Output({"output": np.array(shapes[name])})
        edges.append((name, output))
    if strict and losses:
        raise UserError("\n  ".join(["NIR cannot say all of this network:", *losses]))
    metadata = {"dt": step_time * MS, "scheme": CONTRACT} | {f"unit_{name}": unit for name, unit in UNITS.items()}
    return Exported(nir.NIRGraph(nodes, edges, metadata=metadata, type_check=False), losses)


def _step_time(parts: Circuit) -> float:
    times = {part.step_time for part in (*parts.neurons.values(), *(wire.connection for wire in parts.wires))}
    if len(times) > 1:
        raise ConfigError(f"the network's parts have several step times, {sorted(times)} ms; a graph has one dt")
    return times.pop()


def _node_shape(parts: Circuit, name: str) -> tuple[int, ...]:
    """Maps for convolutions, else flat: NIR's linear nodes know one axis."""
    [shape, *others] = {wire.connection.product_shape for wire in parts.wires if name in wire.targets}
    if others:
        raise ConfigError(f"{name}: a convolution and a flat connection feed the same neurons, which no graph can say")
    return shape


def _wire(nir: Any, nodes: dict, edges: list, wire: Wire, source: tuple[int, ...], losses: list[str]) -> np.ndarray:
    """Adds a connection's nodes and edges; returns the bias that must go into ``v_leak``, ``[*n]`` or 0."""
    connection, origin, flat = wire.connection, wire.source, not isinstance(wire.connection, Conv2D)
    shape = connection.synapse_shape
    if flat and len(source) > 1:
        origin = f"{wire.name}_flatten"
        nodes[origin] = nir.Flatten({"input": np.array(source)}, 0, -1)
        edges.append((wire.source, origin))
    elif source != shape:
        raise ConfigError(f"{wire.name}: a graph cannot bring {source} of {wire.source} into the shape {shape}")
    weights, bias = branches(connection, wire.params)
    losses += _delay_losses(wire)
    inside = bias is not None and _tau_syn(connection.synapse) is None and not connection.elementwise
    for number, (steps, weight) in enumerate(weights.items()):
        name, before = f"{wire.name}_weight{steps}", origin
        nodes[name] = _weights(nir, connection, weight, bias if inside and number == 0 else None)
        if steps + wire.late:
            before = f"{wire.name}_delay{steps}"
            nodes[before] = nir.Delay(np.full(shape, (steps + wire.late) * connection.step_time * MS))
            edges.append((origin, before))
        edges += [(before, name), *((name, target) for target in wire.targets)]
    if isinstance(connection, Conv2D) and len(set(connection.weight_shape[2:])) > 1:
        losses.append(f"{wire.name}: nir takes the kernel's height for its width; read it with type_check=False")
    return np.zeros(()) if bias is None or inside else np.broadcast_to(bias, connection.product_shape)


def branches(connection: Connection, params: Any) -> Branches:
    """What a connection's weights and delays amount to: weights for every step of the past that is read.

    Every interpolation is a sum over steps, so that this loses nothing. ``bias`` is what is added to every output.
    """
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    if "delay" in params:
        params["delay"] = connection.over_weights(connection.masked_delay(params["delay"]))
    options = {"delay_per": "synapse", "delay_steps": None, "execution": "grouped", "relaxed_delay": None}
    plan = connection.clone(**options).plan(params)
    charge = connection.synapse.spike_charge / connection.step_time
    if connection.delayed:
        kernel = plan.kernels[0] * plan.weight if connection.elementwise else plan.kernels[0]
        kernel = np.asarray(kernel, np.float64) * charge
        weights = {steps: weight for steps, weight in enumerate(kernel) if weight.any()} or {0: kernel[0]}
    else:
        weights = {0: np.asarray(plan.weight, np.float64) * charge}
    if plan.bias is None and not np.any(plan.constant):
        return Branches(weights, None)
    bias = plan.constant if plan.bias is None else connection.over_outputs(plan.bias) + plan.constant
    return Branches(weights, np.asarray(bias, np.float64))


def _weights(nir: Any, connection: Connection, weight: np.ndarray, bias: np.ndarray | None) -> Any:
    if connection.elementwise:
        return nir.Scale(weight)
    if not isinstance(connection, Conv2D):
        return nir.Linear(weight) if bias is None else nir.Affine(weight, bias)
    options = {name: _pair(getattr(connection, name)) for name in ("stride", "padding", "dilation")}
    bias = np.zeros(connection.filters) if bias is None else np.broadcast_to(bias, (connection.filters, 1, 1)).ravel()
    return nir.Conv2d((connection.height, connection.width), weight, groups=1, bias=bias, **options)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _tau_syn(synapse: Synapse) -> float | None:
    """The time constant, ms, of the exponential that a synapse's current is, or is nearest to."""
    if isinstance(synapse, SingleExponentialCurrent):
        return synapse.time_constant
    return synapse.tc_decay if isinstance(synapse, DoubleExponentialCurrent) else None


def _shared_filter(parts: Circuit, name: str, losses: list[str]) -> float | None:
    wires = [wire for wire in parts.wires if name in wire.targets]
    [found, *others] = {_tau_syn(wire.connection.synapse) for wire in wires}
    if others:
        raise ConfigError(
            f"{name}: its currents decay differently, {[found, *others]} ms; NIR's neurons have one tau_syn"
        )
    for wire in wires:
        if isinstance(wire.connection.synapse, DoubleExponentialCurrent):
            losses.append(f"{wire.name}: the rise of its current is left out; NIR's synapses only decay")
    return found


def _delay_losses(wire: Wire) -> list[str]:
    connection = wire.connection
    if not connection.delayed:
        return []
    delay = np.asarray(connection.masked_delay(jnp.asarray(wire.params["delay"])), np.float64)
    outside = (delay < 0) | (delay > connection.delay)
    steps = delay / connection.step_time
    # float32 has seven digits
    between = ~outside & (np.abs(steps - np.round(steps)) > 1e-5 * np.maximum(1, steps))
    counts = {
        "delays lie between steps; the steps that they read are written": int(between.sum()),
        "delays lie out of range; what they read is written": int(outside.sum()),
    }
    return [f"{wire.name}: {count} {what}" for what, count in counts.items() if count]


def _neuron(nir: Any, neuron: Neuron, tau_syn: float | None, bias: np.ndarray, name: str, losses: list[str]) -> Any:
    if not isinstance(neuron, LIF | GLIF1 | AdaptiveThreshold):
        raise ConfigError(
            f"{name}: NIR has no neuron like {type(neuron).__name__}; LIF, GLIF1, ALIF and GLIF2 are written"
        )
    if neuron.refrac_t > neuron.step_time:
        losses.append(f"{name}: the refractory period of {neuron.refrac_t} ms is left out")
    if isinstance(neuron, AdaptiveThreshold):
        losses.append(f"{name}: the adaptation of the threshold is left out")
    if isinstance(neuron, GLIF2) and neuron.reset_v_mul:
        losses.append(f"{name}: the reset depends on the voltage; that from the threshold is written")
    reset = float(np.mean(neuron.reset(jnp.full((1, 1), neuron.resting_threshold))))
    values = {
        "r": neuron.resistance,
        "v_leak": neuron.rest_v + neuron.resistance * bias,
        "v_threshold": neuron.resting_threshold,
        "v_reset": reset,
    }
    arrays = {key: np.broadcast_to(np.asarray(value, np.float64), bias.shape).copy() for key, value in values.items()}
    tau = np.full(bias.shape, neuron.tau * MS)
    metadata = {"v_initial": neuron.rest_v}
    if tau_syn is None:
        return nir.LIF(tau=tau, **arrays, metadata=metadata)
    tau_syn = np.full(bias.shape, tau_syn * MS)
    return nir.CubaLIF(tau_mem=tau, tau_syn=tau_syn, w_in=np.ones(bias.shape), **arrays, metadata=metadata)
