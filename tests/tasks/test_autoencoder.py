"""The autoencoder of latent diffusion: what its loss says, what it learns, and what it may start from."""

import json
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import small_config
from runs import learned

from interop.diffusion.folders import load_part
from interop.engine import flatten
from interop.files import FileError
from interop.problems import WeightsError
from interop.starts import READERS, read_weights
from jaxkit import experiment
from jaxkit.config import parse
from jaxkit.data.sources import open_source
from jaxkit.errors import ConfigError
from jaxkit.schema.autoencoder import Autoencoder
from jaxkit.schema.data import Digits
from jaxkit.tasks import autoencoder
from jaxkit.tasks.latents import config_of
from jaxkit.tasks.task import Context, Variables

with warnings.catch_warnings():
    # it warns of its own deprecations
    warnings.simplefilter("ignore")
    import diffusers

pytestmark = pytest.mark.level(1)

KEY = jax.random.PRNGKey(0)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# for programs that run longer than they compile
FAST = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}
MODEL = {
    "in_channels": 1, "block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 2,
    "norm_num_groups": 4, "mid_block_add_attention": False,
}  # fmt: skip
CONTEXT = Context(num_classes=10, load_weights=None, read_weights=READERS.weights)


def section(model=(), **fields):
    return Autoencoder.model_validate({"name": "autoencoder", "model": {**MODEL, **dict(model)}, **fields})


def task(model=(), **fields):
    return autoencoder.make(section(model, **fields), CONTEXT)


@pytest.fixture(scope="module")
def batch():
    images = open_source(Digits(name="digits", batch_size=1, image_size=16)).train.images[:8]
    return {"image": jnp.asarray(images / 255, jnp.float32)}


@pytest.fixture(scope="module")
def variables(batch):
    return task().init(KEY, batch)


def parts_of(variables, batch):
    """Mean, logarithm of the variance and what is made of latents drawn by the key; images in [-1, 1]. Of NumPy."""
    model = autoencoder.autoencoder_kl(section().model, CONTEXT)
    images = 2 * batch["image"] - 1

    @jax.jit
    def computed(params):
        mean, logvar = model.apply({"params": params}, images, method="encode")
        latents = mean + jnp.exp(logvar / 2) * jax.random.normal(KEY, mean.shape)
        return mean, logvar, model.apply({"params": params}, latents, method="decode"), images

    return [np.asarray(x, np.float64) for x in computed(variables.params)]


@pytest.mark.parametrize("weights", [(1.0, 0.0, 1e-6), (0.5, 2.0, 0.1), (0.0, 1.0, 0.0)], ids=str)
def test_the_loss_is_the_weighted_sum_of_three_means(variables, batch, weights):
    l1, l2, kl = weights
    loss, (state, metrics) = jax.jit(task(l1=l1, l2=l2, kl=kl).loss, compiler_options=QUICK)(variables, batch, KEY)
    mean, logvar, made, images = parts_of(variables, batch)
    posterior = torch.distributions.Normal(torch.from_numpy(mean), torch.from_numpy(np.exp(logvar / 2)))
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean().item()
    away = np.abs(made - images).mean()
    # sums of 2,048 float32 numbers of about 1
    assert float(metrics["l1"]) == pytest.approx(away, rel=1e-5)
    assert float(metrics["kl"]) == pytest.approx(divergence, rel=1e-5)
    expected = l1 * away + l2 * np.square(made - images).mean() + kl * divergence
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert state == {}


def test_evaluation_is_of_the_mean_latents_and_of_clipped_images(variables, batch):
    found = jax.device_get(jax.jit(task().evaluate, compiler_options=QUICK)(variables, batch, KEY))
    mean = parts_of(variables, batch)[0]
    model = autoencoder.autoencoder_kl(section().model, CONTEXT)
    made = model.apply({"params": variables.params}, jnp.asarray(mean, jnp.float32), method="decode")
    made = np.clip((np.asarray(made) + 1) / 2, 0, 1)
    mse = np.square(made - batch["image"]).mean((1, 2, 3))
    # float32 through some ten layers
    np.testing.assert_allclose(found["mse"], mse, rtol=1e-4)
    np.testing.assert_allclose(found["psnr"], -10 * np.log10(mse), rtol=1e-4)
    np.testing.assert_allclose(found["latent_deviation"], np.sqrt(np.square(mean).mean((1, 2, 3))), rtol=1e-5)
    other = jax.jit(task().evaluate, compiler_options=QUICK)(variables, batch, jax.random.PRNGKey(1))
    np.testing.assert_array_equal(found["mse"], other["mse"])


def test_pictures_show_images_and_below_them_what_is_made_of_them(variables, batch):
    made = task()
    traced = jax.device_get(jax.jit(made.pictures.trace, compiler_options=QUICK)(variables, batch, KEY))
    np.testing.assert_array_equal(traced[:8], batch["image"])
    assert traced.min() >= 0
    assert traced.max() <= 1
    (drawn,) = made.pictures.draw(traced).values()
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] > drawn.shape[0]


def test_sixty_updates_halve_the_error(variables, batch):
    made, optimizer = task(l1=0.5, l2=1.0), optax.adam(5e-3)

    @partial(jax.jit, compiler_options=FAST)
    def updates(params, key):
        def update(carry, key):
            params, state = carry
            grads, _ = jax.grad(lambda p: made.loss(Variables(p, {}, {}), batch, key), has_aux=True)(params)
            moves, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, moves), state), None

        return jax.lax.scan(update, (params, optimizer.init(params)), jax.random.split(key, 60))[0][0]

    after = variables._replace(params=updates(variables.params, KEY))
    evaluate = jax.jit(made.evaluate, compiler_options=QUICK)
    before, after = (evaluate(v, batch, KEY)["mse"].mean() for v in (variables, after))
    assert after < before / 2


def test_images_of_other_channels_and_what_does_not_go_together_are_refused(batch):
    with pytest.raises(ConfigError, match=r"task.model.in_channels: is 3, but the images have 1"):
        task({"in_channels": 3}).init(KEY, batch)
    with pytest.raises(ValueError, match="is 0, and so is l2: nothing would be reconstructed"):
        section(l1=0.0)
    with pytest.raises(ValueError, match="norm_num_groups: 5 do not divide 8 channels"):
        section({"norm_num_groups": 5})
    raw = small_config(task={"name": "autoencoder", "model": MODEL}, data__normalize="imagenet")
    with pytest.raises(ConfigError, match="autoencoder takes images in"):
        parse(raw, "small")


def diffusers_vae(**changes):
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(**{**config_of(section().model), **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An autoencoder that torch's diffusers has written."""
    path = tmp_path_factory.mktemp("vae")
    diffusers_vae(scaling_factor=0.5).save_pretrained(path)
    return path


def test_a_run_starts_from_a_folder_of_torchs_diffusers(folder, tmp_path, capsys):
    changes = {"train__steps": 1, "train__eval_every": 1, "train__checkpoint_every": 1, "data__image_size": 16}
    # a rate at which no parameter moves, 32 bits being few
    changes |= {"optimizer__learning_rate": 1e-30, "optimizer__momentum": 0.0, "data__augment": "none"}
    raw = small_config(task={"name": "autoencoder", "model": {**MODEL, "pretrained": str(folder)}}, **changes)
    experiment.run(parse(raw, "small"), tmp_path, readers=READERS)
    expected = flatten(load_part(folder).variables)
    found = learned(tmp_path, 1)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        # what is 0 in the folder has moved by the rate
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=1e-25, err_msg=path)
    said = f"{folder}: AutoencoderKL, {len(expected)} arrays; norm_num_groups is 4 there, scaling_factor 0.5"
    assert said in capsys.readouterr().out


def test_weights_of_another_shape_are_one_message_with_every_leaf(folder, variables, tmp_path):
    diffusers_vae(latent_channels=3).save_pretrained(tmp_path / "three")
    with pytest.raises(WeightsError) as error:
        read_weights(str(tmp_path / "three"), "autoencoder_kl", {"params": variables.params})
    assert r"params/post_quant_conv/kernel [1, 1, 3, 3] in config.json for [1, 1, 2, 2]" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "VQModel"}, "holds a VQModel, and no AutoencoderKL"),
        ({"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel, and no AutoencoderKL"),
        ({"act_fn": "relu"}, "act_fn 'relu' is not offered"),
    ],
    ids=str,
)
def test_a_folder_of_another_network_is_refused(folder, variables, tmp_path, change, message):
    config = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        read_weights(str(tmp_path), "autoencoder_kl", {"params": variables.params})


def test_a_folder_that_is_not_there_or_without_weights_is_refused(folder, batch, variables, tmp_path):
    made = task({"pretrained": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match=r"task.model.pretrained: .*nowhere/config.json does not exist"):
        made.warm_start(variables)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(FileError, match="no weights"):
        read_weights(str(tmp_path), "autoencoder_kl", {"params": variables.params})
