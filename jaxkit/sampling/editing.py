"""Prepares tokens of an image for sampling, and puts the result back: image to image, inpainting, outpainting.

Inpainting needs no more than ``jnp.where(token_mask(mask, factor), mask_token, tokens)``.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxkit.errors import ShapeError
from jaxkit.sampling.sampler import Sampler


def noise_tokens(
    key: PRNGKeyArray,
    tokens: Int[Array, "b h w"],
    sampler: Sampler,
    *,
    start: int,
    mask_token: int,
    uniforms: Float[Array, "b h w"] | None = None,
) -> Int[Array, "b h w"]:
    """Masks tokens of an image at random, at the rate that sampling from step ``start`` expects: image to image.

    ``sample_tokens(..., start=start, total=h * w)`` goes on from there, with ``start = sampler.start(strength)``. At
    step 0 all is masked (diffusers' AmusedImg2ImgPipeline masks nothing there, and returns its input).

    Source: diffusers' ``AmusedScheduler.add_noise``.

    Args:
        key: decides which, unless ``uniforms`` in [0, 1) do: those below the rate.
        tokens: of the image.
        sampler: has the schedule.
        start: the first step that will be taken.
        mask_token: of the network.
        uniforms: None: the key's.
    """
    rate = sampler.schedule(start / sampler.steps)
    uniforms = jax.random.uniform(key, tokens.shape) if uniforms is None else uniforms
    return jnp.where(uniforms < rate, mask_token, tokens)


def outpaint(
    tokens: Int[Array, "b h w"], *, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0, mask_token: int
) -> Int[Array, "b h2 w2"]:
    """Sets tokens into a larger grid that is masked around them, by as many tokens as given on each side."""
    return jnp.pad(tokens, ((0, 0), (top, bottom), (left, right)), constant_values=mask_token)


def outpaint_windows(
    size: tuple[int, int], *, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0
) -> Int[np.ndarray, "t 2"]:
    """Lists where windows of ``size`` tokens lie on the grid of :func:`outpaint`, in the order they are to be filled.

    Each but the image's own, which is left out, overlaps what is known before it by half in height or in width (by
    more at the edges): a network of one grid paints a larger one.

    Source: Chang et al., "MaskGIT: Masked Generative Image Transformer", CVPR 2022, section 4.3.

    Returns:
        rows and columns of the windows' first tokens.
    """
    rows, columns = _starts(size[0], top, bottom), _starts(size[1], left, right)
    return np.array([(y, x) for y in rows for x in columns][1:], np.int32).reshape(-1, 2)


def _starts(size: int, before: int, after: int) -> list[int]:
    """Where windows begin along one axis: the image's own, those before it, those after it."""
    stride = max(1, size // 2)
    back = [max(0, before - done) for done in range(stride, before + stride, stride)]
    return [before, *back, *(before + min(after, done) for done in range(stride, after + stride, stride))]


def token_mask(
    mask: Bool[Array, "b y x"] | Float[Array, "b y x"], factor: int, *, threshold: float = 0.5, dilate: int = 0
) -> Bool[Array, "b h w"]:
    """Finds the tokens to repaint from a mask of pixels, 1 where they are to be.

    Args:
        mask: of the image.
        factor: pixels a token in each direction.
        threshold: the share of its pixels from which on a token is repainted.
        dilate: tokens by which the area grows in each direction; MaskGIT's editing has 1.

    Raises:
        ShapeError: for a mask whose sides are no multiples of ``factor``.
    """
    if mask.shape[1] % factor or mask.shape[2] % factor:
        raise ShapeError(f"a mask of {mask.shape[1]} x {mask.shape[2]} pixels has no whole tokens of {factor} pixels")
    share = reduce(mask.astype(jnp.float32), "b (h i) (w j) -> b h w", "mean", i=factor, j=factor)
    size = 2 * dilate + 1
    return lax.reduce_window(share >= threshold, False, lax.bitwise_or, (1, size, size), (1, 1, 1), "SAME")


def composite(
    image: Float[Array, "b y x c"],
    generated: Float[Array, "b y x c"],
    mask: Bool[Array, "b y x"] | Float[Array, "b y x"],
    *,
    blur: float = 0.0,
) -> Float[Array, "b y x c"]:
    """Puts what was generated into the image where the mask is 1, with a soft edge: a Gaussian of ``blur`` pixels.

    Source: MaskGIT's editing demonstration, which blurs the mask of the area it repaints.
    """
    weight = mask.astype(image.dtype)
    if blur > 0:
        reach = round(3 * blur)
        kernel = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1, dtype=image.dtype) / blur) ** 2)
        kernel = kernel / kernel.sum()
        padded = jnp.pad(weight, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
        along_x = jax.vmap(jax.vmap(lambda row: jnp.convolve(row, kernel, "valid")))
        weight = rearrange(along_x(rearrange(along_x(padded), "b y x -> b x y")), "b x y -> b y x")
    weight = rearrange(weight, "b y x -> b y x 1")
    return weight * generated + (1 - weight) * image
