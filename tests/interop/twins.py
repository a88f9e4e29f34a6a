"""A torch network with random weights and statistics, our twin of it, and both run on the same images."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from einops import rearrange

from interop import reference
from interop.engine import to_flax
from interop.tables import table
from jaxkit import models

CLASSES = 10
# A run of some steps compiles a network once and runs it hardly: XLA's cheapest code is ready soonest.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def twins(name, image_shape, seed=0, dtype=np.float32, **fields):
    """The torch network with random weights and running statistics, ours, and our variables converted from it."""
    torch.manual_seed(seed)
    net = reference.build(name, CLASSES, image_shape, **fields)
    for key, value in net.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point() and value.ndim == 1:
            value.add_(torch.empty_like(value).uniform_(-0.3, 0.3))
    net = net.double() if dtype == np.float64 else net
    model = models.build(name, num_classes=CLASSES, **fields)
    like = shapes(model, image_shape)
    return net, model, like, jax.tree.map(jnp.asarray, to_flax(arrays(net), table(name), like))


def shapes(model, image_shape):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))


def arrays(net):
    return {key: value.detach().numpy() for key, value in net.state_dict().items()}


def draw(image_shape, n, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, *image_shape)).astype(dtype)
    return jnp.asarray(images), rng.integers(0, CLASSES, n)


def for_torch(images):
    return torch.from_numpy(np.array(rearrange(images, "b h w c -> b c h w")))


def relative(ours, theirs):
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(theirs).max())


def torch_loss(net, images, labels):
    """Cross-entropy of the logits, plus 0.3 of that of each auxiliary head that a network in training returns."""
    logits, *auxiliary = heads if isinstance(heads := net(for_torch(images)), tuple) else (heads,)
    entropy = torch.nn.functional.cross_entropy
    labels = torch.from_numpy(labels)
    return entropy(logits, labels) + sum(0.3 * entropy(head, labels) for head in auxiliary)


def flax_loss(logits, features, labels, train):
    entropy = optax.softmax_cross_entropy_with_integer_labels
    auxiliary = [features[name] for name in sorted(features) if name.startswith("aux")] if train else []
    return entropy(logits, labels).mean() + sum(0.3 * entropy(head, labels).mean() for head in auxiliary)


def train_torch(net, batches, learning_rate):
    optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4)
    net.train()
    for images, labels in batches:
        optimizer.zero_grad()
        torch_loss(net, images, labels).backward()
        optimizer.step()


def train_flax(model, variables, batches, learning_rate):
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(learning_rate, momentum=0.9))
    params, state = variables["params"], {key: value for key, value in variables.items() if key != "params"}

    def step(params, state, moments, images, labels):
        def loss(params):
            (logits, features), new = model.apply(
                {"params": params, **state}, images, train=True, mutable="batch_stats"
            )
            return flax_loss(logits, features, labels, train=True), new

        gradients, new = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), new, moments

    moments = optimizer.init(params)
    step = jax.jit(step, compiler_options=QUICK)
    for images, labels in batches:
        params, state, moments = step(params, state, moments, images, labels)
    return {"params": params, **state}
