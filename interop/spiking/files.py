"""Spiking networks in files: safetensors with inferno's names for the tensors, and the description in the metadata."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from interop.files import FileError, open_weights, write_weights
from interop.files.strict_json import parse
from interop.layout import spec
from interop.spiking.description import describe, rebuild
from interop.spiking.keys import EXTRA
from interop.spiking.live_state import from_inferno, saved
from interop.spiking.parts import Network, parts
from jaxkit.errors import ConfigError

METADATA = "jaxkit.spiking"


class Loaded(NamedTuple):
    """A network out of a file, ready to go on."""

    network: Network
    params: Any
    carry: Any


def save(path: str | Path, network: Network, params: Any, carry: Any, *, force: bool = False) -> Path:
    """Writes a network, its parameters and its state into one ``.safetensors`` file, in full or not at all.

    Raises:
        ConfigError: if something is there and ``force`` is off, the path has another suffix, or no file can hold a
            part of the network.
        UserError: for state that has no form in the file, as of :func:`interop.spiking.to_inferno`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: a spiking network is written as .safetensors")
    metadata = {METADATA: json.dumps(describe(network), allow_nan=False)}
    arrays = saved(params, carry, network)
    specs = {name: spec(array) for name, array in arrays.items()}
    options = {"format": "torch", "metadata": metadata, "max_shard_size": None}
    [written] = write_weights(path, specs, arrays.items(), force=force, **options)
    return written


def load(path: str | Path) -> Loaded:
    """Reads what :func:`save` wrote.

    Raises:
        FileError: if the file is damaged, or has no description.
        ConfigError: if there is no such file, or the description is none.
        WeightsError: if tensors and description do not fit.
    """
    path = Path(path)
    with open_weights(path) as weights:
        if METADATA not in weights.metadata:
            raise FileError(
                path, "it has no description of a spiking network", remedy="build the network, and use from_inferno"
            )
        network = rebuild(parse(weights.metadata[METADATA].encode(), path, METADATA))
        state: dict[str, Any] = {name: weights.read(name) for name in weights.specs}
    for part in parts(network).connections:
        rings = part.module.synapse.quantities
        state[f"{part.prefix}synapse_.{EXTRA}"] = {f"_{name}__pointer": 0 for name in rings}
    running = from_inferno(state, network)
    return Loaded(network, running.params, running.carry)
