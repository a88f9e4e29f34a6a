"""Folders that hold weights: save_pretrained's, Orbax checkpoints, and the workdirs of training runs."""

from collections.abc import Callable
from pathlib import Path

from interop.files import orbax, shards
from interop.files.errors import FileError, listed
from interop.files.weights import Weights
from jaxkit.errors import ConfigError

# under which metadata has the name of a run's model
MODEL = "jaxkit.model"
# what save_pretrained writes, safe formats first
NAMES = (
    "model.safetensors", "model.safetensors.index.json", "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json", "pytorch_model.safetensors",
    "pytorch_model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin", "flax_model.msgpack", "diffusion_flax_model.msgpack",
)  # fmt: skip


def open_folder(folder: Path, container: str | None, open_file: Callable[[Path], Weights]) -> Weights:
    """Opens the weights in a folder: of a run, of a checkpoint, or of the first of :data:`NAMES` there is.

    Args:
        folder: what the user named.
        container: which of several trees to take, where a checkpoint has several.
        open_file: opens a file or an index.

    Raises:
        FileError: if there is nothing to open, or it is damaged.
        ConfigError: if several things could be meant, or there is no such container.
    """
    if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
        return _open_workdir(folder, container)
    if (folder / "checksums.json").is_file():
        return _open_step(folder, container, [])
    if orbax.is_checkpoint(folder):
        if container is not None:
            raise ConfigError(f"{folder} has no containers; leave {container!r} out")
        return orbax.open_folder(folder)
    if (folder / orbax.CHECKPOINT).is_file():
        return _open_item(folder, container)
    found = [name for name in NAMES if (folder / name).is_file()]
    indices = [] if found else sorted(path.name for path in folder.glob(f"*{shards.SUFFIX}"))
    if len(indices) > 1:
        raise ConfigError(f"{folder} holds several models; name one of {listed(indices)}")
    if not found and not indices:
        held = listed(sorted(path.name for path in folder.iterdir()))
        raise FileError(
            folder, f"no weights are in this folder, but {held or 'nothing'}", remedy="name the file itself"
        )
    weights = open_file(folder / [*found, *indices][0])
    if found[1:]:
        weights.notes.append(f"took {found[0]}; {listed(found[1:])} is there too")
    return weights


def _open_item(folder: Path, container: str | None) -> Weights:
    """Opens one tree of an Orbax checkpoint that has several items."""
    items = sorted(path.name for path in folder.iterdir() if orbax.is_checkpoint(path))
    if container is None and len(items) != 1 and "default" not in items:
        raise ConfigError(f"{folder} holds {listed(items) or 'no trees of arrays'}; choose one as the container")
    name = container or ("default" if "default" in items else items[0])
    if name not in items:
        raise ConfigError(f"{folder}: no container {name!r} is there; choose one of {listed(items)}")
    weights = orbax.open_folder(folder / name)
    weights.notes.append(f"took '{name}' of {listed(items)}")
    return weights


def _open_workdir(folder: Path, container: str | None) -> Weights:
    """Opens the best checkpoint of a run, as its evaluation does; the last where none has the metric."""
    from jaxkit import checkpoint
    from jaxkit.config import load

    directory = folder / "checkpoints"
    steps = checkpoint.saved_steps(directory)
    if not steps:
        raise FileError(folder, "the run has no checkpoint yet", remedy="train it first")
    try:
        best = checkpoint.best_step(directory, *load(folder / "config.yaml").ranking())
    except checkpoint.CheckpointError as error:
        raise FileError(folder, str(error), remedy="take another step's") from None
    step = best if best is not None else steps[-1]
    which = "best" if best is not None else "last"
    return _open_step(directory / str(step), container, [f"took the {which} checkpoint, of step {step}"])


def _open_step(folder: Path, container: str | None, notes: list[str]) -> Weights:
    """Opens what a run evaluates: its parameters, averaged where it keeps an average, and its other collections."""
    from jaxkit import checkpoint

    if reason := checkpoint.damage(folder):
        raise FileError(folder, f"the checkpoint is damaged: {reason}", remedy="take another step's")
    choices = [name for name in ("averaged", "params") if (folder / name).is_dir()]
    if container is not None and container not in choices:
        raise ConfigError(f"{folder}: no container {container!r} is there; choose one of {listed(choices)}")
    name = container or choices[0]
    if "averaged" in choices:
        notes = [*notes, "took the averaged parameters" if name == "averaged" else "took the parameters, not averaged"]
    parameters = orbax.open_folder(folder / name)
    entries = {f"params/{path}": entry for path, entry in parameters.entries().items()}
    if (folder / "state").is_dir():
        entries |= orbax.open_folder(folder / "state").entries()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    metadata = {"step": folder.name, **_model(folder.parent.parent / "config.yaml")}
    return Weights(folder, "flax", entries, files=files, metadata=metadata, notes=notes)


def _model(config: Path) -> dict[str, str]:
    """What the metadata says of the model that a run's config names, where there is one."""
    from jaxkit.config import load, trained_model

    model = trained_model(load(config).task) if config.is_file() else None
    return {} if model is None else {MODEL: model.name}
