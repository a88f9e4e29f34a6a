"""A model of the zoo and its torch twin, with random weights or those of a file."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from flax import linen as nn

from interop import reference
from interop.architecture import architecture, image_channels, num_classes, stripped
from interop.engine import plan_to_flax, to_torch, unflatten
from interop.files import open_weights
from interop.layout import spec
from interop.rules import Table
from jaxkit import models
from jaxkit.errors import ConfigError

_CLASSES = 10
# A small part of the largest images' area: the layers are the same, and a comparison takes a minute.
_SIDES = {224: 64, 299: 96}


class Twins(NamedTuple):
    """Both modules, their table, and inputs for them: images [b h w c], or an array for each argument."""

    torch: torch.nn.Module
    flax: nn.Module
    table: Table
    inputs: np.ndarray | tuple[np.ndarray, ...]


def classifier_twins(name: str, weights: Path | None, image_size: int | None, batch: int, seed: int) -> Twins:
    """Builds both modules without dropout, the torch one with its weights, and draws images.

    Args:
        name: of a model of the zoo.
        weights: any file that :func:`interop.files.open_weights` reads; None: random weights and running statistics.
        image_size: side of the images; None: the model's own, or less where that is large.
        batch: how many images, at least 2: in training a normalisation needs several.
        seed: of weights and images.

    Raises:
        ConfigError: if there is no such model, or it has no torch twin here.
        WeightsError: if the weights are not of this model.
        FileError: if the file is damaged or unsafe.
    """
    if name not in models.MODELS:
        architecture(name)
        raise ConfigError(f"--model {name}: there is no torch twin of it here; call interop.crosscheck with your own")
    if batch < 2:
        raise ConfigError(f"--batch {batch}: at least 2 are needed, or a normalisation has nothing to train on")
    own = models.IMAGE_SIDES[name]
    side = image_size or _SIDES.get(own, own)
    table = architecture(name).table
    state = None if weights is None else _read(weights, name, table, side)
    classes = _CLASSES if state is None else num_classes(state, table)
    specs = {key: spec(array) for key, array in (state or {}).items()}
    shape = (side, side, image_channels(name, specs, (side, side)))

    torch.manual_seed(seed)
    fields = {"dropout_rate": 0.0} if name in models.WITH_DROPOUT else {}
    net = reference.build(name, classes, shape, **fields)
    if state is None:
        randomise(net)
    else:
        # What a table drops, such as a count of batches, may be missing in the file, or more than the twin has.
        state = {key: torch.from_numpy(array) for key, array in state.items() if key in net.state_dict()}
        net.load_state_dict({**net.state_dict(), **state})
    images = np.random.default_rng(seed).normal(size=(batch, *shape)).astype(np.float32)
    return Twins(net, models.build(name, num_classes=classes, **fields), table, images)


def _read(path: Path, name: str, table: Table, side: int) -> dict[str, np.ndarray]:
    """Reads a torch state dict that fits the model, floating numbers as float32."""
    with open_weights(path) as weights:
        given = {key: _float32(weights.read(key)) for key in weights.specs}
        if weights.format == "flax":
            given = to_torch(unflatten(given), table)
    keys, _ = stripped(list(given), table)
    state = {plain: given[key] for plain, key in keys.items()}
    specs = {key: spec(array) for key, array in state.items()}
    plan_to_flax(specs, table, architecture(name, (side, side)).like(specs))
    return state


def _float32(array: np.ndarray) -> np.ndarray:
    whole = np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_
    return np.array(array, array.dtype if whole else np.float32)


def randomise(net: torch.nn.Module) -> None:
    """Moves biases, scales and running statistics off the zeros and ones that hide mistakes."""
    for key, value in net.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point() and value.ndim == 1:
            value.add_(torch.empty_like(value).uniform_(-0.3, 0.3))
