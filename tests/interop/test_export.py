"""Runs of scripts/train.py, exported by one command, compute in torch what they do here."""

import jax
import numpy as np
import pytest
import torch
from conftest import script, small_config, thinned
from twins import for_torch

import interop
from interop import reference
from jaxkit import experiment, models
from jaxkit.config import parse

pytestmark = pytest.mark.level(1)

SHAPE = (8, 8, 1)
TINY = "cifar_resnet_tiny"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a model for two steps, once; returns the workdir."""
    folders = {}

    def train(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("run")
            raw = small_config(task__model__name=name, train__steps=2, train__eval_every=2, train__checkpoint_every=2)
            experiment.run(parse(raw, name), folders[name])
        return folders[name]

    return train


# Of cnn the weights depend on the images' size; the keys of vgg's kinds are one another's.
@pytest.mark.parametrize("name", thinned([TINY, "cnn_tiny", "vgg_tiny_repdistiller"], [TINY]))
def test_a_run_is_exported_by_one_command_and_loads_strictly_in_torch(trained, tmp_path, name):
    exported = script("convert.py", "to-torch", trained(name), tmp_path / "net.pt", "--check").stdout
    assert exported.startswith(f"{name}: ")
    assert "come back bit for bit" in exported

    net = reference.build(name, 10, SHAPE)
    net.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True), strict=True)
    images = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
    variables = interop.load(trained(name))
    with jax.default_matmul_precision("highest"), torch.no_grad():
        logits, _ = models.build(name, num_classes=10).apply(variables, jax.numpy.asarray(images))
        expected = net.eval()(for_torch(images))
    # Some tens of roundings of float32.
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_an_exported_run_is_crosschecked_by_one_command(trained):
    checked = script("crosscheck.py", "--model", TINY, "--weights", trained(TINY), "--steps", "1").stdout
    assert checked.rstrip().endswith("passed")
