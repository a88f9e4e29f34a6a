"""jaxkit against torch, from the same weights: forward, gradients, training. See interop/reference for the twins."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from einops import rearrange

from interop import reference
from interop.engine import flatten, to_flax, to_torch
from interop.tables import TABLES
from jaxkit import models

NETWORKS = {
    "cifar_resnet_tiny": (16, 16, 3),
    "resnet8": (32, 32, 3),
    "resnet32": (32, 32, 3),
    "resnet_tiny": (33, 40, 3),
    "resnet18": (64, 64, 3),
    "resnet50": (64, 64, 3),
    "resnet_tiny_cifar": (16, 16, 1),
    "resnet50_cifar": (16, 16, 3),
    "cnn_tiny": (24, 16, 1),
    "cnn": (32, 32, 3),
    "lenet_tiny": (20, 28, 1),
    "lenet": (32, 32, 3),
}
# A gradient jumps where an activation meets a kink: ReLU at 0, two equal values under a maximum. With millions of
# activations one lies within a rounding of its kink, where no two programs agree; hence small maps.
SMALL = {
    "cifar_resnet_tiny": (8, 8, 3),
    "resnet8": (8, 8, 3),
    "resnet_tiny": (17, 20, 3),
    "resnet_tiny_cifar": (6, 8, 1),
    "cnn_tiny": (16, 8, 1),
    "cnn": (8, 8, 3),
    "lenet": (16, 20, 1),
}
CLASSES = 10


@pytest.fixture(autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


def twins(name, image_shape, seed=0, **fields):
    """The torch network with random weights and running statistics, ours, and our variables converted from it."""
    torch.manual_seed(seed)
    net = reference.build(name, CLASSES, image_shape)
    for key, value in net.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point() and value.ndim == 1:
            value.add_(torch.empty_like(value).uniform_(-0.3, 0.3))
    model = models.build(name, num_classes=CLASSES, **fields)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return net, model, like, jax.tree.map(jnp.asarray, to_flax(arrays(net), TABLES[name], like))


def arrays(net):
    return {key: value.detach().numpy() for key, value in net.state_dict().items()}


def draw(image_shape, n, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, *image_shape)).astype(np.float32)
    return jnp.asarray(images), rng.integers(0, CLASSES, n)


def for_torch(images):
    return torch.from_numpy(np.array(rearrange(images, "b h w c -> b c h w")))


def relative(ours, theirs):
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(theirs).max())


@pytest.mark.parametrize(("name", "image_shape"), NETWORKS.items())
def test_flax_matches_torch_and_converts_back_bit_for_bit(name, image_shape):
    net, model, _, variables = twins(name, image_shape)
    images, _ = draw(image_shape, 2)
    logits, _ = jax.jit(model.apply)(variables, images)
    with torch.no_grad():
        expected = net.eval()(for_torch(images)).numpy()
    # Some tens of float32 roundings (6e-8 each) of sums in another order.
    assert relative(logits, expected) <= 1e-5

    state = to_torch(variables, TABLES[name])
    given = arrays(net)
    assert set(state) == set(given)
    for key, array in state.items():
        assert array.dtype == given[key].dtype
        assert array.shape == given[key].shape
        assert array.tobytes() == given[key].tobytes()
    fresh = reference.build(name, CLASSES, image_shape)
    fresh.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()}, strict=True)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(for_torch(images)), torch.from_numpy(expected))


@pytest.mark.parametrize(("name", "image_shape"), SMALL.items())
def test_the_gradient_of_every_parameter_matches_torch(name, image_shape):
    net, model, like, variables = twins(name, image_shape)
    images, labels = draw(image_shape, 8)

    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    torch.nn.functional.cross_entropy(net.eval()(for_torch(images)), torch.from_numpy(labels)).backward()
    state = arrays(net) | {key: parameter.grad.numpy() for key, parameter in net.named_parameters()}
    expected = flatten(to_flax(state, TABLES[name], like)["params"])
    assert max(relative(value, expected[path]) for path, value in flatten(gradients).items()) <= 1e-4


def train_torch(net, batches):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    net.train()
    for images, labels in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(for_torch(images)), torch.from_numpy(labels)).backward()
        optimizer.step()


def train_flax(model, variables, batches):
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.02, momentum=0.9))
    params, state = variables["params"], {key: value for key, value in variables.items() if key != "params"}

    @jax.jit
    def step(params, state, moments, images, labels):
        def loss(params):
            (logits, _), new = model.apply({"params": params, **state}, images, train=True, mutable="batch_stats")
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        gradients, new = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), new, moments

    moments = optimizer.init(params)
    for images, labels in batches:
        params, state, moments = step(params, state, moments, images, labels)
    return {"params": params, **state}


@pytest.mark.parametrize(("name", "image_shape"), SMALL.items())
def test_five_training_steps_end_with_the_parameters_and_running_statistics_of_torch(name, image_shape):
    without_dropout = {"dropout_rate": 0.0} if "cnn" in name else {}
    net, model, like, variables = twins(name, image_shape, **without_dropout)
    if without_dropout:
        net.dropout_rate = 0.0
    batches = [draw(image_shape, 8, seed) for seed in range(5)]
    train_torch(net, batches)
    trained = flatten(train_flax(model, variables, batches))
    expected = flatten(to_flax(arrays(net), TABLES[name], like))
    assert max(relative(value, expected[path]) for path, value in trained.items()) <= 1e-5


@pytest.mark.parametrize("name", models.MODELS)
def test_the_table_of_every_model_covers_its_torch_twin(name):
    with torch.device("meta"):
        net = reference.build(name, CLASSES, (32, 32, 3))
    zeros = partial(np.broadcast_to, np.float32(0))
    model = models.build(name, num_classes=CLASSES)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    variables = to_flax({key: zeros(tuple(v.shape)) for key, v in net.state_dict().items()}, TABLES[name], like)
    assert {path: leaf.shape for path, leaf in flatten(variables).items()} == {
        path: leaf.shape for path, leaf in flatten(like).items()
    }
    assert set(to_torch(variables, TABLES[name])) == set(net.state_dict())
