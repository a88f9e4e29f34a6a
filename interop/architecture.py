"""A model as conversion sees it: its table, and the shapes of its variables for given weights."""

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from interop.configs import is_diffusion, read_config
from interop.engine import flatten, plan_to_flax, plan_to_torch
from interop.files import Weights
from interop.files.write import STEM
from interop.layout import Spec, parse
from interop.problems import Problems, WeightsError
from interop.rules import Table, compiled, exceptions, match
from interop.tables import table as table_of
from jaxkit.errors import ConfigError
from jaxkit.models import IMAGE_SIDES, MODELS
from jaxkit.spelling import nearest

# What data parallelism, compilation, sharding and wrappers put before a model's own names.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_SPELLINGS = (
    (r"_fsdp_wrapped_module\.", "", "left out '_fsdp_wrapped_module.' of the keys"),
    (r"_orig_mod\.", "", "left out '_orig_mod.' of the keys"),
    # torchvision's released DenseNets
    (r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", "read 'norm.1' and its like as 'norm1'"),
)
_FLATTENED = parse("o (c h w) -> h w c o")


class Architecture(NamedTuple):
    """A name, a conversion table, and ``like(specs)``: the variables' shapes for a torch state dict's shapes."""

    name: str
    table: Table
    like: Callable[[Mapping[str, Spec]], Mapping[str, Any]]
    config: Mapping[str, Any] | None = None
    """The config.json of a model that one describes."""
    stem: str = STEM
    """What torch's weights in its folder are called."""
    flax_stem: str | None = None
    """What Flax's are called where other projects have the model in Flax; their names leave ``params`` out."""


def architecture(model: Any, image_size: tuple[int, int] | None = None) -> Architecture:
    """Finds the architecture that ``model`` means.

    Args:
        model: a name of the zoo; the path of a config.json of masked-image models or Stable Diffusion;
            ``FILE.py:NAME``, an Architecture or a tuple such as the next in a file of your own; or ``(flax_module,
            table, example_input)``, a tuple for several inputs; or an Architecture.
        image_size: height and width, for the models whose weights depend on it.

    Raises:
        ConfigError: if there is none.
    """
    if isinstance(model, Architecture):
        return model
    if isinstance(model, tuple):
        return _own(*_checked(model, "the model"))
    if model.endswith(".json"):
        return described_by(read_config(Path(model)))
    if ".py" in model:
        found = _from_file(model)
        return found if isinstance(found, Architecture) else _own(*_checked(found, f"--model {model}"))
    if model not in MODELS:
        raise ConfigError(f"no model is named {model!r}{nearest(model, MODELS) or '.'} All: {', '.join(MODELS)}")
    return Architecture(model, table_of(model), lambda specs: _classifier_shapes(model, specs, image_size))


def described_by(config: Mapping[str, Any], weights: Weights | None = None) -> Architecture:
    """Finds the architecture that a config.json describes; ``weights`` of it may have names of old versions.

    Raises:
        ConfigError: for a class, a key or a value that jaxkit has not.
    """
    # flax and jax are loaded for these models alone
    if is_diffusion(config):
        from interop.diffusion import layouts

        return layouts.architecture_of(config, weights)
    from interop.masked import layouts

    return layouts.architecture_of(config)


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
    for pattern, text, note in _SPELLINGS:
        spelled = {re.sub(pattern, text, name): key for name, key in names.items()}
        if spelled.keys() != names.keys() and len(spelled) == len(names):
            names = spelled
            notes.append(note)
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


def image_channels(name: str, specs: Mapping[str, Spec], image_size: tuple[int, int] | None = None) -> int:
    """How many channels the images of a classifier's torch weights have: the inputs of its stem; without weights 3."""
    if not specs or any(len(spec.shape) == 4 and spec.shape[1] == 3 for spec in specs.values()):
        return 3
    key, axis = _stem(name, image_size or (IMAGE_SIDES[name],) * 2)
    return specs[key].shape[axis] if key in specs and len(specs[key].shape) > axis else 3


def require_fit(found: Architecture, specs: Mapping[str, Spec]) -> None:
    """Raises WeightsError unless Flax leaves of these names and shapes are the architecture's variables.

    Of a kernel behind a flattened map the map's size, which depends on the images', may be any.
    """
    plan = plan_to_torch(specs, found.table)
    torch = {key: Spec(move.torch_shape, specs[move.flax[0]].dtype) for move in plan.moves for key in move.torch}
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(found.like(torch)).items()}
    resized = {path for move in plan.moves if move.rule.layout == _FLATTENED for path in move.flax}
    origin = {path: ", ".join(move.torch) for move in plan.moves for path in move.flax}
    Problems(
        missing=[path for path in shapes if path not in specs],
        unexpected=[path for path in specs if path not in shapes],
        misshapen=[
            f"{path} {list(spec.shape)} for {list(shapes[path])}, in torch {origin.get(path, 'nothing')}"
            for path, spec in specs.items()
            if path in shapes
            and (spec.shape[2:] != shapes[path][2:] if path in resized else spec.shape != shapes[path])
        ],
    ).raise_any()


def _own(module: Any, table: Table, example: Any) -> Architecture:
    inputs = example if isinstance(example, tuple) else (example,)
    return Architecture(type(module).__name__, table, lambda _: _shapes(module, *inputs))


def _checked(model: Any, what: str) -> tuple[Any, Table, Any]:
    """Raises ConfigError unless a model is what one of one's own must be."""
    from flax import linen as nn

    if not isinstance(model, tuple) or len(model) != 3:
        raise ConfigError(f"{what} is no (flax_module, table, example_input)")
    module, table, example = model
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{what}: {module!r:.100} in the first place is no Flax module, such as Net() of class Net")
    for row in table if isinstance(table, tuple) else [table]:
        whole = isinstance(row, tuple) and len(row) == 3 and isinstance(row[2], Mapping)
        if not whole or not all(isinstance(name, str) for name in row[:2]):
            raise ConfigError(
                f"{what}: {row!r:.100} is no row (torch module, flax module, layer kind) in a tuple of rows"
            )
    return module, table, example


def _from_file(model: str) -> Any:
    """Runs the user's own file and takes a name out of it."""
    path, _, name = model.partition(":")
    if not Path(path).is_file():
        raise ConfigError(f"--model {model}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    # as Python runs a script: known by its name, with its folder to import from
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(path).parent.absolute()))
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"--model {model}: {path} cannot be imported: {error}") from error
    finally:
        sys.path.pop(0)
    if not hasattr(module, name or "model"):
        raise ConfigError(f"--model {model}: {path} defines no {name or 'model'}; write FILE.py:NAME")
    return getattr(module, name or "model")


def _shapes(module: Any, *inputs: Any) -> Mapping[str, Any]:
    import jax

    return jax.eval_shape(module.init, jax.random.key(0), *inputs)


def _classifier_shapes(name: str, specs: Mapping[str, Spec], image_size: tuple[int, int] | None) -> Mapping[str, Any]:
    """The variables of a classifier with as many classes and image channels as the weights have."""
    size, channels = image_size or (IMAGE_SIDES[name],) * 2, image_channels(name, specs, image_size)
    return _zoo_shapes(name, num_classes(specs, table_of(name)) or 1000, (1, *size, channels))


@cache
def _stem(name: str, size: tuple[int, int]) -> tuple[str, int]:
    """The torch leaf one of whose axes counts the images' channels, and that axis."""
    one, two = (
        {
            key: move.torch_shape
            for move in plan_to_torch(flatten(_zoo_shapes(name, 2, (1, *size, channels))), table_of(name)).moves
            for key in move.torch
        }
        for channels in (1, 2)
    )
    key = next(key for key in one if one[key] != two[key])
    return key, next(axis for axis, (a, b) in enumerate(zip(one[key], two[key], strict=True)) if a != b)


@cache
def _zoo_shapes(name: str, classes: int, images: tuple[int, ...]) -> Mapping[str, Any]:
    import jax.numpy as jnp

    from jaxkit import models

    return _shapes(models.build(name, num_classes=classes), jnp.zeros(images))


def _names_fit(specs: Mapping[str, Spec], table: Table, layout: str) -> bool:
    """Whether every name has a row."""
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
