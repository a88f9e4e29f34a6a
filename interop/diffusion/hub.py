"""Where a pipeline's folder lies: on this machine, or on the model hub, from which what is needed is downloaded."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from interop.diffusion.weights import variant_of
from jaxkit.errors import ConfigError, UserError

# safe formats first
_FORMATS = (".safetensors", ".bin", ".msgpack")
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler", "tokenizer", "tokenizer_2")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "flax_model", "diffusion_flax_model")


def pipeline_folder(name: str, variant: str | None = None, revision: str | None = None) -> Path:
    """Finds the folder of a pipeline.

    Args:
        name: a folder, or a name of the model hub such as ``stabilityai/stable-diffusion-2-1``. Of the hub's only the
            files that :func:`interop.diffusion.folders.load_pipeline` reads are downloaded, and what is there is not
            downloaded again.
        variant: of the weights.
        revision: a branch, tag or commit of the hub's.

    Raises:
        ConfigError: if it is no folder, and no name that the hub can have.
        UserError: if it cannot be downloaded.
    """
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise ConfigError(f"{name}: there is no such folder, and names of the model hub are like owner/name")
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise UserError(f"{name}: downloads need {error.name}: pip install 'jaxkit[diffusion]'") from error
    try:
        files = needed(HfApi().list_repo_files(name, revision=revision), variant)
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except (OSError, ValueError) as error:
        failure = error
    try:
        # off the net, what was once downloaded
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        reason = str(failure).strip().partition("\n")[0]
        raise UserError(
            f"{name}: cannot be downloaded ({reason}); give the path of a folder that diffusers wrote"
        ) from failure


def needed(files: Iterable[str], variant: str | None = None) -> list[str]:
    """Chooses of a pipeline's files those that are read: of each part the weights of one format, of the variant."""
    files, chosen = list(files), ["model_index.json"]
    for part in _PARTS:
        held = [name for name in files if str(PurePosixPath(name).parent) == part]
        weights = [name for name in held if PurePosixPath(name).name.startswith(_STEMS)]
        chosen += [name for name in held if name not in weights and PurePosixPath(name).suffix in (".json", ".txt")]
        own = [name for name in weights if variant_of(PurePosixPath(name).name) == variant]
        best = next((end for end in _FORMATS if any(name.endswith(end) for name in own)), None)
        chosen += [name for name in own if best is not None and best in name]
    return chosen
