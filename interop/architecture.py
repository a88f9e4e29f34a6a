"""A model as conversion sees it: its table, and the shapes of its variables for given weights."""

import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from interop.engine import plan_to_flax, plan_to_torch
from interop.layout import Spec
from interop.problems import WeightsError
from interop.rules import Table, compiled, exceptions, match
from interop.tables import table as table_of
from jaxkit.errors import ConfigError
from jaxkit.models import IMAGE_SIDES, MODELS
from jaxkit.problems import nearest

# What data parallelism, compilation, sharding and wrappers put before a model's own names.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_INFIXES = ("_fsdp_wrapped_module.", "_orig_mod.")


class Architecture(NamedTuple):
    """A name, a conversion table, and ``like(specs)``: the variables' shapes for a torch state dict's shapes."""

    name: str
    table: Table
    like: Callable[[Mapping[str, Spec]], Mapping[str, Any]]


def architecture(model: Any, image_size: tuple[int, int] | None = None) -> Architecture:
    """Finds the architecture that ``model`` means.

    Args:
        model: a name of the zoo; ``FILE.py:NAME``, an Architecture or a tuple such as the next in a file of your own;
            or ``(flax_module, table, example_input)``; or an Architecture.
        image_size: height and width, for the models whose weights depend on it.

    Raises:
        ConfigError: if there is none.
    """
    if isinstance(model, Architecture):
        return model
    if isinstance(model, tuple):
        module, table, example = model
        return Architecture(type(module).__name__, table, lambda _: _shapes(module, example))
    if ".py" in model:
        return architecture(_from_file(model), image_size)
    if model not in MODELS:
        raise ConfigError(f"no model is named {model!r}{nearest(model, MODELS)}. All: {', '.join(MODELS)}")
    return Architecture(model, table_of(model), lambda specs: _classifier_shapes(model, specs, image_size))


def guess(specs: Mapping[str, Spec], layout: str, image_size: tuple[int, int] | None = None) -> str:
    """Names the model of the zoo that weights of these names and shapes are of; ``layout`` is ``torch`` or ``flax``.

    ``image_size`` is height and width, for the models whose weights depend on it.

    Raises:
        ConfigError: if there is none, or several with different tables.
    """
    fitting = [
        name
        for name in MODELS
        if _names_fit(specs, table_of(name), layout) and _shapes_fit(architecture(name, image_size), specs, layout)
    ]
    tables = {id(table_of(name)) for name in fitting}
    if not fitting:
        raise ConfigError("the weights are of none of the zoo's models; say which they come nearest to with --model")
    if len(tables) > 1:
        raise ConfigError(f"the weights could be of {' or '.join(fitting)}; say of which with --model")
    return fitting[0]


def stripped(keys: list[str], table: Table | None) -> tuple[dict[str, str], list[str]]:
    """Maps keys as the table knows them to keys as given, without what wrappers put before them; and says what that is.

    A prefix goes only if more keys fit the table without it; or, where no table is given, if all keys have it.
    """
    names, notes = {key: key for key in keys}, []
    for infix in _INFIXES:
        if any(infix in name for name in names):
            names = {name.replace(infix, ""): key for name, key in names.items()}
            notes.append(f"left out {infix!r} of the keys")
    patterns = [key for rule in compiled(table) for key in rule.torch] if table else []
    fits = sum(any(match(pattern, name) for pattern in patterns) for name in names)
    for prefix in _PREFIXES * 2:
        shorter = {name.removeprefix(prefix): key for name, key in names.items()}
        better = sum(any(match(pattern, name) for pattern in patterns) for name in shorter)
        common = table is None and all(name.startswith(prefix) for name in names)
        if (better > fits or common) and len(shorter) == len(names):
            names, fits = shorter, better
            notes.append(f"left out the prefix {prefix!r} of the keys")
    return names, notes


def num_classes(specs: Mapping[str, Spec], table: Table) -> int | None:
    """How many classes torch weights have: the outputs of the row that leads to ``head``."""
    for rule in compiled(table):
        if rule.flax[0] == "params/head/bias":
            for key, spec in specs.items():
                if match(rule.torch[0], key) and len(spec.shape) == 1:
                    return spec.shape[0]
    return None


def image_channels(specs: Mapping[str, Spec]) -> int:
    """How many channels the images of torch weights have: the inputs of the stem; 3 where no kernel tells."""
    inputs = [spec.shape[1] for spec in specs.values() if len(spec.shape) == 4] or [3]
    # The stem comes first in torch's order; Flax's is the alphabet's, but few layers other than a stem have 3 inputs.
    return 3 if 3 in inputs else inputs[0]


def require_fit(found: Architecture, specs: Mapping[str, Spec]) -> None:
    """Raises WeightsError unless Flax leaves of these names and shapes are all of the architecture's variables."""
    torch = {
        key: Spec(move.torch_shape, specs[move.flax[0]].dtype)
        for move in plan_to_torch(specs, found.table).moves
        for key in move.torch
    }
    plan_to_flax(torch, found.table, found.like(torch))


def _from_file(model: str) -> Any:
    """Runs the user's own file and takes a name out of it."""
    path, _, name = model.partition(":")
    if not Path(path).is_file():
        raise ConfigError(f"--model {model}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name or "model"):
        raise ConfigError(f"--model {model}: {path} defines no {name or 'model'}; write FILE.py:NAME")
    return getattr(module, name or "model")


def _shapes(module: Any, *inputs: Any) -> Mapping[str, Any]:
    import jax

    return jax.eval_shape(module.init, jax.random.key(0), *inputs)


def _classifier_shapes(name: str, specs: Mapping[str, Spec], image_size: tuple[int, int] | None) -> Mapping[str, Any]:
    """The variables of a classifier with as many classes and image channels as the weights have."""
    size = image_size or (IMAGE_SIDES[name],) * 2
    return _zoo_shapes(name, num_classes(specs, table_of(name)) or 1000, (1, *size, image_channels(specs)))


@cache
def _zoo_shapes(name: str, classes: int, images: tuple[int, ...]) -> Mapping[str, Any]:
    import jax.numpy as jnp

    from jaxkit import models

    return _shapes(models.build(name, num_classes=classes), jnp.zeros(images))


def _names_fit(specs: Mapping[str, Spec], table: Table, layout: str) -> bool:
    """Whether every name has a row, and every row that has no number in it a name."""
    rules, (dropped, tied, _) = compiled(table), exceptions(table)
    sides = [rule.torch if layout == "torch" else rule.flax for rule in rules]
    patterns = [pattern for side in sides for pattern in side]
    also = [*dropped, *tied] if layout == "torch" else []
    return all(any(match(pattern, name) for pattern in (*patterns, *also)) for name in specs)


def _shapes_fit(found: Architecture, specs: Mapping[str, Spec], layout: str) -> bool:
    try:
        if layout == "torch":
            plan_to_flax(specs, found.table, found.like(specs))
        else:
            require_fit(found, specs)
    except WeightsError:
        return False
    return True
