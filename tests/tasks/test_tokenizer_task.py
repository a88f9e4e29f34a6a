"""Tokenizers: what each loss moves, and what does not move before its time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_config
from runs import arrays, identical

from jaxkit.config import parse
from jaxkit.errors import ConfigError
from jaxkit.experiment import run
from jaxkit.schema.tokenizer import Tokenizer
from jaxkit.starts import another_run
from jaxkit.tasks import tokenizer
from jaxkit.tasks.task import Context

pytestmark = pytest.mark.level(1)

KEY = jax.random.PRNGKey(0)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
CONTEXT = Context(num_classes=3, load_weights=None)
MODEL = {
    "name": "vqgan",
    "resolution": 16,
    "num_channels": 1,
    "hidden_channels": 4,
    "channel_mult": [1, 1],
    "num_res_blocks": 1,
    "no_attn_mid_block": True,
    "z_channels": 4,
    "num_embeddings": 6,
    "quantized_embed_dim": 4,
    "norm_num_groups": 2,
}
ADVERSARIAL = {"channels": 4, "layers": 1}


def task(model=MODEL, **section):
    return tokenizer.make(Tokenizer.model_validate({"name": "tokenizer", "model": model, **section}), CONTEXT)


@pytest.fixture(scope="module")
def batch():
    return {"image": jnp.asarray(np.random.default_rng(0).random((3, 16, 16, 1)), jnp.float32)}


def slopes(made, variables, batch):
    def loss(params):
        return made.loss(variables._replace(params=params), batch, KEY)[0]

    return jax.jit(jax.grad(loss), compiler_options=QUICK)(variables.params)


def stepped(made, variables, batch):
    _, (state, metrics) = jax.jit(made.loss, compiler_options=QUICK)(variables, batch, KEY)
    return state, metrics


def moves(tree) -> bool:
    return any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(tree))


def test_a_learned_codebook_has_a_gradient_and_one_of_averages_moves_by_itself(batch):
    made = task()
    variables = made.init(KEY, batch)
    assert moves(slopes(made, variables, batch)["tokenizer"]["quantize"])

    made = task({**MODEL, "codebook_decay": 0.9, "revive_below": 0.1})
    variables = made.init(KEY, batch)
    assert "quantize" not in variables.params["tokenizer"]
    state, metrics = stepped(made, variables, batch)
    before, after = (part["tokenizer"]["codebook"]["quantize"]["embedding"] for part in (variables.state, state))
    assert not np.array_equal(before, after)
    assert 0 < float(metrics["usage"]) <= 1 <= float(metrics["perplexity"]) <= 6


def test_the_discriminator_learns_by_its_own_loss_alone_and_not_before_its_start(batch):
    made = task(adversarial={**ADVERSARIAL, "start": 1, "r1": 0.5})
    variables = made.init(KEY, batch)
    assert not moves(slopes(made, variables, batch)["discriminator"])

    state, _ = stepped(made, variables, batch)
    started = variables._replace(state=state)
    judged = slopes(made, started, batch)["discriminator"]
    assert moves(judged)
    # its gradient is the same whatever its opinion counts for the tokenizer
    louder = slopes(task(adversarial={**ADVERSARIAL, "start": 1, "r1": 0.5, "weight": 7.0}), started, batch)
    jax.tree.map(np.testing.assert_array_equal, judged, louder["discriminator"])


def test_the_start_of_the_discriminator_is_counted_in_updates_of_several_pieces(batch):
    section = {"name": "tokenizer", "model": MODEL, "adversarial": {**ADVERSARIAL, "start": 1}}
    made = tokenizer.make(Tokenizer.model_validate(section), CONTEXT._replace(pieces=2))
    variables = made.init(KEY, batch)
    learning = []
    for pieces in (1, 2):
        state = {**variables.state, "pieces": jnp.int32(pieces)}
        learning.append(moves(slopes(made, variables._replace(state=state), batch)["discriminator"]))
    assert learning == [False, True]


def test_a_run_that_goes_on_from_another_with_a_fresh_schedule_has_the_discriminator_wait_no_second_time(tmp_path):
    length = {"train__eval_every": 2, "train__checkpoint_every": 1, "train__keep_last": 9}
    section = {"name": "tokenizer", "model": {**MODEL, "resolution": 8}, "adversarial": {**ADVERSARIAL, "start": 3}}
    raw = small_config(task=section, optimizer={"name": "adam", "learning_rate": 1e-3}, train__steps=2, **length)
    raw["data"].pop("augment")
    run(parse(raw, "tokenizer"), tmp_path / "first")
    begin = partial(another_run, tmp_path / "first", ("schedule",))
    run(parse(raw, "tokenizer"), tmp_path / "second", begin=begin)
    saved = [arrays(tmp_path / "first", 2), *(arrays(tmp_path / "second", step) for step in range(3))]
    assert [int(found["state/pieces"]) for found in saved] == [2, 2, 3, 4]
    kept = [{path: leaf for path, leaf in found.items() if path.startswith("params/discr")} for found in saved]
    # the tokenizer has had three updates before the discriminator's first
    assert identical(kept[0], kept[2])
    assert not identical(kept[2], kept[3])


def test_pictures_show_images_and_below_them_what_is_made_of_them(batch):
    made = task()
    variables = made.init(KEY, batch)
    traced = jax.device_get(made.pictures.trace(variables, batch, KEY))
    np.testing.assert_array_equal(traced[:3], batch["image"])
    assert not np.array_equal(traced[3:], traced[:3])
    (drawn,) = made.pictures.draw(traced).values()
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] > drawn.shape[0]


def test_the_tokenizer_hears_the_discriminator_as_loud_as_the_weight_says(batch):
    without = task()
    variables = without.init(KEY, batch)
    base = slopes(without, variables, batch)["tokenizer"]["decoder"]["conv_out"]["kernel"]
    heard = []
    for weight in (0.1, 0.2):
        made = task(adversarial={**ADVERSARIAL, "weight": weight, "adaptive": False})
        params = {**made.init(KEY, batch).params, "tokenizer": variables.params["tokenizer"]}
        own = slopes(made, variables._replace(params=params), batch)["tokenizer"]["decoder"]["conv_out"]["kernel"]
        heard.append(own - base)
    assert moves(heard)
    # differences of float32 gradients of size 0.1
    np.testing.assert_allclose(2 * heard[0], heard[1], atol=1e-6)


def test_an_adaptive_weight_makes_both_gradients_alike_at_the_last_layer(batch):
    made = task(l1=1.0, adversarial={**ADVERSARIAL, "weight": 1.0, "loss": "non_saturating"})
    variables = made.init(KEY, batch)
    last = lambda tree: np.asarray(tree["tokenizer"]["decoder"]["conv_out"]["kernel"])  # noqa: E731
    both = last(slopes(made, variables, batch))
    alone = task(l1=1.0)
    params = {"tokenizer": variables.params["tokenizer"]}
    difference = last(slopes(alone, alone.init(KEY, batch)._replace(params=params), batch))
    # less by the 1e-4 that keep the ratio finite
    assert np.linalg.norm(both - difference) == pytest.approx(np.linalg.norm(difference), rel=0.05)


def test_evaluation_is_of_images_in_0_to_1_and_psnr_is_that_of_their_mse(batch):
    made = task()
    variables = made.init(KEY, batch)
    found = jax.jit(made.evaluate, compiler_options=QUICK)(variables, batch, KEY)
    np.testing.assert_allclose(found["psnr"], -10 * np.log10(found["mse"]), rtol=1e-5)
    assert found["l1"].shape == (3,)
    assert (found["mse"] <= found["l1"]).all()


@pytest.mark.parametrize("parity", ["paper", "open-muse"])
def test_the_weight_of_commitment_is_on_the_term_that_parity_says(parity, batch):
    made = task(parity=parity, commitment=0.0, l1=1e-30)
    variables = made.init(KEY, batch)
    found = slopes(made, variables, batch)["tokenizer"]
    assert moves(found["quantize"]) == (parity == "paper")


def test_images_of_other_channels_than_the_tokenizer_are_refused(batch):
    with pytest.raises(ConfigError, match="num_channels = 3, but the images have 1"):
        task({**MODEL, "num_channels": 3}).init(KEY, batch)


def test_weights_to_start_from_replace_the_tokenizer_and_leave_its_judge(batch):
    def read(path, name, initial):
        assert (path, name, set(initial)) == ("weights", "vqgan", {"params"})
        return {"params": jax.tree.map(jnp.zeros_like, initial["params"])}, ["read"]

    section = {"name": "tokenizer", "model": {**MODEL, "pretrained": "weights"}, "adversarial": ADVERSARIAL}
    made = tokenizer.make(Tokenizer.model_validate(section), CONTEXT._replace(read_weights=read))
    variables = made.init(KEY, batch)
    warm, notes = made.warm_start(variables)
    assert notes == ["read"]
    assert not moves(warm.params["tokenizer"])
    assert warm.params["discriminator"] is variables.params["discriminator"]
    assert warm.state["pieces"] is variables.state["pieces"]
