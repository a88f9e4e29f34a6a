"""A masked transformer of a few widths over 4 x 4 tokens, as a task and as the config of a run."""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import small_config

from jaxkit.config import parse
from jaxkit.experiment import run
from jaxkit.schema.maskgit import MaskGit
from jaxkit.tasks import maskgit
from jaxkit.tasks.task import Context

KEY = jax.random.PRNGKey(0)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TOKENIZER = {
    "name": "vqgan",
    "resolution": 8,
    "num_channels": 1,
    "hidden_channels": 4,
    "channel_mult": [1, 1],
    "num_res_blocks": 1,
    "no_attn_mid_block": True,
    "z_channels": 4,
    "num_embeddings": 16,
    "quantized_embed_dim": 4,
    "norm_num_groups": 2,
}
MODEL = {
    "name": "maskgit_transformer",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}


def drawn(source, like, partly=False):
    """Random weights in the place of those of a run."""
    leaves, tree = jax.tree.flatten(like)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype) for leaf in leaves])


CONTEXT = Context(num_classes=4, load_weights=drawn, image_shape=(8, 8, 1))


def section(model=MODEL, **changes) -> dict:
    tokenizer = {"workdir": "somewhere", "model": TOKENIZER}
    return {"name": "maskgit", "tokenizer": tokenizer, "model": model, "condition": {"name": "class"}, **changes}


def task(**changes):
    return maskgit.make(MaskGit.model_validate(section(**changes)), CONTEXT)


def images_of_classes():
    """Eight images of 8 x 8 pixels, two of each class."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((8, 8, 8, 1)), jnp.float32)
    return {"image": images, "label": jnp.arange(8, dtype=jnp.int32) % 4}


def mean_loss(made, variables, batch, key=KEY):
    total, (_, metrics) = jax.jit(made.loss, compiler_options=QUICK)(variables, batch, key)
    return float(total / metrics["weight"])


def trained_tokenizer(folder):
    """A workdir of a tokenizer after 30 steps on digits."""
    raw = small_config(
        task={"name": "tokenizer", "model": TOKENIZER},
        optimizer={"name": "adam", "learning_rate": 3e-3},
        train__steps=30,
        train__eval_every=30,
        train__checkpoint_every=30,
    )
    raw["data"].pop("augment")
    run(parse(raw, "tokenizer"), folder)
    return folder


def small(tokenizer, **changes) -> dict:
    """The config of a run of 8 steps over the tokens of a tokenizer's workdir."""
    raw = small_config(task=section(**changes) | {"tokenizer": {"workdir": str(tokenizer)}})
    raw["data"].pop("augment")
    raw["optimizer"] = {"name": "adamw", "learning_rate": 1e-3, "ema": {"decay": 0.9}, "accumulate": 2}
    raw["train"] |= {"steps": 8, "eval_every": 4, "checkpoint_every": 4}
    return raw
