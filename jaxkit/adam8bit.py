"""Adam whose moments take a byte each.

Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022, sections 2.1 and 2.2; the size of
blocks and of what stays in float32 are those of bitsandbytes.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jaxtyping import Array, Float, Int, PyTree, UInt8

BLOCK = 256
# parameters of fewer entries keep float32 moments
SMALLEST = 4096


def dynamic_codes(signed: bool) -> Float[np.ndarray, "256"]:
    """Lists the numbers in [-1, 1], or in [0, 1], that a byte stands for, in rising order.

    The first bits of a byte count decades down from 1, and those left cut a decade into equal parts: the one next to 1
    into the most, each below it into half as many.
    """
    codes = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        middles = 10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2
        codes.extend(middles)
        codes.extend(-middles if signed else ())
    return np.sort(codes).astype(np.float32)


class Blocks(NamedTuple):
    """An array in bytes: entries in blocks, each a share of its block's largest."""

    codes: UInt8[Array, "n 256"]
    largest: Float[Array, " n"]


def quantize(array: Float[Array, "..."], signed: bool) -> Blocks:
    """Rounds an array to bytes; entries beyond its end are 0. Without sign nothing but 0 becomes 0.

    Of second moments that were rounded to 0 beside first ones that were not a step would be of ``m / eps``.
    """
    flat = jnp.pad(array.reshape(-1), (0, -array.size % BLOCK))
    blocks = rearrange(flat, "(n m) -> n m", m=BLOCK)
    largest = jnp.abs(blocks).max(1)
    shares = blocks / jnp.maximum(largest, jnp.finfo(jnp.float32).tiny)[:, None]
    codes = dynamic_codes(signed)
    found = jnp.searchsorted((codes[:-1] + codes[1:]) / 2, shares)
    found = found if signed else jnp.maximum(found, blocks > 0)
    return Blocks(found.astype(jnp.uint8), largest)


def dequantize(blocks: Blocks, shape: tuple[int, ...], signed: bool) -> Float[Array, "..."]:
    """The array of ``shape`` that bytes stand for."""
    flat = jnp.asarray(dynamic_codes(signed))[blocks.codes] * blocks.largest[:, None]
    return flat.reshape(-1)[: math.prod(shape)].reshape(shape)


class Adam8bitState(NamedTuple):
    """Updates so far, and both moments: :class:`Blocks` of large parameters, arrays of small ones."""

    count: Int[Array, ""]
    mu: PyTree
    nu: PyTree


def scale_by_adam_8bit(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Makes Adam's direction ``m̂ / (sqrt(v̂) + eps)`` with moments that are kept in bytes between updates.

    An update is made in float32, of the moments before they are rounded.
    """

    def init(params):
        def zeros(signed):
            # each moment its own: they are donated together
            return jax.tree.map(lambda p: _kept(jnp.zeros(p.shape, jnp.float32), signed), params)

        return Adam8bitState(jnp.zeros((), jnp.int32), zeros(True), zeros(False))

    def update(gradients, state, params=None):
        count = state.count + 1
        correct1, correct2 = (-jnp.expm1(count * math.log(b)) if b else 1.0 for b in (b1, b2))
        leaves, structure = jax.tree.flatten(gradients)
        mu, nu = (structure.flatten_up_to(tree) for tree in (state.mu, state.nu))
        directions, moments = [], ([], [])
        for gradient, m, v in zip(leaves, mu, nu, strict=True):
            g = gradient.astype(jnp.float32)
            m = b1 * _read(m, g.shape, signed=True) + (1 - b1) * g
            v = b2 * _read(v, g.shape, signed=False) + (1 - b2) * jnp.square(g)
            directions.append((m / correct1 / (jnp.sqrt(v / correct2) + eps)).astype(gradient.dtype))
            for kept, moment, signed in zip(moments, (m, v), (True, False), strict=True):
                kept.append(_kept(moment, signed))
        return structure.unflatten(directions), Adam8bitState(count, *map(structure.unflatten, moments))

    return optax.GradientTransformation(init, update)


def _kept(moment: Float[Array, "..."], signed: bool) -> Blocks | Array:
    return quantize(moment, signed) if moment.size >= SMALLEST else moment


def _read(kept: Blocks | Array, shape: tuple[int, ...], signed: bool) -> Float[Array, "..."]:
    return dequantize(kept, shape, signed) if isinstance(kept, Blocks) else kept
