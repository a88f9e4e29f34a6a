"""Our models compute what they computed when their baselines were recorded (tests/testing/baselines/)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from interop import reference
from interop.parity.records import torch_records
from jaxkit import models
from jaxkit.models.masked.bert import maskgit_bert_tiny
from jaxkit.testing.capture import linen_records

pytestmark = pytest.mark.level(1)


def images(side, channels=3):
    return np.random.default_rng(0).normal(size=(2, side, side, channels)).astype(np.float32)


def drawn(model, *inputs):
    """Variables that no initialisation makes 0, and no release of jax draws otherwise."""
    rng = np.random.default_rng(0)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), leaf.dtype), like)


@pytest.mark.model("cifar_resnet_tiny")
def test_a_residual_network(numeric_baseline):
    numeric_baseline(linen_records(models.build("cifar_resnet_tiny", num_classes=10), images(8)))


@pytest.mark.model("maskgit_bert_tiny")
def test_a_masked_transformer(numeric_baseline):
    model, tokens = maskgit_bert_tiny(), jnp.arange(32).reshape(2, 4, 4) % 7
    numeric_baseline(linen_records(model, tokens, variables=drawn(model, tokens)))


@pytest.mark.model("lenet_tiny")
def test_a_torch_network(numeric_baseline):
    torch.manual_seed(0)
    numeric_baseline(torch_records(reference.build("lenet_tiny", 10, (20, 20, 3)), images(20)))
