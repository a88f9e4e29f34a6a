import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_textual_inversion import config, folders, prepared, refused  # noqa: F401

from jaxkit import experiment
from jaxkit.errors import ConfigError
from jaxkit.models.diffusion.backend import Models
from jaxkit.sampling.diffusion.noise import NoiseSchedule
from jaxkit.schema.diffusion import Sampler
from jaxkit.tasks import concepts, latents

pytestmark = pytest.mark.level(1)


@pytest.mark.parametrize(("side", "most"), [(16, 8), (512, 8), (1024, 2), (2048, 1)])
def test_larger_pictures_are_encoded_fewer_at_once_and_come_out_in_order(side, most):
    seen = []

    def encode(_, images):
        seen.append(len(images))
        mean = images[:, :1, :1, :1]
        return mean, mean

    values = np.arange(11, dtype=np.uint8)
    pictures = np.broadcast_to(values[:, None, None, None], (11, side, side, 3))
    found = concepts.moments(encode, {}, [pictures], mirrored=False)
    assert seen == [most]
    np.testing.assert_allclose(found["mean"].ravel(), values / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_images_sampled_a_few_at_once_are_those_of_all_at_once(monkeypatch, guidance_scale):
    asked = []

    def unet(_, x, timesteps, context, added):
        asked.append(len(x))
        return 0.1 * x + context[:, :1, None, :4] + added[:, None, None, None]

    models = Models((), unet, None, lambda _, z: 0.05 * z[..., :3], 2.0, 8)
    schedule, sampler = NoiseSchedule(), Sampler(steps=2, guidance_scale=guidance_scale)
    told = jnp.arange(6 * 4.0).reshape(6, 1, 4) / 100, jnp.arange(6.0) / 10
    untold = jnp.ones((1, 1, 4)), jnp.ones(1)

    def images():
        asked.clear()
        key, weights = jax.random.key(0), {"unet": None, "vae": None}
        return latents.sampled_images(key, models, schedule, sampler, weights, told, untold, (4, 4, 4))

    whole, at_once = images(), asked[0]
    monkeypatch.setattr(latents, "AT_ONCE", 2 * 16)
    # the same sums, but by another program
    np.testing.assert_allclose(images(), whole, atol=1e-6)
    assert asked[0] == at_once // 3
    assert np.asarray(whole).std() > 0.01


def test_words_whose_files_would_have_one_name_are_refused(folders, tmp_path):  # noqa: F811
    words = [{"placeholder_token": "<x>"}, {"placeholder_token": "[x]"}]
    refused(folders["sd1"], "<x> and \\[x\\] would both be saved as", tmp_path, digits=(7, 3), task={"words": words})
    # the second text encoder's of the one, and the first's of the other
    words = [{"placeholder_token": "<x>"}, {"placeholder_token": "<x_2>"}]
    refused(folders["sdxl"], "learned_embeds-x_2.safetensors", tmp_path, digits=(7, 3), task={"words": words})


def test_a_prompt_of_the_score_without_the_word_is_refused_before_training():
    score = {"classifier": {"config": "configs/classify_digits.yaml"}, "labels": [7], "prompt": "a digit"}
    with pytest.raises(ConfigError, match="no place for the word"):
        config("nowhere", task={"score": score})


def test_the_score_has_the_networks_as_an_argument_of_its_program(folders, tmp_path, monkeypatch):  # noqa: F811
    """Closed over they would be constants of it, as large as Stable Diffusion."""
    from jaxkit.tasks import inversion_parts
    from jaxkit.tasks.judges import FrozenClassifier

    judge = FrozenClassifier(
        init=lambda key, images: {}, apply=lambda _, images: (np.eye(10)[[7] * len(images)], {}), num_classes=10
    )
    monkeypatch.setattr(inversion_parts, "frozen_classifier", lambda *_: judge)
    jitted, jit = [], jax.jit

    def recorded(function, **kinds):
        compiled = jit(function, **kinds)

        def called(*arguments):
            jitted.append(len(jax.tree.leaves(arguments)))
            return compiled(*arguments)

        return called

    classifier = {"config": "configs/classify_digits.yaml", "overrides": ["task.model.num_classes=10"]}
    score = {"classifier": classifier, "labels": [7], "samples": 1}
    raw = config(folders["sd1"], task={"score": score})
    with experiment.precision(raw):
        job, variables, _ = prepared(raw, tmp_path)
        monkeypatch.setattr(jax, "jit", recorded)
        found = job.task.score(variables, None, None, jax.random.PRNGKey(0))
    assert found == {f"concept_accuracy{name}": 1.0 for name in ("", "_before", "_random")}
    assert min(jitted) > len(jax.tree.leaves(variables.frozen["unet"]))
