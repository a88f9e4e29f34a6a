"""A learned word as a file that ``load_textual_inversion`` of diffusers reads."""

import json
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32

_ALIGNMENT = 8


def embedding_file(token: str, rows: Float32[np.ndarray, "n d"], about: Mapping[str, str]) -> bytes:
    """Writes vectors as safetensors, one array called ``token``, with ``about`` as its metadata.

    The library's own writer puts metadata in another order every time, and a file of the same numbers is to have the
    same bytes. Source: the format's description, huggingface/safetensors.
    """
    data = np.ascontiguousarray(rows, "<f4").tobytes()
    array = {"dtype": "F32", "shape": list(rows.shape), "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": dict(sorted(about.items())), token: array}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header + data
