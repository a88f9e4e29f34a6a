"""Finds the weights of a pipeline's part, of the variant that is asked for."""

import re
from pathlib import Path

from interop.files import FileError, Weights, open_weights, shards
from interop.files.errors import listed

_STEMS = "diffusion_pytorch_model|model|pytorch_model"
# of torch's files alone: diffusion_pytorch_model.fp16.safetensors, model.safetensors.index.fp16.json
_VARIANT = re.compile(
    rf"(?:{_STEMS})\.(?:(?P<one>\w+)(?:-\d{{5}}-of-\d{{5}})?\.(?:safetensors|bin)"
    r"|(?:safetensors|bin)\.index\.(?P<many>\w+)\.json)"
)


def variant_of(name: str) -> str | None:
    """The variant that a file's name says it is of."""
    found = _VARIANT.fullmatch(name)
    return found and (found["one"] or found["many"])


def open_part(folder: Path, variant: str | None = None) -> Weights:
    """Opens the weights in the folder of a pipeline's part, safe formats first.

    Args:
        folder: such as ``unet``.
        variant: what stands in the files' names, such as ``fp16``; None: the files without.

    Raises:
        FileError: if there are none, naming the variants there are; or a file is damaged or unsafe.
    """
    found = {path.name: variant_of(path.name) for path in sorted(folder.iterdir())}
    variants = sorted(set(found.values()) - {None})
    if variant is None:
        plain = [
            name for name, of in found.items() if of is None and name.endswith((".safetensors", ".bin", ".msgpack"))
        ]
        if variants and not plain:
            raise FileError(folder, f"all weights are of a variant, {listed(variants)}", remedy="ask for it")
        return open_weights(folder)
    names = [name for name, of in found.items() if of == variant]
    if not names:
        raise FileError(
            folder,
            f"no weights of the variant {variant!r} are there, but {listed(variants) or 'of none'}",
            remedy="ask for one that is there, or none",
        )
    # an index before the shards that it lists, and safetensors before .bin
    path = folder / min(names, key=lambda name: (".bin" in name, ".index." not in name))
    return shards.open_index(path, open_weights) if ".index." in path.name else open_weights(path)
