"""What a network can be known by without a weight in memory; and weights that need no compiled ``init``."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch

from interop import reference
from jaxkit.models import IMAGE_SIDES


def shapes(model, height, width=None, channels=3):
    images = jnp.zeros((2, height, width or height, channels))
    return jax.eval_shape(model.init, jax.random.key(0), images)


def outputs(model, height, width=None):
    """Shapes of the logits and of each feature."""
    x = jnp.zeros((2, height, width or height, 3))
    logits, features = jax.eval_shape(lambda key: model.init_with_output(key, x)[0], jax.random.key(0))
    return logits.shape, {name: feature.shape for name, feature in features.items()}


def tensors(name, num_classes):
    """How many tensors the state dict of the torch twin has."""
    with torch.device("meta"):
        net = reference.build(name, num_classes, (IMAGE_SIDES[name],) * 2 + (3,))
    return len(net.state_dict())


def drawn(model, side):
    """Variables and two images from NumPy: to compile an ``init`` takes longer than to run the network."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.uniform(0.5, 2, leaf.shape) if path[-1].key == "var" else rng.normal(0, 0.3, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    images = jnp.asarray(rng.normal(size=(2, side, side, 3)), jnp.float32)
    return jax.tree.map_with_path(draw, shapes(model, side)), images


def apply(model, variables, images):
    return jax.jit(model.apply)(variables, images)


def train(model, variables, images):
    """Logits and features in training."""
    forward = jax.jit(partial(model.apply, train=True, mutable="batch_stats"))
    return forward(variables, images, rngs={"dropout": jax.random.key(1)})[0]
