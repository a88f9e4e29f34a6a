"""Latent diffusion from texts: its loss re-derived, what each example draws by its own key, and what it samples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import small_config
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkit.config import parse
from jaxkit.data import clip_words
from jaxkit.data.sources import open_source
from jaxkit.errors import ConfigError
from jaxkit.models.diffusion.config import example, from_config
from jaxkit.schema.data import Captions, Digits
from jaxkit.schema.text_to_image import TextToImage
from jaxkit.tasks import diffusion_configs, text_to_image
from jaxkit.tasks.task import Context

pytestmark = pytest.mark.level(1)

KEY = jax.random.PRNGKey(0)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# for programs that run longer than they compile
FAST = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}
SCALE = 0.7
VAE = {
    "name": "autoencoder_kl", "in_channels": 1, "block_out_channels": [4, 4], "layers_per_block": 1,
    "norm_num_groups": 2, "mid_block_add_attention": False, "latent_channels": 2, "scaling_factor": SCALE,
}  # fmt: skip
UNET = {
    "block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2,
    "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"],
}  # fmt: skip
TEXT = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
SIDE, LENGTH, EXAMPLES = 8, 8, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Captioned digits, whose tokenizer is not kept where the user's are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_words, "CACHE", tmp_path_factory.mktemp("tokenizers"))
        captions = Captions(tokenizer="clip", max_length=LENGTH)
        yield open_source(Digits(name="digits", batch_size=1, captions=captions))


def section(*, unet=(), text=(), **fields):
    return TextToImage.model_validate(
        {
            "name": "text_to_image",
            "autoencoder": {"workdir": "nowhere", "model": VAE},
            "unet": {**UNET, **dict(unet)},
            "text_encoder": {**TEXT, **dict(text)},
            "sampler": {"steps": 2, "guidance_scale": 1.0},
            **fields,
        }
    )


def load_weights(source, like):
    """A random autoencoder, or a classifier with statistics of batches, which are no less than 0."""
    assert source.workdir == "nowhere"
    rng = np.random.default_rng(1)
    sign = abs if like["state"] else np.asarray
    return jax.tree.map(lambda leaf: jnp.asarray(sign(0.3 * rng.normal(size=leaf.shape)), leaf.dtype), like)


def task(data, shape=None, **fields):
    context = Context(10, load_weights, image_shape=shape or data.image_shape, captions=data.captions)
    return text_to_image.make(section(**fields), context)


@pytest.fixture(scope="module")
def batch(data):
    examples = [data.train[i] for i in range(EXAMPLES)]
    return {
        "image": jnp.asarray(np.stack([one["image"] for one in examples]) / 255, jnp.float32),
        "input_ids": jnp.asarray(np.stack([one["input_ids"] for one in examples])),
        "key": jax.random.split(jax.random.PRNGKey(5), EXAMPLES),
    }


@pytest.fixture(scope="module")
def variables(data, batch):
    made = task(data).init(KEY, batch)
    # a new UNet's last layer is small: the texts would hardly show
    made.params["unet"]["conv_out"] = jax.tree.map(lambda leaf: 3 * leaf + 0.1, made.params["unet"]["conv_out"])
    return made


def loss_of(data, variables, batch, **fields):
    made = task(data, **fields)
    return jax.jit(lambda v, b: made.loss(v, b, None)[0], compiler_options=QUICK)(variables, batch)


def keys_of(batch):
    """The keys of each example's latents, noise and text."""
    return [jnp.stack(keys) for keys in zip(*(jax.random.split(key, 3) for key in batch["key"]), strict=True)]


def drops(batch, rate):
    return np.array([bool(jax.random.uniform(key) < rate) for key in keys_of(batch)[2]])


def emptied(data, batch, which):
    ids = np.array(batch["input_ids"])
    ids[which] = data.captions("")["input_ids"]
    return {**batch, "input_ids": jnp.asarray(ids)}


@pytest.fixture(scope="module")
def networks(data):
    """UNet, text encoder and the autoencoder's half that encodes."""
    parts = diffusion_configs.configs(section(), data.image_shape, data.captions)
    unet, text, vae = (from_config(parts[name]) for name in ("unet", "text_encoder", "vae"))
    calls = unet.apply, text.apply, partial(vae.apply, method="encode")
    return [jax.jit(call, compiler_options=QUICK) for call in calls]


def rederived(networks, variables, batch, *, prediction_type="epsilon", gamma=None):
    """The loss by NumPy, of the three networks as they are; ``ᾱ`` of the configs' default betas."""
    unet, text, encode = networks
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    mean, logvar = encode(variables.frozen["vae"], 2 * batch["image"] - 1)
    key_latents, key_noise, _ = keys_of(batch)
    seen, noise, times = [], [], []
    for k, key in enumerate(key_latents):
        spread = np.exp(np.asarray(logvar[k], np.float64) / 2) * jax.random.normal(key, logvar.shape[1:])
        seen.append(SCALE * (np.asarray(mean[k], np.float64) + spread))
        key_draw, key_time = jax.random.split(key_noise[k])
        noise.append(np.asarray(jax.random.normal(key_draw, logvar.shape[1:]), np.float64))
        times.append(int(jax.random.randint(key_time, (), 0, 1000)))
    x, noise, alpha = np.stack(seen), np.stack(noise), alphas[times][:, None, None, None]
    noisy = np.sqrt(alpha) * x + np.sqrt(1 - alpha) * noise
    states = text({"params": variables.params["text_encoder"]}, batch["input_ids"]).last
    given = jnp.asarray(noisy, jnp.float32), jnp.asarray(times), states
    prediction = np.asarray(unet({"params": variables.params["unet"]}, *given), np.float64)
    snr = (alpha / (1 - alpha)).ravel()
    target, weight = noise, 1.0 if gamma is None else np.minimum(snr, gamma) / snr
    if prediction_type == "v_prediction":
        target = np.sqrt(alpha) * noise - np.sqrt(1 - alpha) * x
        weight = 1.0 if gamma is None else np.minimum(snr, gamma) / (snr + 1)
    return float(np.mean(weight * np.square(prediction - target).mean((1, 2, 3))))


@pytest.mark.parametrize(
    ("prediction_type", "gamma"), [("epsilon", None), ("epsilon", 5.0), ("v_prediction", None), ("v_prediction", 5.0)]
)
def test_the_loss_is_the_error_of_the_prediction_from_latents_noise_and_time_of_each_examples_key(
    data, networks, variables, batch, prediction_type, gamma
):
    scheduler = {**section().scheduler, "prediction_type": prediction_type}
    found = loss_of(data, variables, batch, dropout=0.0, scheduler=scheduler, snr_gamma=gamma)
    expected = rederived(networks, variables, batch, prediction_type=prediction_type, gamma=gamma)
    # networks in float32 of inputs rounded apart
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_texts_are_emptied_at_the_rate_by_each_examples_own_key(data, variables, batch):
    dropped = drops(batch, 0.5)
    assert 0 < dropped.sum() < EXAMPLES
    some = loss_of(data, variables, batch, dropout=0.5)
    none = loss_of(data, variables, emptied(data, batch, dropped), dropout=0.0)
    # another program of the same numbers
    assert float(some) == pytest.approx(float(none), rel=1e-6)
    assert float(some) != pytest.approx(float(loss_of(data, variables, batch, dropout=0.0)), rel=1e-4)

    order = np.random.default_rng(0).permutation(EXAMPLES)
    shuffled = {name: part[order] for name, part in batch.items()}
    assert float(loss_of(data, variables, shuffled, dropout=0.5)) == pytest.approx(float(some), rel=1e-6)


def test_evaluation_is_the_same_at_every_call_and_drops_no_text(data, networks, variables, batch):
    evaluate = jax.jit(task(data, dropout=1.0).evaluate, compiler_options=QUICK)
    images = {name: batch[name] for name in ("image", "input_ids")}
    found = evaluate(variables, images, KEY)["loss"]
    np.testing.assert_array_equal(found, evaluate(variables, images, KEY)["loss"])
    assert found.shape == (EXAMPLES,)
    keyed = {**batch, "key": jax.random.split(KEY, EXAMPLES)}
    assert float(found.mean()) == pytest.approx(rederived(networks, variables, keyed), rel=1e-5)
    assert not np.allclose(found, evaluate(variables, emptied(data, images, slice(None)), KEY)["loss"])


def test_the_loss_and_its_gradient_are_those_of_one_device_on_eight(data, variables, batch):
    made = task(data, dropout=0.5)

    def slope(params, frozen, batch):
        whole = lambda p: made.loss(variables._replace(params=p, frozen=frozen), batch, None)[0]  # noqa: E731
        return jax.value_and_grad(whole)(params)

    assert jax.device_count() == 8
    one = jax.jit(slope, compiler_options=QUICK)(variables.params, variables.frozen, batch)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    held = jax.device_put((variables.params, variables.frozen), NamedSharding(mesh, PartitionSpec()))
    under_jit = jax.block_until_ready(jax.jit(slope, compiler_options=QUICK)(*held, split))
    parts = jax.tree.map(lambda leaf: leaf.reshape(8, -1, *leaf.shape[1:]), batch)
    mean = lambda *given: jax.lax.pmean(slope(*given), "data")  # noqa: E731
    mapped = jax.pmap(mean, "data", in_axes=(None, None, 0), out_axes=None)(*held, parts)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(one[1]))
    for found in (under_jit, mapped):
        assert float(found[0]) == pytest.approx(float(one[0]), rel=1e-6)
        # float32 sums in another order
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), found[1], one[1])


def drawn(data, variables, prompts, key=KEY, **sampler):
    made = task(data, sampler={"steps": 3, "guidance_scale": 1.0, **sampler})
    ids = {"input_ids": jnp.stack([data.captions(prompt)["input_ids"] for prompt in prompts])}
    return np.asarray(jax.jit(made.draw, compiler_options=QUICK)(variables, key, ids))


def test_the_same_key_draws_the_same_images_and_the_text_and_the_key_others(data, variables):
    prompts = ["one", "a seven"]
    images = drawn(data, variables, prompts)
    assert images.shape == (2, SIDE, SIDE, 1)
    assert images.min() >= 0
    assert images.max() <= 1
    np.testing.assert_array_equal(images, drawn(data, variables, prompts))
    assert np.abs(images - drawn(data, variables, prompts, jax.random.PRNGKey(1))).max() > 0.01
    other = np.abs(images - drawn(data, variables, ["one", "two"]))
    assert other[0].max() == 0
    assert other[1].max() > 1e-4


def test_guidance_leads_away_from_the_negative_prompt_and_of_one_is_none(data, variables):
    plain = drawn(data, variables, ["one"])
    np.testing.assert_array_equal(plain, drawn(data, variables, ["one"], negative_prompt="seven"))
    steered = drawn(data, variables, ["one"], guidance_scale=30.0, negative_prompt="seven")
    assert np.abs(plain - steered).max() > 1e-3
    assert np.abs(steered - drawn(data, variables, ["one"], guidance_scale=30.0)).max() > 1e-3
    # u + g (c - u) of u = c; differences of float32 rounding, times 30
    alike = drawn(data, variables, ["one"], guidance_scale=30.0, negative_prompt="one")
    np.testing.assert_allclose(alike, plain, atol=1e-4)


def test_samples_in_training_take_the_prompts_in_turn(data, variables):
    made = task(data, prompts=["one", "a seven"], sampler={"steps": 3, "guidance_scale": 1.0})
    images = jax.jit(made.sample, static_argnums=2, compiler_options=QUICK)(variables, KEY, 3)
    # the same numbers in another program
    np.testing.assert_allclose(images, drawn(data, variables, ["one", "a seven", "one"]), atol=1e-6)


@pytest.mark.slow
def test_one_batch_is_learned_by_heart(data, variables, batch):
    made, optimizer = task(data, dropout=0.0), optax.adam(5e-3)

    @partial(jax.jit, compiler_options=FAST)
    def updates(params):
        def update(carry, _):
            params, state = carry
            costs = lambda p: made.loss(variables._replace(params=p), batch, None)[0]  # noqa: E731
            loss, grads = jax.value_and_grad(costs)(params)
            moves, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, moves), state), loss

        return jax.lax.scan(update, (params, optimizer.init(params)), length=150)[1]

    losses = updates(variables.params)
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unet": {"blok_out_channels": [8]}}, "task.unet: .*blok_out_channels: unknown key.*'block_out_channels'"),
        ({"unet": {"in_channels": 4}}, "task.unet.in_channels: is 4, but follows from the rest: 2"),
        ({"unet": {"cross_attention_dim": 9}}, "task.unet.cross_attention_dim: is 9, but .*: 8"),
        ({"unet": {"sample_size": 3}}, "task.unet.sample_size: is 3, but follows from the rest: 4"),
        ({"unet": {"norm_num_groups": 3}}, "task.unet: .*groups .3. does not divide .* channels .8."),
        ({"unet": {"up_block_types": []}}, "task.unet: up_block_types has 0 entries"),
        ({"unet": {"addition_embed_type": "text_time"}}, "task.unet.addition_embed_type: is 'text_time', but"),
        ({"text": {"hiden_size": 8}}, "task.text_encoder: .*hiden_size: unknown key, did you mean 'hidden_size'"),
        ({"text": {"vocab_size": 9}}, "task.text_encoder.vocab_size: is 9, but follows from the rest"),
        ({"text": {"max_position_embeddings": 7}}, "task.text_encoder.max_position_embeddings: is 7, but .*: 8"),
        ({"text": {"num_attention_heads": 3}}, "task.text_encoder: .*3 heads do not divide a width of 8"),
        ({"scheduler": {"beta_shedule": "linear"}}, "scheduler.beta_shedule: unknown, did you mean 'beta_schedule'"),
        ({"scheduler": {"_class_name": "Euler"}}, "task.scheduler._class_name: is 'Euler', but .*'DDIMScheduler'"),
        ({"sampler": {"method": "dpmpp_2m", "steps": 1000}}, "solver.steps: must be 999 or less"),
        ({"shape": (9, 9, 1)}, "data.image_size: images of 9 x 9 are not reduced by 2; give a multiple of it"),
        ({"shape": (8, 8, 3)}, "data.channels: the autoencoder is of 1 channels, but the images have 3"),
    ],
    ids=str,
)
def test_what_contradicts_the_data_or_is_unknown_is_refused_by_name_before_training(data, fields, message):
    with pytest.raises(ConfigError, match=message):
        task(data, **fields)


def test_data_without_texts_or_normalised_is_refused_by_the_config():
    raw = small_config(task=section().model_dump(mode="json"))
    raw["data"] = {"name": "digits", "batch_size": 8}
    with pytest.raises(ConfigError, match="text_to_image needs texts: give data.captions"):
        parse(raw, "small")
    raw["data"] |= {"captions": {}, "normalize": "imagenet"}
    with pytest.raises(ConfigError, match="text_to_image takes images in .0, 1.: leave data.normalize out"):
        parse(raw, "small")


def test_texts_as_bytes_end_where_the_text_encoder_pools_and_pad_with_what_it_has():
    source = open_source(Digits(name="digits", batch_size=1, captions=Captions(max_length=30)))
    parts = diffusion_configs.configs(section(), source.image_shape, source.captions)
    assert parts["text_encoder"]["vocab_size"] == source.captions.vocabulary
    assert parts["text_encoder"]["pad_token_id"] == source.captions.padding
    module = from_config(parts["text_encoder"])
    states = jax.eval_shape(module.init_with_output, KEY, *example(module))[0]
    assert states.last.shape[-1] == TEXT["hidden_size"]


def test_a_score_is_of_the_asked_number_of_samples_at_least_and_of_their_texts_classes(data, batch):
    score = {"classifier": {"workdir": "nowhere", "model": {"name": "cifar_resnet_tiny"}}, "samples": 12}
    made = task(data, score=score)
    scored = made.init(KEY, batch)
    asked = []

    def test():
        for number in range(2):
            asked.append(number)
            yield {"image": batch["image"], "input_ids": batch["input_ids"], "label": jnp.arange(EXAMPLES)}

    found = made.score(scored, test, test, KEY)
    assert 0 <= found["class_conditional_accuracy"] <= 1
    assert found["fid"] > 0
    # both splits once for the real images, and two batches of eight for twelve samples
    assert len(asked) == 6
    assert (found["class_conditional_accuracy"] * 16) % 1 == 0
