import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit.errors import ShapeError
from jaxkit.sampling.editing import composite, noise_tokens, outpaint, outpaint_windows, token_mask
from jaxkit.sampling.sampler import Sampler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AmusedScheduler


@pytest.mark.parametrize("start", [1, 4, 9])
def test_the_noise_of_an_image_is_that_of_amused_scheduler(start):
    tokens = np.random.default_rng(0).integers(0, 50, (2, 6, 5))
    scheduler = AmusedScheduler(mask_token_id=99)
    scheduler.set_timesteps(10)
    state = torch.Generator().manual_seed(1)
    uniforms = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)).numpy()
    theirs = scheduler.add_noise(torch.from_numpy(tokens), scheduler.timesteps[start - 1], state).numpy()
    ours = noise_tokens(
        jax.random.key(0),
        jnp.asarray(tokens),
        Sampler(steps=10),
        start=start,
        mask_token=99,
        uniforms=jnp.asarray(uniforms),
    )
    np.testing.assert_array_equal(ours, theirs)


def test_an_image_taken_up_at_the_first_step_is_masked_altogether():
    tokens = jnp.zeros((2, 4, 4), jnp.int32)
    assert np.all(noise_tokens(jax.random.key(0), tokens, Sampler(), start=0, mask_token=9) == 9)


def test_outpainting_surrounds_an_image_with_masked_tokens():
    tokens = jnp.asarray([[[1, 2], [3, 4]]])
    larger = outpaint(tokens, top=1, left=2, right=1, mask_token=9)
    assert larger.tolist() == [[[9, 9, 9, 9, 9], [9, 9, 1, 2, 9], [9, 9, 3, 4, 9]]]


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (1, 2)])
@pytest.mark.parametrize("around", [(0, 0, 1, 0), (3, 0, 0, 9), (5, 6, 7, 2)])
def test_windows_cover_what_surrounds_an_image_and_each_overlaps_what_is_known_by_half_of_one_side(size, around):
    margins = dict(zip(("top", "bottom", "left", "right"), around, strict=True))
    known = outpaint(jnp.zeros((1, *size), jnp.int32), mask_token=1, **margins)[0] == 0
    known = np.array(known)
    for top, left in outpaint_windows(size, **margins):
        window = known[top : top + size[0], left : left + size[1]]
        assert window.shape == size
        assert not window.all()
        # of a side of one token no half can be known: the window touches what is known
        assert min(size) == 1 or max(window.any(0).mean(), window.any(1).mean()) >= 0.5
        window[:] = True
    assert known.all()


def test_a_token_is_repainted_from_the_share_of_its_pixels_on_that_the_threshold_says():
    mask = np.zeros((1, 4, 6), np.float32)
    mask[0, :2, :2] = 1
    mask[0, 2, 2:4] = 1
    mask[0, 3, 5] = 1
    assert token_mask(jnp.asarray(mask), 2).tolist() == [[[True, False, False], [False, True, False]]]
    assert token_mask(jnp.asarray(mask), 2, threshold=0.25).tolist() == [[[True, False, False], [False, True, True]]]


def test_a_dilated_mask_grows_by_tokens_in_each_direction():
    mask = np.zeros((1, 5, 6), bool)
    mask[0, 2, 0] = True
    expected = np.zeros((1, 5, 6), bool)
    expected[0, 1:4, :2] = True
    np.testing.assert_array_equal(token_mask(jnp.asarray(mask), 1, dilate=1), expected)


def test_a_mask_that_is_no_whole_number_of_tokens_is_refused():
    with pytest.raises(ShapeError, match="5 x 4 pixels has no whole tokens of 2"):
        token_mask(jnp.zeros((1, 5, 4), bool), 2)


def test_a_composite_is_the_image_outside_the_mask_and_generated_within_with_a_soft_edge():
    image, generated = jnp.zeros((1, 32, 40, 3)), jnp.ones((1, 32, 40, 3))
    mask = jnp.zeros((1, 32, 40), bool).at[:, :, 20:].set(True)
    hard, soft = composite(image, generated, mask), composite(image, generated, mask, blur=2.0)
    np.testing.assert_array_equal(hard[..., 0], mask)
    edge = np.asarray(soft[0, :, :, 0])
    np.testing.assert_allclose(edge, edge[:1].repeat(32, 0), atol=1e-6)  # every row is alike, the first too
    assert np.all(np.diff(edge[0]) >= -1e-6)
    assert edge[0, :13].max() == 0  # further than three deviations
    np.testing.assert_allclose(edge[0, 27:], 1, atol=1e-6)
    assert edge[0, 19] + edge[0, 20] == pytest.approx(1, abs=1e-6)
