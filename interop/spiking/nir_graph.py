"""NIR graphs of spiking networks: the package, the contract of how its equations are stepped, files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from interop.files.atomic import publish, require_free, staged
from interop.files.errors import FileError, missing
from interop.spiking.parts import theirs
from jaxkit.errors import ConfigError, UserError
from jaxkit.spiking.connections import Connection
from jaxkit.spiking.layers import Biclique, RecurrentSerial, Serial
from jaxkit.spiking.neurons import Neuron

# NIR's equations are continuous in time, and every reader steps them in its own way: this is ours, said in the file.
CONTRACT = (
    "x[t] is 1 at a spike; Delay d shifts by d/dt steps; "
    "CubaLIF: i[t] = i[t-1] exp(-dt/tau_syn) + dt/tau_syn w_in x[t]; LIF: i[t] = x[t]; "
    "v[t] = v_leak + (v[t-1] - v_leak - r i[t]) exp(-dt/tau) + r i[t]; "
    "a spike where v >= v_threshold, then v = v_reset; v starts at the metadata's v_initial, else at v_leak, and i at 0"
)
UNITS = {"time": "s", "voltage": "mV", "current": "nA", "resistance": "MOhm"}
MS = 1e-3


def package() -> Any:
    """NIR's package.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import nir
    except ImportError as error:
        raise UserError("NIR's package is not installed; run pip install nir") from error
    return nir


class Wire(NamedTuple):
    """A connection, from where to where."""

    name: str
    connection: Connection
    params: Mapping[str, Any]
    source: str
    """The node of an input, or of neurons."""
    targets: Sequence[str]
    late: bool = False
    """Whether it carries what its source gave a step before, as a feedback does."""


class Circuit(NamedTuple):
    """A network as a graph has it: by name, its inputs, neurons, and the wires between them."""

    inputs: dict[str, tuple[int, ...]]
    neurons: dict[str, Neuron]
    wires: list[Wire]
    outputs: list[str]


def circuit(network: Any, params: Any) -> Circuit:
    """Takes a layer, or a list of Serial layers that follow one another, apart.

    Raises:
        ConfigError: for layers of one's own, functions in layers, and sums other than ``sum``: a graph only adds.
    """
    match network:
        case Serial(transform=None):
            wire = Wire("connection", network.connection, params["connection"], "input", ["neuron"])
            return Circuit({"input": network.connection.inshape}, {"neuron": network.neuron}, [wire], ["neuron"])
        case Biclique(combine="sum", before=before, after=after) if not before and not after:
            return _biclique(network, params)
        case RecurrentSerial():
            return _recurrent(network, params)
        case [*layers] if layers and all(isinstance(layer, Serial) and layer.transform is None for layer in layers):
            return _stacked(layers, params)
    raise ConfigError(
        "a graph is made of a Serial, Biclique or RecurrentSerial layer, or of a list of Serial ones, without functions"
        f" of their own and with combine='sum'; this is {network!r:.80}"
    )


def _biclique(network: Biclique, params: Any) -> Circuit:
    neurons, connections = dict(network.neurons), network.parts()[0]
    inputs, wires = {}, []
    for name, connection in connections.items():
        short = theirs(network, name)
        inputs[f"input_{short}"] = connection.inshape
        wires.append(Wire(f"connection_{short}", connection, params[name], f"input_{short}", list(neurons)))
    return Circuit(inputs, neurons, wires, list(neurons))


def _recurrent(network: RecurrentSerial, params: Any) -> Circuit:
    connections, groups = network.parts()
    paths = {
        "feedfwd_connection": ("input", "feedfwd"),
        "lateral_connection": ("feedfwd", "feedback"),
        "feedback_connection": ("feedback", "feedfwd"),
    }
    wires = [
        Wire(name, connections[name], params[name], source, [target], name == "feedback_connection")
        for name, (source, target) in paths.items()
    ]
    return Circuit({"input": network.feedfwd_connection.inshape}, groups, wires, list(groups))


def _stacked(layers: Sequence[Serial], params: Any) -> Circuit:
    neurons = {f"neuron{i}": layer.neuron for i, layer in enumerate(layers)}
    sources = ["input", *neurons]
    wires = [
        Wire(f"connection{i}", layer.connection, one["connection"], sources[i], [f"neuron{i}"])
        for i, (layer, one) in enumerate(zip(layers, params, strict=True))
    ]
    return Circuit({"input": layers[0].connection.inshape}, neurons, wires, [sources[-1]])


def write_nir(path: str | Path, graph: Any, *, force: bool = False) -> Path:
    """Writes a graph into an HDF5 file, which is there in full or not at all.

    Raises:
        ConfigError: if something is there and ``force`` is off.
        UserError: if the disk is full, or refuses, or NIR's package is not installed.
    """
    path = Path(path)
    require_free([path], force)
    with staged(path.parent, path, 0) as folder:
        package().write(folder / path.name, graph)
        publish(folder, {folder / path.name: path})
    return path


def read_nir(path: str | Path) -> Any:
    """Reads a graph; its shapes are not checked by NIR's package, which takes a kernel's height for its width.

    Raises:
        FileError: if the file is no NIR graph.
        ConfigError: if there is no such file.
    """
    path, nir = Path(path), package()
    if not path.exists():
        raise missing(path)
    try:
        return nir.read(path, type_check=False)
    except (OSError, KeyError, ValueError, TypeError, AssertionError) as error:
        raise FileError(path, f"it is no NIR graph that nir {nir.version} reads ({error})") from error
