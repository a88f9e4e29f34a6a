"""What a state_dict lacks, as JSON: the kinds, shapes and constants of a network's parts, to build it again from.

``{"version": 1, "network": {"kind": "Serial", "connection": {"kind": "LinearDense", ...}, ...}}``. Every
field is there, defaults too, so that a later default changes nothing. Initialisers are left out: the parameters are
known.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_type_hints

import jax
import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from interop.spiking.parts import Network
from jaxkit.errors import ConfigError
from jaxkit.spelling import nearest
from jaxkit.spiking import connections, layers, synapses
from jaxkit.spiking.neurons import NEURONS
from jaxkit.spiking.surrogate import SURROGATES, Surrogate, surrogate_named
from jaxkit.spiking.synapses import Synapse

VERSION = 1
_SYNAPSES = ("DeltaCurrent", "DeltaPlusCurrent", "SingleExponentialCurrent", "DoubleExponentialCurrent")
KINDS: dict[str, type] = (
    {name: getattr(synapses, name) for name in _SYNAPSES}
    | {name: getattr(connections, name) for name in ("LinearDense", "LinearDirect", "LinearLateral", "Conv2D")}
    | {name: getattr(layers, name) for name in ("Serial", "Biclique", "RecurrentSerial")}
    | NEURONS
)
_LEFT_OUT = ("parent", "name", "weight_init", "bias_init", "delay_init")


def describe(network: Network) -> dict[str, Any]:
    """Writes down all of a network but its parameters and state, as JSON's types.

    Raises:
        ConfigError: naming the field, for functions, classes and surrogate gradients of one's own: no file holds them.
    """
    return {"version": VERSION, "network": _written(network, "network")}


def rebuild(description: Mapping[str, Any]) -> Network:
    """Builds the network that :func:`describe` wrote down.

    Raises:
        ConfigError: listing every unknown kind or field, what is missing, and values of the wrong type.
    """
    if set(description) != {"version", "network"}:
        raise ConfigError(f"a description has version and network, not {', '.join(map(str, description))}")
    if description["version"] != VERSION:
        raise ConfigError(f"the description is of version {description['version']!r}; this is read: {VERSION}")
    problems: list[str] = []
    network = _built(description["network"], "network", problems)
    if isinstance(network, Synapse):
        problems.append("network is a synapse; a connection has one")
    elif not problems:
        # connections check most of their options when they are first used
        _made(lambda: jax.eval_shape(lambda: network.initialize_carry(1)), "network", problems)
    if problems:
        raise ConfigError("\n  ".join(["the description does not describe a network:", *problems]))
    return network


@cache
def fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """The types of a kind's fields, and whether they must be given."""
    hints = get_type_hints(kind)
    return {
        field.name: (hints[field.name], field.default is field.default_factory is dataclasses.MISSING)
        for field in dataclasses.fields(kind)
        if field.name not in _LEFT_OUT
    }


def _written(value: Any, path: str) -> Any:
    if KINDS.get(type(value).__name__) is type(value):
        named = {name: _written(getattr(value, name), f"{path}.{name}") for name in fields(type(value))}
        return {"kind": type(value).__name__} | named
    if isinstance(value, Surrogate):
        return {"surrogate": _surrogate_name(value, path), "sharpness": value.sharpness}
    if path.endswith(".dtype"):
        return np.dtype(value).name
    if isinstance(value, Mapping):
        return {name: _written(part, f"{path}.{name}") for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_written(part, path) for part in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ConfigError(f"{path} is {value!r}, which no file can hold")


def _surrogate_name(surrogate: Surrogate, path: str) -> str:
    for name, make in SURROGATES.items():
        if make().derivative is surrogate.derivative:
            return name
    raise ConfigError(
        f"{path} is a surrogate gradient of your own, which no file can hold; known: {', '.join(SURROGATES)}"
    )


def _built(value: Any, path: str, problems: list[str]) -> Any:
    """Builds a part; None where it is none, with the reason among the problems."""
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        return problems.append(f"{path} is no part: a part is an object that has a kind")
    if value["kind"] not in KINDS:
        known = ", ".join(KINDS)
        return problems.append(
            f"{path}.kind: {value['kind']!r} is unknown{nearest(value['kind'], KINDS)}; one of {known}"
        )
    kind, count = KINDS[value["kind"]], len(problems)
    known = fields(kind)
    for name in (name for name in value if name not in known and name != "kind"):
        problems.append(f"{path}.{name} is unknown{nearest(name, known)}")
    for name in (name for name, (_, needed) in known.items() if needed and name not in value):
        problems.append(f"{path}.{name} is missing")
    given = {
        name: _read(hint, value[name], f"{path}.{name}", problems) for name, (hint, _) in known.items() if name in value
    }
    return _made(lambda: kind(**given), path, problems) if len(problems) == count else None


def _read(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    # first: a part may be named as the keys are that tell the others
    if path.endswith((".connections", ".neurons")) and isinstance(value, Mapping):
        return {name: _built(part, f"{path}.{name}", problems) for name, part in value.items()}
    if isinstance(value, Mapping) and "kind" in value:
        return _built(value, path, problems)
    if isinstance(value, Mapping) and "surrogate" in value:
        return _made(lambda: surrogate_named(value["surrogate"])(value["sharpness"]), path, problems)
    if path.endswith(".dtype"):
        return _made(lambda: np.dtype(value), path, problems)
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(
            tuple(value) if isinstance(value, list) else value
        )
    except ValidationError as error:
        wrong = "; ".join(dict.fromkeys(found["msg"] for found in error.errors()))
        return problems.append(f"{path} is {value!r}: {wrong}")


def _made(make: Callable[[], Any], path: str, problems: list[str]) -> Any:
    try:
        return make()
    except (ValueError, TypeError, ConfigError, KeyError) as error:
        return problems.append(f"{path}: {error}")
