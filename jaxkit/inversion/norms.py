"""What the lengths of new words' vectors are held to after each update; far longer ones drown the rest of a text."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

Scalar = float | Float[Array, ""]


def median_norm(table: Float32[np.ndarray, "v d"]) -> float:
    """Takes the median length of the table's rows; of an even number of rows the lower middle, as torch does."""
    return float(np.sort(np.linalg.norm(table, axis=1))[(len(table) - 1) // 2])


def median(rows: Float[Array, "n d"], target: Scalar) -> Float[Array, "n d"]:
    """Gives each row the length ``target``, which is the table's :func:`median_norm`: ``r target / ‖r‖``.

    Source: OneTrainer's ``preserve_embedding_norm``.
    """
    return rows * (target / _norms(rows))


def decay(rows: Float[Array, "n d"], rate: Scalar, target: Scalar = 0.4) -> Float[Array, "n d"]:
    """Brings the length of each row a share ``rate`` of the way to ``target``: ``‖r‖ + rate (target - ‖r‖)``.

    Source: cloneofsimo's lora, ``clip_ti_decay``; its rate is ``min(1, 100 learning_rate)``.
    """
    norms = _norms(rows)
    return rows * ((norms + rate * (target - norms)) / norms)


def table_std(table: Float32[np.ndarray, "v d"]) -> float:
    """Takes the standard deviation of all numbers of the table, of a sample as torch does."""
    return float(table.std(dtype=np.float64, ddof=1))


def std(rows: Float[Array, "n d"], target: Scalar) -> Float[Array, "n d"]:
    """Draws the spread of the rows to that of the table, by a tenth on a scale of logarithms: ``r (target / σ)^0.1``.

    ``σ`` is of all numbers of the rows together, ``target`` the table's :func:`table_std`.

    Source: diffusers' advanced_diffusion_training, ``TokenEmbeddingsHandler.retract_embeddings``.
    """
    return rows * (target / jnp.std(rows, ddof=1)) ** 0.1


def _norms(rows: Float[Array, "n d"]) -> Float[Array, "n 1"]:
    return jnp.linalg.norm(rows, axis=1, keepdims=True)
