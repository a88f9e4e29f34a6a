"""A network in the middle of a run, from inferno to JAX and back: weights, delays, histories, membranes, adaptations.

Inferno's rings have a pointer to the slot that is written next; ours, as they come from here, are written from slot 0
on, which is what a pointer of 0 means there. State that inferno does not save is derived: which neurons spiked last,
from those whose refractory period has just begun.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from interop.spiking.arrivals import still_coming
from interop.spiking.keys import EXTRA, Keys, batch_of
from interop.spiking.parts import Network, Part, Parts, apart, copies, parameters, parts, together
from interop.spiking.pixels import fold, their_synapses, unfold
from jaxkit.errors import ConfigError, UserError
from jaxkit.spiking.connections import Carry, Connection, LinearLateral
from jaxkit.spiking.history import History, in_order
from jaxkit.spiking.layers import Layer, RecurrentSerial
from jaxkit.spiking.neurons import NeuronCarry
from jaxkit.spiking.neurons.adaptive import Adaptive, AdaptiveThreshold


class Running(NamedTuple):
    """A network's parameters and state, and what there is to say about where they come from."""

    params: Any
    carry: Any
    notes: list[str]


def from_inferno(state_dict: Mapping[str, Any], network: Network, batch: int | None = None) -> Running:
    """Takes over a network that inferno has run, at the step where it stopped.

    Args:
        state_dict: of an inferno connection, neuron or layer, of torch tensors or arrays, with its ``_extra_state``.
        network: ours, with the same constants: a state_dict has none of them.
        batch: what the state must be of; None takes the batch that is there. :func:`resized` changes it.

    Raises:
        WeightsError: naming every key that is missing, unexpected, misshapen, or differs from its copy.
        ConfigError: if the state is of another batch.
    """
    found, keys = parts(network), Keys(state_dict)
    there = _batch(keys, found)
    if batch is not None and there not in (None, batch):
        raise ConfigError(
            f"the state is of a batch of {there}, and {batch} was asked for; take it as it is, then use resized"
        )
    b = there or batch or 1
    params, connections = {}, {}
    for part in found.connections:
        params[part.name], connections[part.name] = _take_connection(keys, part, b)
    neurons = {part.name: _take_neuron(keys, part, b) for part in found.neurons}
    known = []
    if isinstance(network, RecurrentSerial):
        known = ["feedback"]
        last = keys.take("feedback_spikes", neurons["feedback"].voltage.shape, bool, optional=True)
        neurons["feedback"] = neurons["feedback"]._replace(spike=jnp.asarray(last, jnp.float32))
    for name in (part.name for part in found.neurons if part.module.refrac_t == 0 and part.name not in known):
        keys.notes.append(f"{name or 'neurons'}: refrac_t is 0, so which spiked last is not known; taken as none")
    keys.close()
    connections = {
        part.name: _queued(part.module, params[part.name], connections[part.name]) for part in found.connections
    }
    tree = params if isinstance(network, Layer) else params.get("", {})
    return Running(tree, together(network, connections, neurons), keys.notes)


def to_inferno(
    params: Any, carry: Any, network: Network, cells: Iterable[tuple[str, str]] | None = None
) -> dict[str, Any]:
    """Makes the state_dict, of torch tensors, with which inferno goes on where we stopped.

    A fresh inferno network of the same constants and batch loads it with ``strict=True``, once the
    ``feedback_spikes`` of a RecurrentSerial are a tensor: :func:`interop.spiking.to_inferno_module` sees to that.

    Args:
        params, carry: of ``network``.
        network: what was run.
        cells: pairs of connection and neuron, by inferno's names, that its layer has cells of, for which it saves
            parts once more; None: those that its class makes.

    Raises:
        UserError: for state that inferno has no place for: adaptations of each sample, and the execution ``future``,
            which keeps what is to arrive and not what was sent.
    """
    import torch

    found = parts(network)
    arrays = saved(params, carry, network)
    state: dict[str, Any] = {key: torch.from_numpy(array) for key, array in arrays.items()}
    for part in found.connections:
        rings = part.module.synapse.quantities
        state[f"{part.prefix}synapse_.{EXTRA}"] = {f"_{name}__pointer": 0 for name in rings}
    for prefix in {"", *(part.prefix for part in (*found.connections, *found.neurons))}:
        state[prefix + EXTRA] = {}
    for connection, neuron in found.cells if cells is None else cells:
        state[f"cells_.{connection}.{neuron}.{EXTRA}"] = {}
    for copy, own in copies(found.cells if cells is None else cells).items():
        state |= {copy + key.removeprefix(own): state[key] for key in list(state) if key.startswith(own)}
    return state


def saved(params: Any, carry: Any, network: Network) -> dict[str, np.ndarray]:
    """The arrays of a network under inferno's keys, each once, rings as a pointer of 0 has them.

    Raises:
        UserError: as :func:`to_inferno`.
    """
    found, (connections, neurons) = parts(network), apart(network, carry)
    arrays = {}
    for part in found.connections:
        arrays |= _connection_arrays(part, parameters(network, params)[part.name], connections[part.name])
    for part in found.neurons:
        arrays |= _neuron_arrays(part, neurons[part.name])
    if isinstance(network, RecurrentSerial):
        arrays["feedback_spikes"] = np.asarray(neurons["feedback"].spike) != 0
    return arrays


def resized(carry: Any, network: Network, batch: int) -> Any:
    """Changes the batch of a state: the first samples are kept, those that come new are at rest.

    Adaptations that the batch shares stay as they are.
    """

    def one(fresh, old):
        # the batch is the only axis in which they can differ
        axes = [axis for axis, sizes in enumerate(zip(fresh.shape, old.shape, strict=True)) if len(set(sizes)) > 1]
        if not axes:
            return old
        kept = tuple(slice(min(sizes)) for sizes in zip(fresh.shape, old.shape, strict=True))
        return fresh.at[kept].set(old[kept])

    return jax.tree.map(one, network.initialize_carry(batch), carry)


def _batch(keys: Keys, found: Parts) -> int | None:
    rings = [
        f"{part.prefix}synapse_._{name}__data" for part in found.connections for name in part.module.synapse.quantities
    ]
    return batch_of(keys, rings, [f"{part.prefix}_voltage__data" for part in found.neurons])


def _take_connection(keys: Keys, part: Part, batch: int) -> tuple[dict[str, jax.Array], Carry]:
    connection: Connection = part.module
    shapes = {"weight": connection.weight_shape}
    if connection.bias:
        shapes["bias"] = connection.bias_shape
    if connection.delay is not None:
        shapes["delay"] = connection.delay_shape
    if connection.delay_per != "synapse" and not connection.elementwise and connection.delay is not None:
        raise ConfigError(f"inferno's delays are each synapse's own; delay_per is '{connection.delay_per}' here")
    params = {name: keys.take(f"{part.prefix}{name}_", shape, np.float32) for name, shape in shapes.items()}
    if isinstance(connection, LinearLateral):
        _mask(keys, part, params)
    r, n = connection.record, their_synapses(connection)
    rings, prefix = {}, f"{part.prefix}synapse_."
    for name in connection.synapse.quantities:
        data = keys.take(f"{prefix}_{name}__data", (r, batch, *n), bool if name == "spike" else np.float32)
        aligned = np.roll(data, -keys.pointer(prefix, f"_{name}__pointer", r), axis=0)
        rings[name], differing = fold(connection, aligned)
        if differing:
            keys.problems.damaged.append(f"{prefix}_{name}__data: {differing} values differ from others of their pixel")
    return {name: jnp.asarray(value) for name, value in params.items()}, Carry(History(rings, jnp.int32(r - 1)))


def _mask(keys: Keys, part: Part, params: dict[str, np.ndarray]) -> None:
    for name in ("weight", "delay"):
        if name in params and (found := np.count_nonzero(np.diagonal(params[name]))):
            keys.notes.append(
                f"{part.prefix}{name}_: {found} on the diagonal are not 0, and are now; inferno used them"
            )
            np.fill_diagonal(params[name], 0)


def _queued(connection: Connection, params: dict[str, jax.Array], carry: Carry) -> Carry:
    """The carry as the connection's execution has it."""
    rest = connection.initialize_carry(next(iter(carry.history.rings.values())).shape[1])
    types = {name: ring.dtype for name, ring in rest.history.rings.items()}
    history = History(
        {name: jnp.asarray(carry.history.rings[name], types[name]) for name in types}, carry.history.newest
    )
    if rest.arrivals is None:
        return Carry(history)
    latest = {name: in_order(history, name)[:1] for name in types}
    return Carry(History(latest, rest.history.newest), still_coming(connection, params, history))


def _take_neuron(keys: Keys, part: Part, batch: int) -> NeuronCarry:
    neuron, shape = part.module, (batch, *part.module.shape)
    voltage = keys.take(f"{part.prefix}_voltage__data", shape, np.float32)
    refrac = keys.take(f"{part.prefix}_refrac__data", shape, np.float32)
    spike = (refrac == np.float32(neuron.refrac_t)) & (neuron.refrac_t > 0)
    carry = NeuronCarry(jnp.asarray(voltage), jnp.asarray(refrac), jnp.asarray(spike, jnp.float32))
    if not isinstance(neuron, Adaptive):
        return carry
    rest = neuron.initialize_carry(batch).adaptation
    shape = (*neuron.shape, len(neuron.spike_increment))
    # those of each sample come from a Biclique that combines by a word: its neurons do not reduce them
    if neuron.batch_reduction == "none" and len(keys.shape(_adaptation(part)) or ()) > len(shape):
        shape = rest.shape
    adaptation = keys.take(_adaptation(part), shape, np.float32)
    return carry._replace(adaptation=jnp.broadcast_to(jnp.asarray(adaptation), rest.shape))


def _adaptation(part: Part) -> str:
    kind = "threshold" if isinstance(part.module, AdaptiveThreshold) else "current"
    return f"{part.prefix}{kind}_adaptation_"


def _connection_arrays(part: Part, params: dict[str, Any], carry: Carry) -> dict[str, np.ndarray]:
    connection: Connection = part.module
    if carry.arrivals is not None:
        raise UserError(
            f"{part.name or 'the connection'} is executed as 'future', which keeps what is to arrive and not what was "
            "sent, as inferno needs it; run it with execution='gather' or 'grouped'"
        )
    params = connection.project({name: jnp.asarray(value, jnp.float32) for name, value in params.items()})
    if "delay" in params:
        params["delay"] = connection.over_weights(params["delay"])
        if connection.out_of_range == "clamp":
            params["delay"] = jnp.clip(params["delay"], 0, connection.delay)
    arrays = {f"{part.prefix}{name}_": np.array(value) for name, value in params.items()}
    for name, ring in carry.history.rings.items():
        oldest_first = np.asarray(in_order(History({name: ring}, carry.history.newest), name))[::-1]
        typed = oldest_first != 0 if name == "spike" else oldest_first.astype(np.float32)
        arrays[f"{part.prefix}synapse_._{name}__data"] = np.ascontiguousarray(unfold(connection, typed))
    return arrays


def _neuron_arrays(part: Part, carry: NeuronCarry) -> dict[str, np.ndarray]:
    arrays = {
        f"{part.prefix}_voltage__data": np.array(carry.voltage, np.float32),
        f"{part.prefix}_refrac__data": np.array(carry.refrac, np.float32),
    }
    if carry.adaptation is None:
        return arrays
    if part.module.batch_reduction == "none":
        raise UserError(
            f"{part.name or 'the neuron'} has adaptations of each sample (batch_reduction='none'); inferno's batch "
            "shares them"
        )
    return arrays | {_adaptation(part): np.array(carry.adaptation, np.float32)}
