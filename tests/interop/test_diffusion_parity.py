from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import thinned
from diffusion_samples import (
    END,
    TEXTS,
    TOKENS,
    UNETS,
    VAE,
    VOCABULARY,
    config_of,
    for_us,
    ours,
    pictures,
    texts,
    unet,
    vae,
)
from diffusion_samples import text as text_net
from twins import QUICK

from jaxkit.models.diffusion.backend import build, condition
from jaxkit.models.diffusion.config import from_config
from jaxkit.models.diffusion.unet import Added

pytestmark = pytest.mark.level(1)

# Float32 in another order of summation, outputs of about 1: the largest difference seen is 1.7e-6, of the VAE 3.5e-6.
TOLERANCE, VAE_TOLERANCE = 5e-6, 1e-5
# GELU by tanh and norms with another epsilon, in diffusers' Flax UNet: 4.4e-5, 3.9e-5 and 6.1e-5 seen.
STOCK_FLAX = 1e-4
TIMESTEPS = np.array([3, 977])
SIZES = [512, 384, 0, 64, 512, 512]
UNUSUAL = {
    "in_channels": 5,
    "out_channels": 3,
    "center_input_sample": True,
    "flip_sin_to_cos": False,
    "only_cross_attention": [True, False],
    "layers_per_block": [1, 2],
    "mid_block_scale_factor": 1.5,
    "norm_num_groups": 16,
    "norm_eps": 1e-3,
    "time_embedding_dim": 24,
    "conv_in_kernel": 5,
    "conv_out_kernel": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "transformer_layers_per_block": [1, 2],
    "reverse_transformer_layers_per_block": [1, 3],
}


@pytest.fixture(scope="module", autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


def told(projection=12):
    """What SDXL is told besides the text, for us and for torch."""
    pooled = np.random.default_rng(2).normal(size=(2, projection)).astype(np.float32)
    sizes = np.tile(SIZES, (2, 1))
    theirs = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(sizes)}
    return Added(jnp.asarray(pooled), jnp.asarray(sizes)), theirs


@pytest.mark.parametrize(
    ("config", "sides"),
    [
        (UNETS["sd1"], (8, 8)),
        # torch cuts what it doubles to the size of the map that it joins
        (UNETS["sd2"], (9, 7)),
        (UNETS["sdxl"], (8, 8)),
        (UNETS["sd1"] | UNUSUAL, (8, 6)),
        (UNETS["sd2"] | {"mid_block_type": None, "downsample_padding": 0}, (8, 8)),
    ],
    ids=["sd1", "sd2 with odd sides", "sdxl", "unusual", "without a middle"],
)
def test_unet_matches_torch(config, sides):
    net = unet(**config)
    module, variables = ours(net)
    x, theirs = pictures((2, *sides, config.get("in_channels", 4)))
    context = np.random.default_rng(1).normal(size=(2, TOKENS, config["cross_attention_dim"])).astype(np.float32)
    added, added_torch = told() if "addition_embed_type" in config else (None, None)
    with torch.no_grad():
        expected = net(
            theirs, torch.from_numpy(TIMESTEPS), torch.from_numpy(context), added_cond_kwargs=added_torch
        ).sample
    run = jax.jit(module.apply, compiler_options=QUICK)
    found = run(variables, x, jnp.asarray(TIMESTEPS), jnp.asarray(context), added)
    assert np.abs(found - for_us(expected)).max() <= TOLERANCE


def prompts(*new):
    """Two texts that end, with new words in the middle."""
    ids = np.random.default_rng(0).integers(3, END, (2, TOKENS))
    ids[:, 2 : 2 + len(new)] = new
    ids[:, -3:] = END
    return ids


def with_words(net, n):
    """The text encoder with n new words at its table's end, and their rows."""
    net.resize_token_embeddings(VOCABULARY + n, mean_resizing=False)
    table = net.get_input_embeddings().weight
    rows = np.random.default_rng(5).normal(size=(n, table.shape[1])).astype(np.float32)
    with torch.no_grad():
        table[-n:] = torch.from_numpy(rows)
    net.config.vocab_size = VOCABULARY
    return jnp.asarray(rows)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_new"])
@pytest.mark.parametrize(("projection", "end"), [(False, 2), (True, 2), (True, END)])
def test_text_encoder_with_new_words_matches_torch_that_has_them_in_its_table(activation, projection, end):
    net = text_net(projection, **TEXTS["sd1"][0] | {"hidden_act": activation, "eos_token_id": end})
    module, variables = ours(net)
    rows, ids = with_words(net, 2), prompts(VOCABULARY, VOCABULARY + 1)
    with torch.no_grad():
        found = net(torch.from_numpy(ids), output_hidden_states=True)
    expected = (found.last_hidden_state, found.hidden_states[-2], found[0] if projection else found.pooler_output)
    for state, theirs in zip(jax.jit(module.apply)(variables, jnp.asarray(ids), rows), expected, strict=True):
        assert np.abs(state - theirs.numpy()).max() <= TOLERANCE


def test_the_end_of_a_text_is_pooled_by_choice_where_released_configs_pool_the_new_word():
    net = text_net(**TEXTS["sdxl"][0])
    module, variables = ours(net)
    rows, ids = with_words(net, 1), prompts(VOCABULARY)
    chosen = from_config(config_of(net), eos_token_id=END)
    found = {name: m.apply(variables, jnp.asarray(ids), rows) for name, m in (("config", module), ("end", chosen))}
    np.testing.assert_array_equal(found["config"].pooled, found["config"].last[:, 2])
    np.testing.assert_array_equal(found["end"].pooled, found["end"].last[:, -3])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False, "norm_num_groups": 8},
    ],
    ids=["as usual", "bare"],
)
def test_autoencoder_matches_torch(changes):
    net = vae(**VAE | changes)
    module, variables = ours(net)
    x, theirs = pictures((2, 12, 10, 3))

    def both(variables, x):
        mean, logvar = module.apply(variables, x, method="encode")
        return mean, logvar, module.apply(variables, mean, method="decode")

    with torch.no_grad():
        latents = net.encode(theirs).latent_dist
        expected = (latents.mean, latents.logvar, net.decode(latents.mean).sample)
    for ours_, torch_ in zip(jax.jit(both, compiler_options=QUICK)(variables, x), expected, strict=True):
        assert np.abs(ours_ - for_us(torch_)).max() <= VAE_TOLERANCE
    assert module.reduction == 2


@cache
class Whole:
    """A pipeline in torch, and its variables and configs here."""

    def __init__(self, name):
        self.texts, self.unet = texts(name), unet(**UNETS[name])
        # the autoencoder has no part in it
        bare = VAE | {"_class_name": "AutoencoderKL"}
        self.configs = [config_of(net) for net in self.texts], config_of(self.unet), bare
        self.text_variables = [ours(net)[1] for net in self.texts]
        self.unet_variables = ours(self.unet)[1]
        self.rows = [with_words(net, 1) for net in self.texts]
        self.time_ids = np.tile(SIZES, (2, 1)) if name == "sdxl" else None

    def predict(self, models, rows, ids, x):
        states = [
            encode(variables, ids, row)
            for encode, variables, row in zip(models.text, self.text_variables, rows, strict=True)
        ]
        context, added = condition(states, None if self.time_ids is None else jnp.asarray(self.time_ids))
        return models.unet(self.unet_variables, x, jnp.asarray(TIMESTEPS), context, added)

    def predict_torch(self, ids, x):
        found = [net(ids, output_hidden_states=True) for net in self.texts]
        if self.time_ids is None:
            return self.unet(x, torch.from_numpy(TIMESTEPS), found[0].last_hidden_state).sample
        context = torch.cat([states.hidden_states[-2] for states in found], -1)
        added = {"text_embeds": found[-1].text_embeds, "time_ids": torch.from_numpy(self.time_ids)}
        return self.unet(x, torch.from_numpy(TIMESTEPS), context, added_cond_kwargs=added).sample


# that of sd1 is in the fifty updates of test_textual_inversion.py
@pytest.mark.parametrize("name", thinned(["sd1", "sd2", "sdxl"], ["sd2"]))
def test_gradients_of_the_rows_match_torch_through_text_encoder_and_unet(name):
    whole, ids = Whole(name), prompts(VOCABULARY)
    models = build("native", *whole.configs)
    x, theirs = pictures((2, 8, 8, 4))

    def loss(rows):
        return jnp.square(whole.predict(models, rows, jnp.asarray(ids), x) - 1).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(whole.rows)
    expected = (whole.predict_torch(torch.from_numpy(ids), theirs) - 1).square().mean()
    expected.backward()
    assert abs(value - expected.item()) <= 1e-6
    for ours_, net in zip(gradients, whole.texts, strict=True):
        torch_ = net.get_input_embeddings().weight.grad[-1:].numpy()
        assert np.abs(ours_ - torch_).max() <= 1e-4 * np.abs(torch_).max()


@pytest.mark.parametrize("name", thinned(UNETS, ["sd1"]))
def test_the_flax_classes_of_diffusers_take_the_same_variables_and_agree_within_their_error(name):
    whole, ids = Whole(name), jnp.asarray(prompts(VOCABULARY))
    x, _ = pictures((2, 8, 8, 4))
    found = []
    for backend in ("native", "diffusers"):
        # once by the code that serves large maps
        chunked = "chunked" if name == "sd1" else None
        models = build(backend, *whole.configs, attention=chunked, eos_token_ids=[END] * len(whole.texts))
        states = [
            jax.jit(encode)(variables, ids, row)
            for encode, variables, row in zip(models.text, whole.text_variables, whole.rows, strict=True)
        ]
        predicted = jax.jit(lambda x, models=models: whole.predict(models, whole.rows, ids, x), compiler_options=QUICK)
        found.append((states, predicted(x)))
    for which, tolerance in enumerate((TOLERANCE, STOCK_FLAX)):
        for a, b in zip(*(jax.tree.leaves(outputs[which]) for outputs in found), strict=True):
            assert np.abs(a - b).max() <= tolerance


def test_the_flax_autoencoder_of_diffusers_takes_the_same_variables_and_agrees():
    net = vae(**VAE)
    configs, variables = ([], UNETS["sd1"] | {"_class_name": "UNet2DConditionModel"}, config_of(net)), ours(net)[1]
    # four wide, as it has channels: what the Flax class takes for channels last
    images, latents = pictures((2, 8, 8, 3))[0], pictures((2, 6, 4, 4))[0]
    found = []
    for backend in ("native", "diffusers"):
        models = build(backend, *configs)
        encode, decode = (jax.jit(f, compiler_options=QUICK) for f in (models.encode, models.decode))
        found.append((*encode(variables, images), decode(variables, latents)))
        assert models.scaling_factor == 0.18215
        assert models.reduction == 2
    for a, b in zip(*found, strict=True):
        assert np.abs(a - b).max() <= VAE_TOLERANCE
