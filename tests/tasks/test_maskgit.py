"""Masked generative transformers: what a step learns from, what evaluation reads, what is drawn."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from conftest import script, small_config
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from runs import arrays, identical, largest_difference, learned
from small_maskgit import (
    CONTEXT,
    KEY,
    MODEL,
    QUICK,
    images_of_classes,
    mean_loss,
    section,
    small,
    task,
    trained_tokenizer,
)

from jaxkit.config import parse
from jaxkit.data.captions import open_tokenizer
from jaxkit.errors import ConfigError
from jaxkit.experiment import run
from jaxkit.inference import sample_run, score_run
from jaxkit.schema.data import Captions
from jaxkit.schema.maskgit import MaskGit
from jaxkit.tasks import image_tokens, maskgit
from jaxkit.tasks.mask_analysis import analyse, draw

pytestmark = pytest.mark.level(1)


@pytest.fixture(scope="module")
def batch():
    return images_of_classes()


def test_loss_and_metrics_are_sums_over_masked_tokens_and_their_weight_is_the_number_of_those(batch):
    made = task()
    variables = made.init(KEY, batch)
    total, (state, metrics) = jax.jit(made.loss, compiler_options=QUICK)(variables, batch, KEY)
    assert state == {}
    assert float(metrics["weight"]) == pytest.approx(float(metrics["mask_rate"] / metrics["weight"]) * 8 * 16)
    # a network that knows nothing yet
    assert float(total / metrics["weight"]) == pytest.approx(np.log(16), rel=0.1)


def test_eight_devices_compute_what_one_does(batch):
    made = task(condition={"name": "class", "dropout": 0.5}, masking={"rectangle_probability": 0.5})
    variables = made.init(KEY, batch)
    one = mean_loss(made, variables, batch)
    split = NamedSharding(Mesh(np.array(jax.devices()), ("b",)), PartitionSpec("b"))
    eight = mean_loss(made, variables, jax.device_put(batch, split))
    # float32 sums in another order
    assert eight == pytest.approx(one, rel=1e-6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return trained_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.slow
def test_a_batch_that_is_seen_again_and_again_is_known_by_heart(tokenizer, tmp_path):
    from sklearn.datasets import load_digits

    # one image of each class: what is masked entirely is known by its class
    images = (load_digits().images[:8, :, :, None] * 15).astype(np.uint8)
    split = {"images": images, "labels": np.arange(8)}
    np.savez(tmp_path / "eight.npz", **{f"{name}_{k}": v for name in ("train", "test") for k, v in split.items()})
    raw = small(tokenizer, model={**MODEL, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4})
    raw["data"] = {"name": "arrays", "path": str(tmp_path / "eight.npz"), "one_batch": True, "batch_size": 8}
    raw["optimizer"] = {"name": "adam", "learning_rate": 2e-3, "schedule": {"name": "cosine"}}
    raw["train"] |= {"steps": 300, "eval_every": 300, "checkpoint_every": 300, "log_every": 20}
    run(parse(raw, "one batch"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "train"][-1]
    # of ln 16 = 2.77
    assert last["loss"] < 0.1


@pytest.mark.slow
def test_a_run_draws_scores_and_resumes_to_the_same_bytes(tokenizer, tmp_path):
    classifier = small_config(train__steps=4, train__eval_every=4, train__checkpoint_every=4)
    run(parse(classifier, "classifier"), tmp_path / "classifier")
    score = {"classifier": {"workdir": str(tmp_path / "classifier")}, "samples": 100}
    guided = {"steps": 3, "guidance": {"strength": 1.5}}
    raw = small(
        tokenizer,
        score=score,
        sampler=guided,
        condition={"name": "class", "dropout": 0.2},
        masking={"metric_ratios": [0.5]},
    )
    results = run(parse(raw, "maskgit"), tmp_path / "run")
    assert {"fid", "fid_train_vs_test", "class_conditional_accuracy"} <= set(results)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if line["kind"] == "eval"]
    assert all({"loss_ratio_0.5", "token_accuracy_ratio_0.5"} <= line.keys() for line in evaluated)
    assert evaluated
    assert results["fid"] > results["fid_train_vs_test"] > 0
    assert (tmp_path / "run" / "samples" / "00000008.png").stat().st_size > 100
    for name in ("inpainting", "predictions"):
        assert (tmp_path / "run" / "pictures" / f"{name}_00000008.png").stat().st_size > 100

    half = {**raw, "train": {**raw["train"], "steps": 4}}
    run(parse(half, "half"), tmp_path / "half")
    run(parse(raw, "maskgit"), tmp_path / "half")
    assert identical(arrays(tmp_path / "run", 8), arrays(tmp_path / "half", 8))

    again = score_run(tmp_path / "run")
    assert again == {name: results[name] for name in again}
    assert {"kid", "precision", "recall", "inception_score"} < set(again)
    images = sample_run(tmp_path / "run", 3, label=7, seed=1)
    assert images.shape == (3, 8, 8, 1)
    assert np.array_equal(images, sample_run(tmp_path / "run", 3, label=7, seed=1))
    assert not np.array_equal(images, sample_run(tmp_path / "run", 3, label=7, seed=2))
    with pytest.raises(ConfigError, match="--class 10: the classes are 0 to 9"):
        sample_run(tmp_path / "run", 1, label=10)
    with pytest.raises(ConfigError, match="has no captions; give --class"):
        sample_run(tmp_path / "run", 1, prompts=("a seven",))


@pytest.mark.slow
def test_a_whole_run_on_eight_devices_ends_where_one_on_one_does(tokenizer, tmp_path):
    raw = small(tokenizer, condition={"name": "class", "dropout": 0.2}, masking={"rectangle_probability": 0.5})
    raw["optimizer"] = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "accumulate": 2}
    raw["train"] |= {"steps": 20, "eval_every": 20, "checkpoint_every": 20, "matmul_precision": "highest"}
    (tmp_path / "maskgit.yaml").write_text(yaml.safe_dump(raw))
    for devices in (1, 8):
        arguments = ("--config", tmp_path / "maskgit.yaml", "--workdir", tmp_path / str(devices))
        script("train.py", *arguments, devices=devices)
    # float32 sums in another order, 1e-7 apart, over 20 steps
    assert largest_difference(*(learned(tmp_path / str(devices), 20) for devices in (1, 8))) <= 1e-5


def test_what_is_painted_anew_leaves_the_rest_of_an_image_as_it_was(batch):
    made = task()
    variables = made.init(KEY, batch)
    mask = jnp.zeros((8, 8, 8)).at[:, :, 4:].set(1)
    draw = jax.jit(made.draw, compiler_options=QUICK)
    painted = draw(variables, KEY, {**batch, "mask": mask})
    np.testing.assert_array_equal(painted[:, :, :4], batch["image"][:, :, :4])
    assert not np.array_equal(painted[:, :, 4:], batch["image"][:, :, 4:])
    nothing = draw(variables, KEY, {**batch, "mask": jnp.zeros((8, 8, 8))})
    np.testing.assert_array_equal(nothing, batch["image"])


def test_soft_targets_cost_least_where_the_network_agrees_with_them(batch):
    for soft in ({"temperature": 0.5}, {"temperature": 0.5, "stochastic": True}):
        made = task(soft_code=soft)
        assert np.isfinite(mean_loss(made, made.init(KEY, batch), batch))
    # targets of no temperature are the hard ones
    cold, hard = task(soft_code={"temperature": 1e-6}), task()
    variables = hard.init(KEY, batch)
    assert mean_loss(cold, variables, batch) == pytest.approx(mean_loss(hard, variables, batch), rel=1e-5)


def test_a_tokenizer_that_takes_few_images_at_once_gives_the_same_loss_and_the_same_images(batch):
    whole, chunked = task(), task(encode_chunk=3)
    variables = whole.init(KEY, batch)
    assert mean_loss(chunked, variables, batch) == mean_loss(whole, variables, batch)
    asked = {"label": batch["label"]}
    images = [jax.jit(made.draw, compiler_options=QUICK)(variables, KEY, asked) for made in (whole, chunked)]
    # float32, of convolutions of another shape
    np.testing.assert_allclose(images[0], images[1], atol=1e-6)


def test_evaluation_masks_by_the_ratios_it_is_given(batch):
    made = task(masking={"eval_ratios": [1.0]})
    variables = made.init(KEY, batch)
    evaluate = jax.jit(made.evaluate, compiler_options=QUICK)
    found, again = (evaluate(variables, batch, jax.random.PRNGKey(seed)) for seed in (0, 1))
    # all is masked whatever the key
    np.testing.assert_allclose(found["loss"], again["loss"], rtol=1e-6)
    assert found["token_accuracy"].shape == (8,)


def test_evaluation_tells_loss_and_accuracy_by_the_share_of_tokens_masked(batch):
    made = task(masking={"eval_ratios": [1.0], "metric_ratios": [0.25, 1.0]})
    variables = made.init(KEY, batch)
    found = jax.jit(made.evaluate, compiler_options=QUICK)(variables, batch, KEY)
    assert found.keys() == {
        f"{name}{share}" for name in ("loss", "token_accuracy") for share in ("", "_ratio_0.25", "_ratio_1")
    }
    # float32, of programs that are compiled apart
    np.testing.assert_allclose(found["loss_ratio_1"], found["loss"], rtol=1e-5)
    np.testing.assert_array_equal(found["token_accuracy_ratio_1"], found["token_accuracy"])
    # 4 of 16 tokens
    quarters = 4 * found["token_accuracy_ratio_0.25"]
    np.testing.assert_array_equal(quarters, np.round(quarters))
    assert not np.allclose(found["loss_ratio_0.25"], found["loss"], rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": {"guidance": {"strength": 2.0}}}, "set task.condition.dropout"),
        ({"soft_code": {}, "label_smoothing": 0.1}, "soft_code has soft ones"),
        ({"sampler": {"method": "random_replace"}}, "does not go with masking.noise mask"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MaskGit.model_validate(section(**changes))


def test_a_vocabulary_that_is_too_small_and_images_that_are_no_whole_tokens_are_refused():
    with pytest.raises(ConfigError, match="21 or more do"):
        task(model={**MODEL, "vocab_size": 20})
    odd = CONTEXT._replace(image_shape=(8, 9, 1))
    with pytest.raises(ConfigError, match="8 x 9 are not cut into tokens of 2 pixels"):
        maskgit.make(MaskGit.model_validate(section()), odd)


def test_an_analysis_of_a_network_that_knows_nothing_or_everything_says_so():
    tokens = jax.random.randint(KEY, (3, 4, 4), 0, 16)
    hide = lambda key, tokens, mask: jnp.where(mask, 16, tokens)  # noqa: E731
    nothing = analyse(KEY, lambda seen: jnp.zeros((*seen.shape, 16)), tokens, hide)
    for entropy in (nothing.cross_entropy, nothing.pixel_entropy, nothing.image_entropy):
        np.testing.assert_allclose(entropy, np.log(16), rtol=1e-5)
    np.testing.assert_allclose(nothing.probabilities, 1 / 16, rtol=1e-5)
    everything = analyse(KEY, lambda seen: 100.0 * jax.nn.one_hot(tokens, 16), tokens, hide)
    np.testing.assert_allclose(everything.cross_entropy, 0, atol=1e-5)
    np.testing.assert_array_equal(everything.accuracy, 1)
    # of one token the mean prediction is its own; of all of them there are as many as codes in the image
    assert float(everything.image_entropy[-1]) > float(everything.image_entropy[0])
    assert draw(jax.device_get(everything)).shape[2] == 3


CAPTIONED = {"name": "text", "dropout": 0.3, "prompts": ["one", "a two"]}


def captioned_context(**changes):
    found = open_tokenizer(Captions(max_length=6))
    return CONTEXT._replace(captions=found, **changes)


def captioned(batch):
    texts = [f"a {label}" for label in batch["label"]]
    found = [open_tokenizer(Captions(max_length=6))(text) for text in texts]
    return batch | {name: jnp.stack([jnp.asarray(each[name]) for each in found]) for name in found[0]}


def test_captions_without_an_encoder_are_learned_and_their_padding_is_not_seen(batch):
    made = maskgit.make(MaskGit.model_validate(section(condition=CAPTIONED)), captioned_context())
    texts = captioned(batch)
    variables = made.init(KEY, texts)
    assert {"caption_tokens", "caption_places", "network"} == set(variables.params)
    apart = texts | {"input_ids": jnp.where(texts["attention_mask"] > 0, texts["input_ids"], 7)}
    assert mean_loss(made, variables, apart) == mean_loss(made, variables, texts)
    other = texts | {"input_ids": texts["input_ids"][::-1]}
    assert mean_loss(made, variables, other) != mean_loss(made, variables, texts)
    images = jax.jit(made.sample, static_argnums=2, compiler_options=QUICK)(variables, KEY, 3)
    assert images.shape == (3, 8, 8, 1)


def test_tokens_that_were_encoded_before_give_the_loss_of_their_images(batch):
    made = task(condition={"name": "class", "dropout": 0.2})
    variables = made.init(KEY, batch)
    encode = jax.jit(lambda frozen, images: made_tokens(frozen, images))
    tokens = encode(variables.frozen, batch["image"])
    stored = {"tokens": tokens, "label": batch["label"]}
    assert mean_loss(made, variables, stored) == mean_loss(made, variables, batch)
    without = made.init(KEY, stored)
    assert "encoder" not in without.frozen["tokenizer"]["params"]
    assert mean_loss(made, without._replace(params=variables.params), stored) == mean_loss(made, variables, batch)


def made_tokens(frozen, images):
    model = image_tokens.build(MaskGit.model_validate(section()).tokenizer.model, CONTEXT, frozen=True)
    return model.apply(frozen["tokenizer"], images, method="get_code")


def test_text_without_captions_and_scores_without_images_are_refused(batch):
    with pytest.raises(ConfigError, match="text needs captions, and the data has none"):
        task(condition=CAPTIONED)
    scored = task(score={"classifier": {"workdir": "x", "model": {"name": "cifar_resnet_tiny"}}})
    stored = {"tokens": jnp.zeros((8, 4, 4), jnp.int32), "label": batch["label"]}
    with pytest.raises(ConfigError, match="score needs images"):
        scored.init(KEY, stored)
    with pytest.raises(ValueError, match="uvit needs task.condition"):
        MaskGit.model_validate(section(model={"name": "uvit"}, condition={"name": "none"}))


def test_images_that_are_normalised_are_refused_of_the_data_and_of_the_judge(tokenizer, tmp_path):
    grey = {"mean": [0.5], "std": [0.5]}
    raw = small(tokenizer)
    raw["data"]["normalize"] = grey
    with pytest.raises(ConfigError, match=r"task.name: maskgit takes images in \[0, 1\]: leave data.normalize out"):
        parse(raw, "maskgit")
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(small_config(data__normalize=grey)))
    score = {"classifier": {"config": str(tmp_path / "judge.yaml")}}
    with pytest.raises(ConfigError, match="has data.normalize, and judges images in"):
        parse(small(tokenizer, score=score), "maskgit")


def test_options_of_the_sampler_that_do_not_go_together_are_refused_before_anything_is_trained():
    with pytest.raises(ConfigError, match="power"):
        task(condition={"name": "class", "dropout": 0.5}, sampler={"guidance": {"strength": 2.0, "power": 2.0}})
