"""Networks of inferno's, built from ours, with parameters and state."""

from collections.abc import Callable
from typing import Any

from interop.spiking.description import fields
from interop.spiking.live_state import to_inferno
from interop.spiking.parts import Network, apart, parts, theirs
from jaxkit.errors import ConfigError, UserError
from jaxkit.spiking.connections import Connection
from jaxkit.spiking.layers import Biclique, RecurrentSerial, Serial
from jaxkit.spiking.neurons import Neuron
from jaxkit.spiking.synapses import Synapse

_INTERPOLATIONS = ("previous", "nearest")
# what of ours a forward pass of inferno's does not need or does not know
_OWN_NEURON = ("shape", "step_time", "refrac_lock", "surrogate", "detach_reset", "axis_name", "batch_reduction")
_OWN_CONNECTION = (
    "synapse", "delay_per", "delay_steps", "out_of_range", "relaxed_delay", "execution", "plastic", "dtype",
)  # fmt: skip


def to_inferno_module(network: Network, params: Any, carry: Any) -> Any:
    """Builds the ``torch.nn.Module`` of inferno's that goes on where ``network`` stopped.

    ``refrac_lock=False`` is an argument of the calls there: pass it to them.

    Raises:
        UserError: if inferno is not installed, or state has no place in it.
        ConfigError: for layers of one's own, functions in layers, and interpolations that inferno lacks.
    """
    try:
        import torch
        from inferno import neural
    except ImportError as error:
        raise UserError("inferno is not installed; install inferno-ai 0.0.5, without its dependencies") from error

    connections, neurons = apart(network, carry)
    found = parts(network)
    made = {part.name: _connection(neural, part.module, connections[part.name]) for part in found.connections}
    groups = {part.name: _neuron(torch, neural, part.module, neurons[part.name]) for part in found.neurons}
    module = _wired(neural, network, made, groups)
    if isinstance(network, RecurrentSerial):
        # inferno has none before the first step, and refuses to load any then
        module.feedback_spikes = torch.zeros(carry.neurons["feedback"].spike.shape, dtype=bool)
    module.load_state_dict(to_inferno(params, carry, network), strict=True)
    return module


def _wired(neural: Any, network: Network, connections: dict[str, Any], neurons: dict[str, Any]) -> Any:
    match network:
        case Connection() | Neuron():
            return (connections or neurons)[""]
        case Serial(transform=None):
            return neural.Serial(connections["connection"], neurons["neuron"])
        case Biclique(combine=str(), before=before, after=after) if not before and not after:
            named = [(theirs(network, name), connection) for name, connection in connections.items()]
            # its own words would leave an axis of 1 in front of all that the neurons hold
            return neural.Biclique(named, list(neurons.items()), combine=_combine(network.combine))
        case RecurrentSerial():
            return neural.RecurrentSerial(*connections.values(), *neurons.values())
    raise ConfigError(
        f"{type(network).__name__} with functions of your own: build inferno's layer, and load to_inferno's state_dict"
    )


def _combine(word: str) -> Callable:
    name = {"max": "amax", "min": "amin"}.get(word, word)

    def combine(currents):
        import torch

        return getattr(torch.stack(list(currents.values())), name)(0)

    return combine


def _connection(neural: Any, connection: Connection, carry: Any) -> Any:
    batch = next(iter(carry.history.rings.values())).shape[1]
    own = [name for name in fields(type(connection)) if name not in _OWN_CONNECTION]
    given = {name: getattr(connection, name) for name in own}
    make = getattr(neural, type(connection).__name__)
    return make(**given, synapse=_synapse(neural, connection.synapse), batch_size=batch)


def _synapse(neural: Any, synapse: Synapse) -> Callable:
    if (mode := synapse.spike_interpolation) not in _INTERPOLATIONS:
        raise ConfigError(f"inferno's synapses read delays as one of {', '.join(_INTERPOLATIONS)}, not '{mode}'")
    given = {name: getattr(synapse, name) for name in fields(type(synapse))}
    return getattr(neural, type(synapse).__name__).partialconstructor(**given)


def _neuron(torch: Any, neural: Any, neuron: Neuron, carry: Any) -> Any:
    given = {name: getattr(neuron, name) for name in fields(type(neuron)) if name not in _OWN_NEURON}
    reduction = getattr(neuron, "batch_reduction", "none")
    if reduction != "none":
        given["batch_reduction"] = {"max": torch.amax, "min": torch.amin}.get(reduction) or getattr(torch, reduction)
    kind = getattr(neural, type(neuron).__name__)
    return kind(neuron.shape, neuron.step_time, batch_size=len(carry.voltage), **given)
