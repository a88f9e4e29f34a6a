import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit.losses.vector_quantization import (
    code_counts,
    codebook_entropy,
    commitment,
    perplexity,
    usage,
    vector_quantization,
)

with warnings.catch_warnings():
    # what diffusers imports is partly deprecated
    warnings.simplefilter("ignore")
    from diffusers.models.autoencoders.vae import VectorQuantizer


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("parity", "legacy"), [("paper", False), ("open-muse", True)])
def test_the_loss_and_both_its_gradients_are_those_of_diffusers(parity, legacy):
    z, codebook = draw(2, 3, 4, 5), draw(8, 5, seed=1)
    theirs = VectorQuantizer(8, 5, beta=0.25, legacy=legacy)
    theirs.embedding.weight.data.copy_(torch.from_numpy(codebook))
    latents = torch.from_numpy(z.transpose(0, 3, 1, 2).copy()).requires_grad_()
    _, expected, (_, _, tokens) = theirs(latents)
    expected.backward()
    tokens = tokens.numpy().reshape(2, 3, 4)

    def loss(z, codebook):
        return vector_quantization(z, codebook[tokens], parity=parity).mean()

    value, (of_z, of_codebook) = jax.value_and_grad(loss, argnums=(0, 1))(jnp.asarray(z), jnp.asarray(codebook))
    # float32
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(of_z, latents.grad.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(of_codebook, theirs.embedding.weight.grad, rtol=1e-5, atol=1e-8)


def test_by_default_the_codebook_is_drawn_harder_than_the_encoder():
    z, z_q = jnp.asarray(draw(2, 3, 4, 5)), jnp.asarray(draw(2, 3, 4, 5, seed=1))
    of_z, of_z_q = jax.grad(lambda *zs: vector_quantization(*zs, beta=0.5).sum(), argnums=(0, 1))(z, z_q)
    np.testing.assert_allclose(of_z, -0.5 * of_z_q, rtol=1e-6)


def test_commitment_draws_latents_alone():
    z, z_q = jnp.asarray(draw(2, 3, 4, 5)), jnp.asarray(draw(2, 3, 4, 5, seed=1))
    of_z, of_z_q = jax.grad(lambda *zs: commitment(*zs).sum(), argnums=(0, 1))(z, z_q)
    np.testing.assert_allclose(of_z, 2 * (z - z_q) / 60, rtol=1e-5)
    assert not of_z_q.any()


def googles_entropy(affinity, temperature):
    """Of all positions together, in float64."""
    logits = affinity.reshape(-1, affinity.shape[-1]).astype(np.float64) / temperature
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    average = p.mean(0)
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1).mean() + (average * np.log(average + 1e-5)).sum()


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_the_entropy_loss_is_googles(temperature):
    affinity = draw(3, 2, 4, 8)
    found = codebook_entropy(jnp.asarray(affinity), temperature=temperature)
    assert found.shape == (3,)
    np.testing.assert_allclose(found.mean(), googles_entropy(affinity, temperature), rtol=1e-5)


def test_the_entropy_loss_lies_between_sure_of_all_codes_and_sure_of_one():
    eye = 10 * jnp.eye(8).reshape(1, 2, 4, 8)
    # Google's 1e-5 under the logarithm moves the entropy of 8 codes by 8e-5
    np.testing.assert_allclose(codebook_entropy(eye), -np.log(8), atol=1e-4)
    np.testing.assert_allclose(codebook_entropy(jnp.broadcast_to(eye[:, :1, :1], eye.shape)), 0, atol=1e-4)


def test_the_entropy_losss_gradient_is_finite_where_codes_are_out_of_reach():
    affinity = jnp.asarray(draw(2, 2, 2, 16)) * 100
    assert not jax.nn.softmax(affinity / 0.01).all()
    gradient = jax.grad(lambda a: codebook_entropy(a).mean())(affinity)
    assert jnp.isfinite(gradient).all()


def test_eight_devices_take_the_entropy_of_the_whole_batch():
    affinity = jnp.asarray(draw(16, 2, 2, 8))
    split = affinity.reshape(8, 2, 2, 2, 8)
    found = jax.pmap(lambda a: codebook_entropy(a, temperature=0.5, axis_name="data"), "data")(split)
    np.testing.assert_allclose(found.reshape(-1), codebook_entropy(affinity, temperature=0.5), rtol=1e-5)


def test_usage_and_perplexity_count_codes():
    counts = code_counts(jnp.array([[[0, 0], [3, 3]], [[5, 5], [0, 3]]]), 10)
    assert np.array_equal(counts, [3, 0, 0, 3, 0, 2, 0, 0, 0, 0])
    np.testing.assert_allclose(usage(counts), 0.3, rtol=1e-6)
    p = np.array([3, 3, 2]) / 8
    np.testing.assert_allclose(perplexity(counts), np.exp(-(p * np.log(p)).sum()), rtol=1e-6)
    np.testing.assert_allclose(perplexity(jnp.ones(10)), 10, rtol=1e-6)
