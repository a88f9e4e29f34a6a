"""Where inferno keeps the parts of a network: the names its layers give them, and those that ours do."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from jaxkit.spiking.connections import Connection
from jaxkit.spiking.layers import Biclique, Layer, LayerCarry, RecurrentSerial, Serial
from jaxkit.spiking.neurons import Neuron

Network = Layer | Connection | Neuron


class Part(NamedTuple):
    """A connection or a group of neurons."""

    name: str
    """In our parameters and carries; empty for a part that is the whole network."""
    prefix: str
    """Of its keys in a state_dict of inferno's."""
    module: Connection | Neuron


class Parts(NamedTuple):
    """What a network is made of."""

    connections: list[Part]
    neurons: list[Part]
    cells: list[tuple[str, str]]
    """Pairs of connection and neuron, by inferno's names, that its layer has cells of when it is built."""


def parts(network: Network) -> Parts:
    """Finds the parts of a network; those of a layer of one's own have the names of its ``parts()`` in inferno too."""
    if isinstance(network, Connection):
        return Parts([Part("", "", network)], [], [])
    if isinstance(network, Neuron):
        return Parts([], [Part("", "", network)], [])
    connections, neurons = network.parts()
    return Parts(
        [Part(name, f"connections_.{theirs(network, name)}.", part) for name, part in connections.items()],
        [Part(name, f"neurons_.{theirs(network, name)}.", part) for name, part in neurons.items()],
        _cells(network),
    )


def theirs(layer: Layer, name: str) -> str:
    """Inferno's name for a part of a layer."""
    if isinstance(layer, Serial):
        return "serial"
    if isinstance(layer, RecurrentSerial):
        return name.removesuffix("_connection")
    return name.removeprefix("connections_") if isinstance(layer, Biclique) else name


def _cells(layer: Layer) -> list[tuple[str, str]]:
    match layer:
        case Serial():
            return [("serial", "serial")]
        case Biclique():
            return [(connection, neuron) for connection in layer.connections for neuron in layer.neurons]
        case RecurrentSerial():
            return [("feedfwd", "feedfwd")]
    return []


def together(network: Network, connections: dict[str, Any], neurons: dict[str, Any]) -> Any:
    """Makes the carry of a network from those of its parts."""
    if isinstance(network, Layer):
        return LayerCarry(connections, neurons)
    return (connections or neurons)[""]


def apart(network: Network, carry: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The carries of a network's connections and neurons, the way back of :func:`together`."""
    if isinstance(network, Layer):
        return carry.connections, carry.neurons
    return ({"": carry}, {}) if isinstance(network, Connection) else ({}, {"": carry})


def parameters(network: Network, params: Any) -> dict[str, Any]:
    """The parameters of a network's connections, by name."""
    if isinstance(network, Layer):
        return params
    return {"": params} if isinstance(network, Connection) else {}


def copies(cells: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The prefixes under which inferno's layers save parts once more, for each cell, and the part's own."""
    found = {}
    for connection, neuron in cells:
        found[f"cells_.{connection}.{neuron}.connection_."] = f"connections_.{connection}."
        found[f"cells_.{connection}.{neuron}.neuron_."] = f"neurons_.{neuron}."
    return found
