"""Our models compute what they computed when their baselines were recorded (tests/testing/baselines/)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from interop import reference
from interop.parity.records import torch_records
from jaxkit import models
from jaxkit.models.diffusion.config import from_config
from jaxkit.models.masked.bert import maskgit_bert_tiny
from jaxkit.spiking.network import SpikingNetwork
from jaxkit.spiking.surrogate import SURROGATES
from jaxkit.testing.capture import linen_records

TEXT = {
    "architectures": ["CLIPTextModel"],
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 9,
    "eos_token_id": 29,
}

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


@pytest.mark.model("clip_text_tiny")
def test_a_text_encoder(numeric_baseline):
    model, ids = from_config(TEXT), jnp.array([[3, 4, 5, 6, 7, 8, 29, 29, 29]])
    numeric_baseline(linen_records(model, ids, variables=drawn(model, ids)))


@pytest.mark.model("spiking_tiny")
def test_a_spiking_network_with_delays(numeric_baseline):
    model = SpikingNetwork(
        num_classes=3, hidden=(6, 5), step_time=1.0, time_constant=5.0, refractory=0.0, readout_time_constant=10.0,
        longest_delay=4.0, delay_per="synapse", interpolation="linear", relaxed=None, execution="auto", gain=4.0,
        dropout_rate=0.0, surrogate=SURROGATES["arctan"](),
    )  # fmt: skip
    spikes = jnp.asarray(np.random.default_rng(0).random((12, 2, 8)) < 0.4, jnp.float32)
    records = linen_records(model, spikes)
    # a network that is silent, or always spikes, would prove little
    rates = [records.arrays[f"forward/{layer}/output/spikes"].mean() for layer in ("layer1", "layer2")]
    assert all(0.05 < rate < 0.6 for rate in rates)
    numeric_baseline(records)


@pytest.mark.model("lenet_tiny")
def test_a_torch_network(numeric_baseline):
    torch.manual_seed(0)
    numeric_baseline(torch_records(reference.build("lenet_tiny", 10, (20, 20, 3)), images(20)))
