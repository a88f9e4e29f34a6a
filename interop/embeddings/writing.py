"""Writes files of textual inversion that other programs load; each is there in full or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from interop.embeddings.dialects import XL
from interop.embeddings.embedding import Embedding, counts_problem, rows_problem, shape_problem
from interop.embeddings.pickles import PARAMETERS
from interop.files import safetensors, torch_files
from interop.files.atomic import publish, require_free, staged
from interop.layout import Spec
from jaxkit.errors import ConfigError, UserError

Format = Literal["diffusers", "bin", "a1111", "sdxl"]
_SUFFIXES = {"diffusers": ".safetensors", "bin": ".bin", "a1111": ".pt", "sdxl": ".safetensors"}
# the id of CLIP's "*", under which AUTOMATIC1111 and the paper's code file every word
_STAR = ("*", 265)


def write(
    embedding: Embedding, destination: str | Path, format: Format = "diffusers", *, force: bool = False
) -> list[Path]:
    """Writes a learned word.

    Args:
        embedding: the word; its vectors are written as float32, bit for bit.
        destination: a file with the suffix of the format: .safetensors, .bin or .pt.
        format: ``diffusers``, ``bin`` (diffusers too, a pickle), ``a1111``, or ``sdxl`` (``clip_l`` and ``clip_g``).
            diffusers keeps the two text encoders of XL in two files: the second is named like the first, with ``_2``.
        force: whether what is there is replaced.

    Returns:
        the files written.

    Raises:
        ConfigError: if something is there and ``force`` is off, or the format does not have such words.
        UserError: if vectors are not numbers, or the disk is full or refuses.
    """
    destination = Path(destination)
    if format not in get_args(Format):
        raise ConfigError(f"there is no format {format!r}; choose one of {', '.join(get_args(Format))}")
    if destination.suffix != _SUFFIXES[format]:
        raise ConfigError(f"{destination}: a file of the format {format} ends with {_SUFFIXES[format]}")
    _require_sound(embedding, destination, format)
    contents = _contents(embedding, destination, format)
    require_free(contents, force)
    if folders := [path for path in contents if path.is_dir()]:
        raise ConfigError(f"{folders[0]} is a folder; name a file")
    with staged(destination.parent, destination, sum(rows.nbytes for rows in embedding.rows)) as folder:
        for path, tensors in contents.items():
            _write(folder / path.name, tensors, embedding, format)
        publish(folder, {folder / path.name: path for path in contents})
    return list(contents)


def _require_sound(embedding: Embedding, destination: Path, format: Format) -> None:
    token, encoders = embedding.token, len(embedding.rows)
    if not token or not token.isprintable() or any(map(str.isspace, token)):
        raise ConfigError(f"{destination}: {token!r} is no token, which has no white space; choose one with --token")
    if encoders not in (1, 2):
        raise ConfigError(f"{destination}: {token} has vectors of {encoders} text encoders; models have one or two")
    if format == "a1111" and encoders != 1:
        raise ConfigError(f"{destination}: a1111 has vectors of one text encoder, not {encoders}; choose sdxl")
    if format == "sdxl" and encoders != 2:
        raise ConfigError(f"{destination}: sdxl has vectors of two text encoders, not {encoders}; choose diffusers")
    for rows in embedding.rows:
        problem = f"{rows.shape} is not [n d]" if rows.ndim != 2 else shape_problem(rows.shape) or rows_problem(rows)
        if problem := problem or counts_problem(embedding.rows):
            raise UserError(f"{destination}: the vectors of {token} cannot be saved: {problem}")


def _contents(embedding: Embedding, destination: Path, format: Format) -> dict[Path, dict[str, np.ndarray]]:
    """The arrays of each file by name."""
    rows = [np.ascontiguousarray(array, "<f4") for array in embedding.rows]
    if format == "sdxl":
        return {destination: dict(zip(XL, rows, strict=True))}
    places = [destination, destination.with_stem(f"{destination.stem}_2")]
    return {path: {embedding.token: array} for path, array in zip(places, rows, strict=False)}


def _write(path: Path, tensors: Mapping[str, np.ndarray], embedding: Embedding, format: Format) -> None:
    metadata = {**embedding.about, "token": embedding.token}
    specs = {name: Spec(array.shape, array.dtype) for name, array in tensors.items()}
    if format == "a1111":
        torch = torch_files.require_torch()
        torch.save(_of_webui(embedding, torch), path)
    elif format == "bin":
        torch_files.write_file(path, specs, tensors.items(), metadata)
    else:
        safetensors.write_file(path, specs, tensors.items(), metadata, "torch")


def _of_webui(embedding: Embedding, torch: Any) -> dict[str, Any]:
    """What AUTOMATIC1111 pickles; its step is a number."""
    star, number = _STAR
    step = embedding.about.get("step", "")
    return {
        "string_to_token": {star: number},
        PARAMETERS: {star: torch.from_numpy(np.array(embedding.rows[0], np.float32))},
        "name": embedding.token,
        "step": int(step) if step.isascii() and step.isdigit() and len(step) < 19 else None,
        "sd_checkpoint": embedding.about.get("sd_checkpoint"),
        "sd_checkpoint_name": embedding.about.get("sd_checkpoint_name"),
    }
