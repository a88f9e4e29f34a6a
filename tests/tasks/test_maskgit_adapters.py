"""Adapters of masked transformers: what is trained, saved, resumed, drawn and exported is theirs alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_config
from jax.tree_util import keystr, tree_leaves_with_path
from runs import arrays, identical

from interop.masked.adapters import load_adapted, lora_of_run
from interop.masked.folders import load_folder, save_folder
from interop.starts import READERS
from jaxkit.config import parse
from jaxkit.errors import ConfigError
from jaxkit.experiment import run
from jaxkit.inference import sample_run
from jaxkit.models import tokenizers
from jaxkit.models.masked.transformer import MaskGitTransformer
from jaxkit.nn.adapters import lora_applied
from jaxkit.sampling.guidance import guide, guide_adapted
from jaxkit.schema.maskgit import Guidance, MaskGit
from jaxkit.tasks import maskgit
from jaxkit.tasks.masked_network import logits_of, network
from jaxkit.tasks.task import Context

pytestmark = pytest.mark.level(1)

KEY = jax.random.PRNGKey(0)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TOKENIZER = {
    "name": "vqgan", "resolution": 8, "num_channels": 1, "hidden_channels": 4, "channel_mult": [1, 1],
    "num_res_blocks": 1, "no_attn_mid_block": True, "z_channels": 4, "num_embeddings": 16, "quantized_embed_dim": 4,
    "norm_num_groups": 2,
}  # fmt: skip
UVIT = {
    "name": "uvit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40,
    "in_channels": 16, "block_out_channels": [24], "num_res_blocks": 1, "block_num_heads": 2, "encoder_hidden_size": 8,
    "cond_embed_dim": 6, "pretrained": "somewhere",
}  # fmt: skip
TRANSFORMER = {
    "name": "maskgit_transformer", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 24, "pretrained": "somewhere",
}  # fmt: skip
LORA, STYLEDROP = {"name": "lora", "rank": 2, "targets": ["attention"]}, {"name": "styledrop", "size": 3}
ENCODED = {"name": "text", "encoder": {"kind": "clip_projection", "folder": "nowhere"}, "dropout": 0.5}


def drawn(*arguments, partly=False):
    """Random weights in the place of those of a run or a folder."""
    leaves, tree = jax.tree.flatten(arguments[-1])
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0, 0.2, leaf.shape), leaf.dtype) for leaf in leaves])


def moved(adapters):
    """Adapters as after some training."""
    return jax.tree.map(lambda leaf: leaf + np.random.default_rng(1).normal(0, 1, leaf.shape).astype("f"), adapters)


def states(text, length=5):
    """A caption that was encoded before."""
    rng = np.random.default_rng(len(text))
    shapes = {"encoder_hidden_states": (length, 8), "cond_embeds": (6,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


CONTEXT = Context(
    num_classes=4,
    load_weights=drawn,
    read_weights=lambda *arguments: (drawn(*arguments), []),
    image_shape=(8, 8, 1),
    captions=states,
)
BATCH = {
    "tokens": jax.random.randint(KEY, (4, 4, 4), 0, 16),
    **{name: jnp.stack([states("a" * n)[name] for n in range(1, 5)]) for name in states("")},
}


def section(adapter, model=UVIT, condition=ENCODED, **changes):
    tokenizer = {"workdir": "somewhere", "model": TOKENIZER}
    return {"name": "maskgit", "tokenizer": tokenizer, "model": model, "condition": condition, **changes} | (
        {"adapter": adapter} if adapter else {}
    )


def config(adapter, **changes):
    return MaskGit.model_validate(section(adapter, **changes))


def paths(tree):
    return {keystr(path, simple=True, separator="/") for path, _ in tree_leaves_with_path(tree)}


def mean_loss(made, variables):
    total, (_, metrics) = jax.jit(made.loss, compiler_options=QUICK)(variables, BATCH, KEY)
    return float(total / metrics["weight"])


@pytest.fixture(scope="module")
def plain():
    """The network without an adapter, of the same weights, and its loss."""
    made = maskgit.make(config(None), CONTEXT)
    like = jax.eval_shape(lambda: made.init(KEY, BATCH).params)
    params = drawn({"params": like})["params"]
    return params, mean_loss(made, made.init(KEY, BATCH)._replace(params=params))


@pytest.mark.parametrize("adapter", [LORA, STYLEDROP], ids=["lora", "styledrop"])
def test_only_the_adapter_is_a_parameter_and_at_first_it_changes_nothing(adapter, plain):
    made = maskgit.make(config(adapter), CONTEXT)
    variables = made.init(KEY, BATCH)
    params, loss = plain
    jax.tree.map(np.testing.assert_array_equal, variables.frozen["network"], params)
    names = {path.rpartition("/")[2] for path in paths(variables.params)}
    assert names == ({"down", "up"} if adapter is LORA else {"down", "up", "down_shift", "up_shift"})
    assert made.warm_start is None
    assert mean_loss(made, variables) == pytest.approx(loss, rel=1e-6)
    assert mean_loss(made, variables._replace(params=moved(variables.params))) != pytest.approx(loss, rel=1e-5)


def test_samples_are_guided_away_from_the_network_without_its_adapter_and_from_no_class():
    settings = config(LORA, model=TRANSFORMER, condition={"name": "class", "dropout": 0.5})
    net = network(settings, CONTEXT, 16, (4, 4))
    batch = {"tokens": BATCH["tokens"], "label": jnp.arange(4)}
    variables = maskgit.make(settings, CONTEXT).init(KEY, batch)
    variables = variables._replace(params=moved(variables.params))
    tokens, conditions = batch["tokens"], net.conditions(batch)
    empty = {"labels": jnp.full(4, 4)}

    @partial(jax.jit, compiler_options=QUICK)
    def both(variables):
        given = logits_of(net, variables, conditions, Guidance(strength=1.0, adapter=2.0))(tokens, jnp.int32(0))
        bare = [net.bare(variables, tokens, given) for given in (conditions, empty)]
        return given, (net.apply(variables, tokens, conditions), *bare)

    given, (adapted, conditional, unconditional) = both(variables)
    assert abs(adapted - conditional).max() > 0.01
    assert abs(unconditional - conditional).max() > 0.01
    expected = guide_adapted(adapted, conditional, unconditional, 2.0, 3.0)
    # the scale of both is 1 more than their weight; float32
    np.testing.assert_allclose(guide(*given, 4.0), expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": LORA, "model": {**UVIT, "pretrained": None}}, "an adapter is trained beside weights"),
        ({"adapter": STYLEDROP, "model": TRANSFORMER}, "styledrop is of uvit, and the model is maskgit_transformer"),
        (
            {"adapter": None, "sampler": {"guidance": {"strength": 2.0, "adapter": 1.0}}},
            "of a network with task.adapter",
        ),
        ({"adapter": {**LORA, "targets": []}}, "at least 1 item"),
        ({"adapter": {**LORA, "targets": ["atention"]}}, "'attention', 'query_key_value' or 'feed_forward'"),
    ],
)
def test_adapters_that_have_no_place_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MaskGit.model_validate(section(**changes))


def test_an_adapter_needs_what_reads_its_networks_weights():
    made = maskgit.make(config(LORA), CONTEXT._replace(read_weights=None))
    with pytest.raises(ConfigError, match="task.model.pretrained: nothing that reads weight files"):
        made.init(KEY, BATCH)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folders of a tiny tokenizer, and of a transformer of digits' ten classes and none."""
    root = tmp_path_factory.mktemp("weights")
    fields = {name: value for name, value in TOKENIZER.items() if name != "name"}
    sizes = {name: value for name, value in TRANSFORMER.items() if name not in ("name", "pretrained")}
    sizes |= {"vocab_size": 28, "codebook_size": 16, "num_classes": 11, "num_vq_tokens": 16, "encoder_hidden_size": 16}
    transformer = MaskGitTransformer(**sizes, max_position_embeddings=17)
    for name, layout, module, inputs in (
        ("tokenizer", "diffusers", tokenizers.build("vqgan", **fields), {"x": jnp.zeros((1, 8, 8, 1))}),
        ("transformer", "open-muse", transformer, {"tokens": BATCH["tokens"], "labels": jnp.arange(4)}),
    ):
        save_folder(module, drawn(jax.eval_shape(partial(module.init, KEY), **inputs)), root / name, layout)
    return root


def experiment(root, adapter, **train):
    raw = small_config(
        task={
            "name": "maskgit",
            "tokenizer": {"model": {**TOKENIZER, "pretrained": str(root / "tokenizer")}},
            "model": {**TRANSFORMER, "pretrained": str(root / "transformer")},
            "adapter": adapter,
            "condition": {"name": "class", "dropout": 0.2},
            "sampler": {"steps": 2, "guidance": {"strength": 2.0}},
        },
        optimizer={"name": "adamw", "learning_rate": 1e-2, "ema": {"decay": 0.9}},
    )
    raw["data"].pop("augment")
    raw["train"] |= {"steps": 4, "eval_every": 4, "checkpoint_every": 2, **train}
    return parse(raw, "adapter")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_saves_resumes_draws_and_exports_the_adapter_alone(weights, tmp_path):
    before = contents(weights)
    settings = {"name": "lora", "rank": 2, "alpha": 6, "dropout": 0.1}
    run(experiment(weights, settings), tmp_path / "run", readers=READERS)
    assert contents(weights) == before
    saved = arrays(tmp_path / "run", 4)
    base_module, base = load_folder(weights / "transformer")
    # parameters and their average
    kept = [leaf.size for path, leaf in saved.items() if path.startswith(("params/", "averaged/"))]
    assert sum(kept) < sum(leaf.size for leaf in jax.tree.leaves(base)) / 3
    assert {path.split("/")[-1] for path in saved if not path.startswith("optimizer/")} >= {"down", "up"}
    assert not [path for path in saved if "embedding" in path or "norm" in path]

    run(experiment(weights, settings, steps=2), tmp_path / "half", readers=READERS)
    run(experiment(weights, settings), tmp_path / "half", readers=READERS)
    assert identical(arrays(tmp_path / "half", 4), saved)

    with pytest.raises(ConfigError, match="nothing that reads weight files"):
        sample_run(tmp_path / "run", 2)
    further = ("task.sampler.guidance.adapter=2.0",)
    images = sample_run(tmp_path / "run", 2, label=7, overrides=further, readers=READERS)
    assert images.shape == (2, 8, 8, 1)

    module, merged = load_adapted(tmp_path / "run")
    assert module == base_module
    save_folder(module, merged, tmp_path / "merged")
    _, adapters, scale = lora_of_run(tmp_path / "run", 4)
    assert scale == 3.0
    apply = partial(module.apply, tokens=BATCH["tokens"], labels=jnp.arange(4))
    with lora_applied(adapters, scale):
        beside = jax.jit(apply, compiler_options=QUICK)(base)
    merged = load_folder(tmp_path / "merged")[1]
    alone, without = (jax.jit(partial(apply), compiler_options=QUICK)(found) for found in (merged, base))
    # float32, the products in another order
    np.testing.assert_allclose(alone, beside, atol=1e-5 * abs(beside).max())
    assert abs(alone - without).max() > 1e-3 * abs(beside).max()
