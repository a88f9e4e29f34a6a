"""Reads what runs left behind, for tests to compare."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp


def arrays(folder: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by item and path."""
    root = (folder / "checkpoints" / str(step)).absolute()
    found = {}
    for item in sorted(path.name for path in root.iterdir() if (path / "_METADATA").is_file()):
        with ocp.StandardCheckpointer() as reader:
            metadata = reader.metadata(root / item).item_metadata.tree
            like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), metadata)
            tree = reader.restore(root / item, like)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            found[f"{item}/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = np.asarray(leaf)
    return found


def learned(folder: Path, step: int) -> dict[str, np.ndarray]:
    """The parameters and statistics of a checkpoint."""
    return {path: array for path, array in arrays(folder, step).items() if not path.startswith("optimizer/")}


def identical(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether both hold the same paths with the same bytes."""
    return one.keys() == other.keys() and all(one[path].tobytes() == other[path].tobytes() for path in one)


def largest_difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest absolute difference between arrays of the same path."""
    assert one.keys() == other.keys()
    return max(float(np.abs(one[path].astype(np.float64) - other[path]).max(initial=0)) for path in one)
