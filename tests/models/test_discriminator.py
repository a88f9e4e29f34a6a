import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from torch import nn

from interop.engine import flatten, to_flax
from interop.layers import batch_norm, conv, group_norm
from jaxkit.errors import ShapeError
from jaxkit.losses.adversarial import r1_penalty
from jaxkit.models.discriminator import PatchDiscriminator

# The networks run once: XLA's cheapest code is ready soonest.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def taming(ndf, layers, norm):
    """What taming builds, and the table of its names."""
    modules, rows, channels = [nn.Conv2d(3, ndf, 4, 2, 1), nn.LeakyReLU(0.2)], [("0", "conv0", conv)], ndf
    for i in range(1, layers + 1):
        wider = ndf * min(2**i, 8)
        kind = nn.BatchNorm2d(wider) if norm == "batch" else nn.GroupNorm(min(wider, 32), wider, 1e-6)
        rows.append((str(len(modules)), f"conv{i}", conv))
        rows.append((str(len(modules) + 1), f"norm{i}", batch_norm if norm == "batch" else group_norm))
        stride = 2 if i < layers else 1
        modules += [nn.Conv2d(channels, wider, 4, stride, 1, bias=norm == "group"), kind, nn.LeakyReLU(0.2)]
        channels = wider
    rows.append((str(len(modules)), f"conv{layers + 1}", conv))
    return nn.Sequential(*modules, nn.Conv2d(channels, 1, 4, 1, 1)), tuple(rows)


def twins(norm, side=24):
    torch.manual_seed(0)
    net, table = taming(16, 2, norm)
    model = PatchDiscriminator(16, 2, norm)
    images = np.random.default_rng(0).uniform(-1, 1, (3, side, side + 8, 3)).astype(np.float32)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(images))

    def convert(leaves):
        return to_flax({key: leaf.detach().numpy() for key, leaf in leaves.items()}, table, like)

    images_torch = torch.from_numpy(rearrange(images, "b h w c -> b c h w").copy()).requires_grad_()
    return net, model, convert, jnp.asarray(images), images_torch


@pytest.fixture(autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_logits_in_training_are_those_of_taming(norm):
    net, model, convert, images, images_torch = twins(norm)
    variables = convert(net.state_dict())
    expected = rearrange(net.train()(images_torch).detach().numpy(), "b c h w -> b h w c")
    logits, moved = model.apply(variables, images, train=True, mutable="batch_stats")
    # float32 sums in another order
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    after = convert(net.state_dict())
    for path, leaf in flatten(dict(moved)).items():
        np.testing.assert_allclose(leaf, flatten(after)[path], rtol=1e-4, atol=1e-6)


def test_r1_and_its_gradient_by_the_parameters_are_those_of_torch():
    net, model, convert, images, images_torch = twins("group")
    variables = convert(net.state_dict())
    (gradient,) = torch.autograd.grad(net(images_torch).sum(), images_torch, create_graph=True)
    expected = 0.5 * gradient.square().sum((1, 2, 3))
    expected.sum().backward()
    # the bias of the last convolution moves no gradient
    given = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in net.named_parameters()}

    def penalty(params):
        values = r1_penalty(lambda x: model.apply({"params": params}, x), images)
        return values.sum(), values

    gradients, values = jax.jit(jax.grad(penalty, has_aux=True))(variables["params"])
    np.testing.assert_allclose(values, expected.detach().numpy(), rtol=1e-4)
    theirs = flatten(convert(given)["params"])
    largest = max(abs(leaf).max() for leaf in theirs.values())
    for path, leaf in flatten(gradients).items():
        # second derivatives in float32
        assert abs(leaf - theirs[path]).max() <= 1e-4 * max(abs(theirs[path]).max(), 1e-2 * largest), path


def test_a_patch_is_of_70_by_70_pixels():
    model = PatchDiscriminator(ndf=2, norm="batch")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 128, 128, 3)), jnp.float32)

    def run(key):
        variables = model.init(key, images)
        logits, pullback = jax.vjp(lambda x: model.apply(variables, x), images)
        return logits, *pullback(jnp.zeros_like(logits).at[0, 7, 7].set(1))

    logits, gradient = jax.jit(run, compiler_options=QUICK)(jax.random.key(0))
    assert logits.shape == (1, 14, 14, 1)
    rows, columns = np.nonzero(abs(gradient[0]).sum(-1))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (70, 70)


def test_an_images_logits_hang_on_no_other_image():
    net, model, convert, images, _ = twins("group")
    variables = convert(net.state_dict())
    whole = model.apply(variables, images, train=True)
    alone = model.apply(variables, images[1:2], train=True)
    np.testing.assert_allclose(whole[1:2], alone, rtol=1e-5, atol=1e-6)


def test_images_without_a_patch_are_refused():
    model = PatchDiscriminator(ndf=8, n_layers=2)
    assert jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 12, 15, 3)))[0].shape == (1, 1, 1, 1)
    with pytest.raises(ShapeError, match="give fewer layers or sides of 12 and more"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 11, 16, 3)))
