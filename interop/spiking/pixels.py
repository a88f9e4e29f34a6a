"""The synapses of convolutions: inferno keeps one for every pixel of every window, we keep one for every pixel."""

import jax.numpy as jnp
import numpy as np

from jaxkit.spiking.connections import Connection, Conv2D


def their_synapses(connection: Connection) -> tuple[int, ...]:
    """The shape, without batch, of what inferno keeps of a connection's synapses."""
    return _pixels(connection).shape if isinstance(connection, Conv2D) else connection.synapse_shape


def fold(connection: Connection, windows: np.ndarray) -> tuple[np.ndarray, int]:
    """Brings windows ``[... n l]`` back to pixels ``[... c h w]``; and how many copies differ from the pixel's.

    Pixels that are in no window are 0: nothing reads them. The padding must be 0 too. Of other connections nothing
    changes.
    """
    if not isinstance(connection, Conv2D):
        return windows, 0
    index = _pixels(connection)
    flat = np.zeros((*windows.shape[:-2], 1 + np.prod(connection.inshape)), windows.dtype)
    flat[..., index] = windows
    flat[..., 0] = 0
    differing = int((flat[..., index] != windows).sum())
    return flat[..., 1:].reshape(*windows.shape[:-2], *connection.inshape), differing


def unfold(connection: Connection, pixels: np.ndarray) -> np.ndarray:
    """Takes the windows ``[... n l]`` of pixels ``[... c h w]``; of other connections nothing changes."""
    if not isinstance(connection, Conv2D):
        return pixels
    flat = pixels.reshape(*pixels.shape[:-3], -1)
    padded = np.concatenate([np.zeros_like(flat[..., :1]), flat], axis=-1)
    return padded[..., _pixels(connection)]


def _pixels(connection: Conv2D) -> np.ndarray:
    """Which pixel is where in the windows ``[n l]``: its number from 1 on, 0 for the padding."""
    numbers = 1 + np.arange(np.prod(connection.inshape), dtype=np.int32).reshape(connection.inshape)
    return np.asarray(connection.spread(jnp.asarray(numbers)))
