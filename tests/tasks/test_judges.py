"""Frozen classifiers with published weights: what they see, and what of a config does not go together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

import interop
from interop.starts import read_weights
from jaxkit import models
from jaxkit.errors import ConfigError
from jaxkit.schema.model import Judge
from jaxkit.schema.tokenizer import Tokenizer
from jaxkit.tasks import tokenizer
from jaxkit.tasks.judges import frozen_classifier
from jaxkit.tasks.task import Context

NAME, SIDE = "cifar_resnet_tiny", 8
GREY = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2]}
CONTEXT = Context(num_classes=3, load_weights=None, read_weights=read_weights)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A network of seven classes, and the file with its weights."""
    network = models.build(NAME, num_classes=7)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    path = tmp_path_factory.mktemp("published") / "weights.safetensors"
    interop.save(variables, path, NAME)
    return network, variables, path


def judge(path, num_classes=7, **fields):
    model = {"name": NAME, "num_classes": num_classes, "pretrained": str(path)}
    return frozen_classifier(Judge.model_validate({"model": model, **fields}), CONTEXT)


@pytest.mark.parametrize("size", [SIDE, 12])
def test_published_weights_see_three_normalised_channels_of_their_own_size(published, size):
    network, variables, path = published
    images = jnp.asarray(np.random.default_rng(0).random((2, size, size, 1)), jnp.float32)
    made = judge(path, normalize=GREY)
    logits, _ = made.apply(made.init(jax.random.PRNGKey(1), images), images)
    resized = jax.image.resize(images, (2, SIDE, SIDE, 1), "bilinear")
    seen = (np.repeat(resized, 3, axis=-1) - np.array(GREY["mean"])) / np.array(GREY["std"])
    expected, _ = network.apply(variables, jnp.asarray(seen, jnp.float32))
    # float32 in two programs
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert made.num_classes == 7


def test_a_file_of_other_classes_is_refused(published):
    with pytest.raises(ConfigError, match="head starts afresh: 7 classes there, 5 here; a judge needs all"):
        judge(published[2], num_classes=5).init(jax.random.PRNGKey(0), jnp.zeros((1, SIDE, SIDE, 1)))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "give workdir, checkpoint, config or model.pretrained"),
        ({"model": {"name": NAME, "pretrained": "x"}}, "how many the published weights have"),
        ({"workdir": "runs/x", "normalize": GREY}, "is of published weights; a run has its own data.normalize"),
        ({"workdir": "x", "model": {"name": NAME, "num_classes": 7, "pretrained": "x"}}, "one of them"),
    ],
)
def test_a_section_that_names_no_single_source_is_refused(section, message):
    with pytest.raises(ValidationError, match=message):
        Judge.model_validate(section)


def test_a_tokenizer_is_told_how_far_its_images_are_in_the_features_of_published_weights(published):
    section = {
        "name": "tokenizer",
        "model": {"name": "vqgan", "resolution": SIDE, "num_channels": 1, "hidden_channels": 4, "channel_mult": [1],
                  "num_res_blocks": 1, "no_attn_mid_block": True, "z_channels": 4, "num_embeddings": 6,
                  "quantized_embed_dim": 4, "norm_num_groups": 2},
        "perceptual": {"features": ["stage1", "stage3"]},
    }  # fmt: skip
    model = {"name": NAME, "num_classes": 7, "pretrained": str(published[2])}
    section["perceptual"]["classifier"] = {"model": model}
    batch = {"image": jnp.asarray(np.random.default_rng(0).random((2, SIDE, SIDE, 1)), jnp.float32)}
    made = tokenizer.make(Tokenizer.model_validate(section), CONTEXT)
    variables = made.init(jax.random.PRNGKey(0), batch)
    plain = tokenizer.make(Tokenizer.model_validate({**section, "perceptual": None}), CONTEXT)
    costs = [float(task.loss(variables, batch, jax.random.PRNGKey(1))[0]) for task in (made, plain)]
    # features of length 1 are two apart at most, in each of two maps
    assert 0.01 < costs[0] - costs[1] < 8
    section["perceptual"]["features"] = ["stage9"]
    made = tokenizer.make(Tokenizer.model_validate(section), CONTEXT)
    with pytest.raises(ConfigError, match=r"the classifier has no stage9; it has .*stage1"):
        made.init(jax.random.PRNGKey(0), batch)
