"""The recipes of the field, too large to be trained here: that their networks can be built, and how large they are."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

from jaxkit.config import load
from jaxkit.tasks import image_tokens
from jaxkit.tasks.masked_adapter import adapter
from jaxkit.tasks.masked_network import build_module
from jaxkit.tasks.task import Context

pytestmark = pytest.mark.level(1)

KEY = jax.random.PRNGKey(0)


def parameters(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def inputs_of(config, grid, classes):
    """One example's, of the widths that the text encoders of the recipes have."""
    tokens, model = jnp.zeros((1, *grid), jnp.int32), config.model
    if config.condition.name == "class":
        return {"tokens": tokens, "labels": jnp.full(1, classes - 1)}
    states = jnp.zeros((1, 77, model.encoder_hidden_size))
    if model.name == "uvit":
        return {
            "tokens": tokens,
            "encoder_hidden_states": states,
            "cond_embeds": jnp.zeros((1, model.cond_embed_dim)),
            "micro_conds": jnp.zeros((1, 5)),
        }
    return {"tokens": tokens, "encoder_hidden_states": states}


# Google's is said to have 227 M and 54 M. open-muse's three were counted there, of aMUSEd's diffusers' own are equal.
@pytest.mark.parametrize(
    ("name", "grid", "codes", "network", "tokenizer"),
    [
        ("maskgit_imagenet256", (16, 16), 1024, 230_520_576, 54_515_587),
        ("muse_imagenet", (16, 16), 1024, 506_832_896, 54_515_587),
        ("muse_cc12m", (16, 16), 8192, 521_545_728, 146_244_675),
        ("muse_research_512", (32, 32), 8192, 608_257_792, 146_244_675),
        ("maskgit_amused_finetune", (16, 16), 8192, 603_537_664, 146_244_675),
        ("maskgit_amused_lora", (16, 16), 8192, 603_537_664, 146_244_675),
    ],
)
def test_a_recipe_builds_its_networks_in_the_sizes_that_were_published(name, grid, codes, network, tokenizer):
    config = load(ROOT / "configs" / f"{name}.yaml")
    task, side = config.task, config.data.image_size
    # as many classes as ImageNet; where captions tell, they are not asked for
    context = Context(1000, load_weights=None, image_shape=(side, side, 3))
    vq = image_tokens.build(task.tokenizer.model, context, frozen=True)
    assert image_tokens.grid(vq, context.image_shape) == grid
    assert image_tokens.codebook_size(task.tokenizer.model) == codes
    images = jnp.zeros((1, *context.image_shape))
    assert parameters(jax.eval_shape(vq.init, KEY, images)) == tokenizer

    module = build_module(task, context, codes, grid)
    inputs = inputs_of(task, grid, context.num_classes)
    variables = jax.eval_shape(lambda: module.init(KEY, **inputs))
    assert parameters(variables) == network
    logits = jax.eval_shape(lambda variables: module.apply(variables, **inputs), variables)
    assert logits.shape[:3] == (1, *grid)
    assert logits.shape[3] >= codes
    if task.adapter is not None:
        adapters = jax.eval_shape(partial(adapter(task.adapter, module).init, KEY), variables["params"])
        # rank 16, of queries, keys and values: 22 layers of 2 attentions of 1024, 6 blocks of 2 of 768
        assert parameters(adapters) == 16 * 2 * 3 * 2 * (22 * 1024 + 6 * 768)
