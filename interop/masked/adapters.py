"""Adapters of masked-image models: runs that trained one, merged for export; LoRA files as diffusers has them."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from scipy.linalg import block_diag

from interop.engine import flatten, plan_to_torch, unflatten
from interop.files import FileError, open_weights, write_weights
from interop.files.strict_json import parse
from interop.layout import Spec
from interop.masked.folders import architecture_at
from interop.masked.layouts import architecture_of, config_of, module_of, shapes
from interop.problems import Problems
from interop.starts import READERS
from jaxkit.config import run_config
from jaxkit.errors import ConfigError
from jaxkit.experiment import precision
from jaxkit.inference import restored
from jaxkit.nn.adapters import kernel_axes, lora_pairs
from jaxkit.schema.maskgit import MaskGit
from jaxkit.tasks.masked_adapter import adapter
from jaxkit.tasks.task import Variables

# under which diffusers has the sections of peft's config, of which the kinds of scale that are not read
_METADATA, _PREFIX = "lora_adapter_metadata", "transformer."
_OTHER_SCALES = ("alpha_pattern", "use_dora", "use_rslora")
_KEY = re.compile(r"transformer\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

Kernels = dict[str, tuple[int, ...]]


def load_adapted(workdir: str | Path, step: int | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Reads the network of a run that trained an adapter, with it: what ``save_folder(module, variables, path)`` takes.

    LoRA is merged into the kernels; with StyleDrop's the module has it as its own, as open-muse's has.

    Args:
        workdir: of the run, whose data and frozen weights are where they were.
        step: of the checkpoint; None: the best.

    Raises:
        ConfigError: if there is no such run or step, it trained no adapter, or what is frozen, such as the network it
            was trained beside, is not what the run began with.
        WeightsError, FileError: if the network or the checkpoint is damaged.
    """
    return merged(*_adapted(Path(workdir), step))


def merged(task: MaskGit, variables: Variables) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a task with an adapter, and variables of NumPy arrays, as :func:`load_adapted` reads them."""
    module, params = adapter(task.adapter, _base(task)).merge(variables.frozen["network"], variables.params)
    return module, {"params": jax.tree.map(np.asarray, params)}


def lora_of_run(workdir: str | Path, step: int | None = None) -> tuple[nn.Module, dict[str, Any], float]:
    """Reads the LoRA of a run: what ``save_lora(*lora_of_run(workdir), path)`` takes. Raises as ``load_adapted``."""
    task, variables = _adapted(Path(workdir), step)
    if task.adapter.name != "lora":
        raise ConfigError(f"{workdir}: its adapter is {task.adapter.name}, which no LoRA file holds; see load_adapted")
    return _base(task), jax.tree.map(np.asarray, variables.params), task.adapter.scale


def save_lora(
    module: nn.Module, adapters: Mapping[str, Any], scale: float, path: str | Path, *, force: bool = False
) -> None:
    """Writes LoRA of a MaskGiTUViT as ``UVit2DModel.load_lora_adapter`` and peft read it.

    The scale goes into ``lora_B``, and all matrices get one rank: where no alpha is said, readers take the rank for it.
    Two layers that diffusers joins have their adapters side by side, in one of twice the rank.

    Args:
        module: the network.
        adapters: trees of ``down`` and ``up``, as :func:`jaxkit.nn.adapters.lora_init` makes them.
        scale: alpha / rank.
        path: a .safetensors file; diffusers looks for ``pytorch_lora_weights.safetensors``.
        force: whether what is there is replaced.

    Raises:
        ConfigError: if something is there and ``force`` is off, for another module or kind of file, and an adapter of
            a layer that is no matrix in diffusers.
    """
    if (path := Path(path)).suffix != ".safetensors":
        raise ConfigError(f"{path}: LoRA is written as .safetensors")
    given = {kernel: _matrices(*pair, scale) for kernel, pair in lora_pairs(adapters).items()}
    layers = {name: kernels for name, kernels in _layers(module).items() if given.keys() & kernels.keys()}
    if stray := given.keys() - {kernel for kernels in layers.values() for kernel in kernels}:
        raise ConfigError(f"{min(stray)} is no matrix of UVit2DModel that an adapter could be written of")
    joined = {name: _joined(kernels, given) for name, kernels in layers.items()}
    rank = max(len(down) for down, _ in joined.values())
    arrays = {}
    for name, (down, up) in joined.items():
        missing = (0, rank - len(down))
        arrays[f"{_PREFIX}{name}.lora_A.weight"] = np.pad(down, (missing, (0, 0)))
        arrays[f"{_PREFIX}{name}.lora_B.weight"] = np.pad(up, ((0, 0), missing))
    specs = {key: Spec(array.shape, array.dtype) for key, array in arrays.items()}
    write_weights(path, specs, arrays.items(), format="torch", metadata={}, max_shard_size=None, force=force)


def load_lora(path: str | Path, module: nn.Module) -> dict[str, Any]:
    """Reads LoRA of diffusers' UVit2DModel as adapters of a MaskGiTUViT, which are merged with a scale of 1.

    alpha is what the metadata say, else the rank, as diffusers has it.

    Raises:
        ConfigError: if there is no such file, for another module, and for scales that are not alpha / rank.
        WeightsError: for keys that are no adapter of the network's, of the text encoder's too, and wrong shapes.
        FileError: if the file is damaged or unsafe.
    """
    with open_weights(Path(path)) as weights:
        if weights.format != "torch":
            raise FileError(weights.path, "it has no names of torch's, as LoRA of diffusers has")
        given = {key: np.asarray(weights.read(key), np.float32) for key in weights.specs}
        alpha = _alpha(weights.metadata, weights.path)
    layers = _layers(module)
    found = {key: match for key in given if (match := _KEY.fullmatch(key)) and match["module"] in layers}
    names = list(dict.fromkeys(match["module"] for match in found.values()))
    _require_whole(given, found, names)
    pairs = {name: [given[f"{_PREFIX}{name}.lora_{side}.weight"] for side in "AB"] for name in names}
    _require_fit(pairs, layers)
    ranks = {len(down) for down, _ in pairs.values()}
    if alpha is None and len(ranks) > 1:
        raise ConfigError(f"{path}: matrices are of ranks {sorted(ranks)}, and nothing says what alpha is")
    adapters = {}
    for name, (down, up) in pairs.items():
        up, start = up * np.float32(1 if alpha is None else alpha / len(down)), 0
        for kernel, shape in layers[name].items():
            inputs, outputs = kernel_axes(kernel, shape)
            rows = slice(start, start := start + math.prod(outputs))
            adapters[f"{kernel}/down"] = down.T.reshape(*inputs, -1)
            adapters[f"{kernel}/up"] = up[rows].T.reshape(-1, *outputs)
    return unflatten(adapters)


def _adapted(workdir: Path, step: int | None) -> tuple[MaskGit, Variables]:
    """The task and the variables of a run that trained an adapter."""
    config = run_config(workdir)
    if getattr(config.task, "adapter", None) is None:
        raise ConfigError(f"{workdir}: the run of the task {config.task.name} trained no adapter")
    with precision(config):
        return config.task, restored(workdir, config, step, READERS).variables


def _base(task: MaskGit) -> nn.Module:
    """The network that an adapter was trained beside, without it."""
    return module_of(architecture_at(Path(task.model.pretrained)).config)


def _layers(module: nn.Module) -> dict[str, Kernels]:
    """The linear layers of UVit2DModel, each with the kernels that it is made of here, and their shapes."""
    table = architecture_of(config_of(module, "diffusers")).table
    specs = {path: Spec(tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in flatten(shapes(module)).items()}
    return {
        move.torch[0].removesuffix(".weight"): {path.removeprefix("params/"): specs[path].shape for path in move.flax}
        for move in plan_to_torch(specs, table).moves
        if len(move.torch_shape) == 2 and move.flax[0].endswith("/kernel")
    }


def _matrices(down: Any, up: Any, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The matrices [r i] and [o r] of an adapter, the second scaled."""
    down, up = np.asarray(down), np.asarray(up)
    return down.reshape(-1, down.shape[-1]).T, (up.reshape(len(up), -1) * up.dtype.type(scale)).T


def _joined(kernels: Kernels, given: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The matrices of one layer made of several, which have the inputs in common."""
    pairs = []
    for kernel, shape in kernels.items():
        inputs, outputs = _sizes(kernel, shape)
        pairs.append(given.get(kernel, (np.zeros((0, inputs), np.float32), np.zeros((outputs, 0), np.float32))))
    downs, ups = zip(*pairs, strict=True)
    return np.concatenate(downs), block_diag(*ups).astype(ups[0].dtype)


def _alpha(metadata: Mapping[str, str], path: Path) -> float | None:
    """What the metadata of a file say of alpha; None if nothing."""
    if _METADATA not in metadata:
        return None
    said = parse(metadata[_METADATA].encode(), path, "metadata of LoRA")
    for name in _OTHER_SCALES:
        if said.get(f"{_PREFIX}{name}"):
            raise ConfigError(f"{path}: its LoRA has {name}, and only scales of alpha / rank are read")
    return said.get(f"{_PREFIX}lora_alpha")


def _require_whole(given: Iterable[str], found: Iterable[str], names: Iterable[str]) -> None:
    wanted = [f"{_PREFIX}{name}.lora_{side}.weight" for name in names for side in "AB"]
    Problems(
        missing=[key for key in wanted if key not in found], unexpected=[key for key in given if key not in found]
    ).raise_any()


def _require_fit(pairs: Mapping[str, list[np.ndarray]], layers: Mapping[str, Kernels]) -> None:
    misshapen = []
    for name, (down, up) in pairs.items():
        sizes = [_sizes(*kernel) for kernel in layers[name].items()]
        inputs, outputs, rank = sizes[0][0], sum(size for _, size in sizes), len(down)
        if (down.shape, up.shape) != ((rank, inputs), (outputs, rank)):
            misshapen.append(f"{name}: lora_B {list(up.shape)} and lora_A {list(down.shape)} for {[outputs, inputs]}")
    Problems(misshapen=misshapen).raise_any()


def _sizes(kernel: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """The inputs and the outputs of a kernel."""
    inputs, outputs = kernel_axes(kernel, shape)
    return math.prod(inputs), math.prod(outputs)
