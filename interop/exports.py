"""Runs of jaxkit as folders of other projects, by the task of the run; and these on the model hub."""

from pathlib import Path

from interop.diffusion import runs as diffusion
from interop.masked import runs as masked
from interop.masked.folders import Layout
from jaxkit.config import run_config
from jaxkit.errors import ConfigError, UserError

_DIFFUSION = ("text_to_image", "textual_inversion")


def export_run(
    workdir: str | Path,
    path: str | Path,
    layout: Layout | None = None,
    step: int | None = None,
    force: bool = False,
    pipeline: str | Path | None = None,
) -> list[str]:
    """Writes what a run has trained as a folder of another project; returns lines to print.

    Arguments and errors as :func:`interop.masked.runs.export_run`; of latent diffusion, whose folders have one layout,
    as :func:`interop.diffusion.runs.export_run`, and ConfigError for a ``layout`` or a ``pipeline``.
    """
    task = run_config(workdir).task.name
    if task not in _DIFFUSION:
        return masked.export_run(workdir, path, layout, step, force, pipeline)
    for flag, value in (("--layout", layout), ("--pipeline", pipeline)):
        if value is not None:
            raise ConfigError(f"{flag}: a run of the task {task} becomes a whole pipeline of diffusers; leave it out")
    return diffusion.export_run(workdir, path, step, force)


def upload(path: str | Path, name: str) -> str:
    """Uploads a folder, or a file, to the model hub, as ``HF_TOKEN`` or a stored login allows; returns where it is.

    A repository that is there gets the files, and keeps others that it has.

    Raises:
        ConfigError: for a name that is not like owner/name.
        UserError: if it cannot be uploaded.
    """
    path = Path(path)
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise UserError(f"--push-to-hub needs {error.name}: pip install 'jaxkit[diffusion]'") from error
    hub = HfApi()
    try:
        place = hub.create_repo(name, exist_ok=True)
        if path.is_dir():
            hub.upload_folder(repo_id=name, folder_path=path)
        else:
            hub.upload_file(repo_id=name, path_or_fileobj=path, path_in_repo=path.name)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {name}: is no name of a repository, which is like owner/name") from error
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--push-to-hub {name}: cannot be uploaded ({reason}); {path} is written and stays. Log in with "
            "`hf auth login`, or set HF_TOKEN to a token that may write"
        ) from error
    return f"{path}: uploaded to {place}"
