"""jaxkit against torch, from the same weights: forward, gradients, training. See interop/reference for the twins.

A tiny model of each family always, some of these in the longer tests; every model of the zoo with
``pytest -m slow --timeout=7200``.
"""

from functools import partial

import jax
import numpy as np
import pytest
import torch
from conftest import thinned
from twins import (
    CLASSES,
    QUICK,
    arrays,
    draw,
    flax_loss,
    for_torch,
    relative,
    shapes,
    torch_loss,
    train_flax,
    train_torch,
)
from twins import twins as make_twins

from interop import reference
from interop.engine import flatten, to_flax, to_torch
from interop.tables import table
from jaxkit import models

pytestmark = pytest.mark.level(1)

TINY = [name for name in models.MODELS if "tiny" in name]
# The families' largest maps shrink by this much: sides that the network can serve and a test can afford.
SIDES = {224: 64, 299: 96}
RATES = {"googlenet_tiny": 1e-5, "googlenet_tiny_tfkd": 1e-5, "inception_tiny": 1e-5}
# the first tiny and the first full-size model of each family
FIRST = list({(family, name in TINY): name for name, family in reversed(models.MODELS.items())}.values())
ZOO = thinned(models.MODELS, set(TINY) & set(FIRST))
# of a batch norm before and after convolutions, of two paths, of concatenations, of grouped kernels
DIFFERENTIATED = (
    "cifar_resnet_tiny", "vgg_tiny", "densenet_tiny", "mobilenet_v2_tiny", "shufflenet_v1_tiny", "googlenet_tiny",
)  # fmt: skip
TRAINED = ("cifar_resnet_tiny", "vgg_tiny", "mobilenet_v2_tiny")


def image_shape(name):
    side = models.IMAGE_SIDES[name]
    return (SIDES.get(side, side),) * 2 + (3,)


def twins(name, dtype=np.float32):
    fields = {"dropout_rate": 0.0} if name in models.WITH_DROPOUT else {}
    return make_twins(name, image_shape(name), dtype=dtype, **fields)


@pytest.fixture(autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield
    # A hundred compiled networks do not fit in memory.
    jax.clear_caches()


@pytest.mark.parametrize("name", ZOO)
def test_flax_matches_torch_and_converts_back_bit_for_bit(name, record_property):
    net, model, _, variables = twins(name)
    images, _ = draw(image_shape(name), 2)
    logits, _ = jax.jit(model.apply, compiler_options=QUICK)(variables, images)
    with torch.no_grad():
        expected = net.eval()(for_torch(images)).numpy()
    # Some tens of float32 roundings (6e-8 each) of sums in another order.
    record_property("float32", relative(logits, expected))
    assert relative(logits, expected) <= 1e-5

    state = to_torch(variables, table(name))
    given = arrays(net)
    assert set(state) == set(given)
    for key, array in state.items():
        assert array.dtype == given[key].dtype
        assert array.shape == given[key].shape
        assert array.tobytes() == given[key].tobytes()
    fresh = reference.build(name, CLASSES, image_shape(name))
    fresh.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()}, strict=True)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(for_torch(images)), torch.from_numpy(expected))


@pytest.mark.parametrize("name", thinned(models.MODELS, DIFFERENTIATED))
def test_the_gradient_of_every_parameter_matches_torch(name, record_property):
    assert agree(gradient_error, name, 1e-4, record_property)


@pytest.mark.parametrize("name", thinned(models.MODELS, TRAINED))
def test_five_training_steps_end_with_the_parameters_and_running_statistics_of_torch(name, record_property):
    assert agree(training_error, name, 1e-5, record_property)


def training_error(name, dtype):
    net, model, like, variables = twins(name, dtype)
    batches = [draw(image_shape(name), 8, seed, dtype) for seed in range(5)]
    # Gradients explode through dozens of norms over random weights: at 1e-5 a step moves a kernel of resnet50 by 1e-3
    # of itself, and what a kink (see below) changes in it grows from step to step. The statistics, which are what is
    # tested here, need no large steps; the tiny networks take some, small ones where they are as deep as the real ones,
    # and so do those without norms, of which nothing else would move.
    full = 1e-8 if "batch_stats" in variables else 1e-3
    learning_rate = RATES.get(name, 0.02 if name in TINY else full)
    train_torch(net, batches, learning_rate)
    trained = to_flax(arrays(net), table(name), like)
    # by more than what the two may differ by
    assert largest(trained, variables) > 1e-4, "nothing moved"
    return largest(train_flax(model, variables, batches, learning_rate), trained)


def agree(error, name, tolerance, record):
    """Whether the error is within the tolerance; or, if a kink blurs it in float32, within a 100th in float64.

    ``record`` is told each error, for ``pytest --junitxml``.

    A gradient jumps where an activation meets a kink: ReLU at 0, two equal values under a maximum. Of millions of
    activations one lies within a rounding (6e-8) of its kink, and two correct programs may take two sides of it.
    In float64 none does, and the logits, float32 in any case, leave some 1e-7; whatever else differs is still there.
    """
    single = error(name, np.float32)
    record("float32", single)
    if single <= tolerance:
        return True
    with jax.enable_x64(True):
        double = error(name, np.float64)
    record("float64", double)
    return double <= tolerance / 100


def gradient_error(name, dtype):
    net, model, like, variables = twins(name, dtype)
    images, labels = draw(image_shape(name), 2, dtype=dtype)

    def loss(params):
        return flax_loss(*model.apply({**variables, "params": params}, images), labels, train=False)

    gradients = jax.jit(jax.grad(loss), compiler_options=QUICK)(variables["params"])
    torch_loss(net.eval(), images, labels).backward()
    # An auxiliary head has no gradient where the network does not train.
    given = {key: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for key, p in net.named_parameters()}
    return largest(gradients, to_flax(arrays(net) | given, table(name), like)["params"])


def largest(ours, theirs):
    """The largest of the leaves' errors, each relative to its largest value; of leaves of zeros, absolute."""
    theirs = flatten(theirs)
    errors = [
        relative(leaf, theirs[path]) if theirs[path].any() else abs(leaf).max() for path, leaf in flatten(ours).items()
    ]
    return max(errors)


@pytest.mark.parametrize("name", thinned(models.MODELS, FIRST))
def test_the_table_of_every_model_covers_its_torch_twin(name):
    with torch.device("meta"):
        net = reference.build(name, CLASSES, image_shape(name))
    zeros = partial(np.broadcast_to, np.float32(0))
    like = shapes(models.build(name, num_classes=CLASSES), image_shape(name))
    variables = to_flax({key: zeros(tuple(v.shape)) for key, v in net.state_dict().items()}, table(name), like)
    assert {path: leaf.shape for path, leaf in flatten(variables).items()} == {
        path: leaf.shape for path, leaf in flatten(like).items()
    }
    assert set(to_torch(variables, table(name))) == set(net.state_dict())
