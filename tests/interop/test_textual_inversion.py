import contextlib
import json
import shutil
import warnings
from functools import partial

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import thinned
from diffusion_samples import TOKENS, VOCABULARY, pipeline
from PIL import Image
from safetensors.numpy import load_file, save_file

from interop.diffusion.folders import load_pipeline
from interop.starts import READERS
from jaxkit import experiment, parallel
from jaxkit.config import parse
from jaxkit.errors import ConfigError
from jaxkit.inference import sample_run
from jaxkit.losses.diffusion import draw_noise
from jaxkit.models.diffusion.config import from_config
from jaxkit.starts import digest
from jaxkit.step import TrainState, train_step
from jaxkit.tasks import concepts
from jaxkit.tasks.latents import drawn_latents
from jaxkit.tasks.task import Variables

pytestmark = pytest.mark.level(1)

WORD = "<x>"
# as torch and diffusers have it: what follows from the two libraries' float32
EXACT = "highest"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny pipelines of torch on disk."""
    root = tmp_path_factory.mktemp("pipelines")
    found = {}
    with warnings.catch_warnings():
        # diffusers warns of its own deprecations
        warnings.simplefilter("ignore")
        for name in ("sd1", "sd2", "sdxl"):
            (root / f"{name}_words").mkdir()
            pipeline(name, root / f"{name}_words").save_pretrained(root / name)
            found[name] = root / name
    return found


def config(folder, *, steps=4, digits=(7,), vectors=2, task=(), optimizer=(), train=()):
    words = [{"placeholder_token": f"<{'xyzuv'[i]}>", "initializer_token": "ab"} for i in range(len(digits))]
    return parse(
        {
            "task": {
                "name": "textual_inversion", "pipeline": str(folder), "backend": "native", "words": words,
                "vectors": vectors, "templates": ["a {}", "{}"], "flip": 0.5,
                "sampler": {"steps": 2, "guidance_scale": 2.0}, "eval_draws": 1, **dict(task),
            },
            "data": {"name": "digit_concepts", "digits": list(digits), "pictures": 3, "image_size": 16,
                     "batch_size": 8},
            "optimizer": {"name": "adamw", "learning_rate": 5e-3, "weight_decay": 0.01, **dict(optimizer)},
            "train": {
                "steps": steps, "eval_every": steps, "checkpoint_every": steps, "matmul_precision": EXACT, **dict(train)
            },
            "tracking": {"progress": False, "tensorboard": False},
        },
        "small",
    )  # fmt: skip


def prepared(raw, folder):
    """The job of a config, its first variables, and its first batch."""
    _, job = experiment.prepare(raw, folder, READERS)
    batch = jax.tree.map(jnp.asarray, job.feed.first())
    return job, job.task.init(jax.random.PRNGKey(0), batch), batch


def trained(raw, folder):
    experiment.run(raw, folder, readers=READERS)
    return {path.name: load_file(path)[WORD] for path in sorted(folder.glob("learned_embeds*.safetensors"))}


def torch_rows(folder, steps, draws, vectors, text_ids, start):
    """Trains as the original does, with what was drawn here: AdamW on the whole table, other rows put back."""
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    text = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval().requires_grad_(False)
    schedule = DDPMScheduler.from_pretrained(folder / "scheduler")
    table = text.get_input_embeddings().weight
    known = len(table)
    text.requires_grad_(False)
    text.resize_token_embeddings(known + vectors, mean_resizing=False)
    table = text.get_input_embeddings().weight
    with torch.no_grad():
        table[known:] = torch.from_numpy(start)
    table.requires_grad_(True)
    original = table.detach().clone()
    optimizer = torch.optim.AdamW([table], lr=5e-3, weight_decay=0.01)
    found = []
    for step in range(steps):
        latents, noise, timesteps = (torch.from_numpy(np.array(x)) for x in draws[step])
        latents, noise = (x.permute(0, 3, 1, 2) for x in (latents, noise))
        noisy = schedule.add_noise(latents, noise, timesteps.long())
        states = text(torch.from_numpy(np.array(text_ids[step])).long())[0]
        velocity = schedule.config.prediction_type == "v_prediction"
        target = schedule.get_velocity(latents, noise, timesteps.long()) if velocity else noise
        loss = torch.nn.functional.mse_loss(unet(noisy, timesteps, states).sample, target)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            table.grad[:known] = 0
        optimizer.step()
        with torch.no_grad():
            table[:known] = original[:known]
        found.append(table.detach()[known:].numpy().copy())
    return found


# Stable Diffusion 2 predicts v
@pytest.mark.parametrize(
    ("name", "backend"),
    thinned([("sd1", "native"), ("sd2", "native"), ("sd1", "diffusers")], [("sd1", "native"), ("sd2", "native")]),
)
def test_fifty_updates_follow_torchs_with_the_noise_injected(folders, tmp_path, name, backend, record_property):
    steps = 50
    raw = config(folders[name], steps=steps, task={"backend": backend})
    with experiment.precision(raw):
        job, variables, _ = prepared(raw, tmp_path)
        state = job.optimizer.init(variables.params)
        cache = variables.frozen["cache"]

        @jax.jit
        def update(params, state, frozen, batch):
            grads = jax.grad(lambda p: job.task.loss(Variables(p, {}, frozen), batch, None)[0])(params)
            updates, state = job.optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params, ours, draws, ids = variables.params, [], [], []
        with contextlib.closing(job.feed.batches(0)) as batches:
            for step in range(steps):
                keys = jax.random.split(jax.random.PRNGKey(step), 8)
                batch = {"picture": jnp.asarray(next(batches)["picture"]), "key": keys}
                seen = concepts.drawn(cache, batch["picture"], keys, 0.5, captions=False)
                moments = (cache[name][seen.place] for name in ("mean", "logvar"))
                latents = drawn_latents(seen.key_latents, *moments, 0.18215)
                drawn = draw_noise(seen.key_noise, latents.shape[1:], 1000)
                draws.append((latents, *drawn))
                ids.append(seen.ids[0])
                params, state = update(params, state, variables.frozen, batch)
                ours.append(np.asarray(params["rows"][0][0]))
    start = np.array(variables.params["rows"][0][0])
    theirs = torch_rows(folders[name], steps, draws, 2, ids, start)
    moved = np.abs(theirs[-1] - start).max()
    apart = max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) / np.abs(theirs[-1]).max()
    record_property("rows_apart", float(apart))
    # of a trajectory, which Adam lets drift; diffusers' UNet has another GELU and another epsilon
    assert moved > 0.02
    assert apart < 1e-3


def job_of(raw, folder, executor=None):
    """One update of a config on one device, whatever the machine has."""
    _, job = experiment.prepare(raw, folder, READERS)
    variables = job.task.init(jax.random.PRNGKey(0), None)
    one = parallel.Executor(None, 1, None, None, None)
    return job, variables, one


def steps_of(job, variables, executor, count):
    """So many updates, of one device."""
    step = jax.jit(
        partial(train_step, task=job.task, optimizer=job.optimizer, rate=job.learning_rate, augment=job.feed.augment,
                executor=executor, pieces=1)
    )  # fmt: skip
    opt_state = job.optimizer.init(variables.params)
    state = TrainState(
        jnp.int32(0), variables.params, variables.state, opt_state, jax.random.PRNGKey(job.config.seed), jnp.bool(True)
    )
    with contextlib.closing(job.feed.batches(0)) as batches:
        for _ in range(count):
            state, _ = step(state, variables.frozen, jax.tree.map(jnp.asarray, next(batches)))
    return state


@pytest.mark.parametrize("kind", thinned(["jit", "pmap"], ["pmap"]))
def test_eight_devices_learn_what_one_does(folders, tmp_path, kind):
    raw = config(folders["sd1"], steps=3)
    with experiment.precision(raw):
        state = steps_of(*job_of(raw, tmp_path / "one"), 3)
    one = np.asarray(state.params["rows"][0][0])
    found = trained(config(folders["sd1"], steps=3, train={"parallel": kind}), tmp_path / kind)
    # sums over devices are added in another order, and Adam divides by their roots
    np.testing.assert_allclose(found["learned_embeds.safetensors"], one, atol=2e-6)


def test_a_run_that_was_stopped_ends_with_the_same_bytes_and_not_with_another_schedule(folders, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(folders["sd1"], source)
    best = {"train": {"eval_every": 2, "checkpoint_every": 2, "keep_best": 1}}
    trained(config(source, steps=4, **best), tmp_path / "whole")
    trained(config(source, steps=2, **best), tmp_path / "parts")
    trained(config(source, steps=4, **best), tmp_path / "parts")
    names = [f"learned_embeds{end}.safetensors" for end in ("-steps-2", "-steps-4", "")]
    whole, parts = ({name: (tmp_path / of / name).read_bytes() for name in names} for of in ("whole", "parts"))
    assert whole == parts
    step = json.loads((tmp_path / "parts" / "results.json").read_text())["best"]["step"]
    assert parts["learned_embeds.safetensors"] == parts[f"learned_embeds-steps-{step}.safetensors"]
    assert f"learned_embeds.safetensors: of step {step}" in capsys.readouterr().out

    scheduler = source / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    with pytest.raises(ConfigError, match="what is frozen .* is not what this run began with"):
        trained(config(source, steps=6, **best), tmp_path / "parts")


def test_nothing_that_is_frozen_changes_in_training(folders, tmp_path):
    raw = config(folders["sd1"])
    with experiment.precision(raw):
        job, variables, one = job_of(raw, tmp_path)
        before = digest(variables.frozen), digest(variables.frozen["cache"])
        state = steps_of(job, variables, one, 2)
    assert (digest(variables.frozen), digest(variables.frozen["cache"])) == before
    assert digest(state.params) != digest(variables.params)


def test_rows_alone_learn_what_the_whole_table_learns_with_the_others_put_back(folders):
    pipe = load_pipeline(folders["sd1"])
    text, unet = (jax.tree.map(jnp.asarray, part.variables) for part in (pipe.text_encoders[0], pipe.unet))
    config = pipe.text_encoders[0].config
    table = text["params"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
    grown = from_config({**config, "vocab_size": VOCABULARY + 2})
    encoder, network = from_config(config), from_config(pipe.unet.config)
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(VOCABULARY - 20, VOCABULARY + 2, (4, TOKENS)))
    noise = jnp.asarray(rng.normal(size=(4, 8, 8, 4)), jnp.float32)
    optimizer = optax.adamw(5e-3, weight_decay=0.01)

    def cost(states):
        return jnp.mean(jnp.square(network.apply(unet, noise, jnp.arange(4) * 200, states) - noise))

    def of_rows(rows):
        return cost(encoder.apply(text, ids, rows).last)

    def of_table(whole):
        tree = jax.tree.map(lambda leaf: leaf, text)
        tree["params"]["text_model"]["embeddings"]["token_embedding"]["embedding"] = whole
        return cost(grown.apply(tree, ids).last)

    @jax.jit
    def update(rows, state):
        changes, state = optimizer.update(jax.grad(of_rows)(rows), state, rows)
        return optax.apply_updates(rows, changes), state

    @jax.jit
    def update_table(whole, state):
        grads = jax.grad(of_table)(whole).at[:VOCABULARY].set(0)
        changes, state = optimizer.update(grads, state, whole)
        return optax.apply_updates(whole, changes).at[:VOCABULARY].set(table), state

    rows = table[5:7]
    whole = jnp.concatenate([table, rows])
    state, state_table = optimizer.init(rows), optimizer.init(whole)
    for _ in range(10):
        rows, state = update(rows, state)
        whole, state_table = update_table(whole, state_table)
    assert np.abs(rows - table[5:7]).max() > 0.02
    np.testing.assert_array_equal(whole[VOCABULARY:], rows)


def test_words_are_learned_at_once_as_each_alone(folders, tmp_path):
    with experiment.precision(config(folders["sd1"])):
        states = [steps_of(*job_of(config(folders["sd1"], digits=digits), tmp_path), 3) for digits in ((7,), (7, 3))]
    alone, both = (state.params["rows"][0] for state in states)
    assert both.shape == (2, 2, 16)
    # two programs, whose sums XLA may order otherwise
    np.testing.assert_allclose(both[0], alone[0], atol=2e-6)
    assert np.abs(both[1] - both[0]).max() > 1e-3


def opened(folder):
    kind = diffusers.StableDiffusionXLPipeline if folder.name == "sdxl" else diffusers.StableDiffusionPipeline
    extra = {} if folder.name == "sdxl" else {"safety_checker": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = kind.from_pretrained(folder, local_files_only=True, **extra)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# of XL, an export opens in torch in test_diffusion_runs.py
@pytest.mark.parametrize("name", thinned(["sd1", "sdxl"], ["sd1"]))
def test_a_learned_word_loads_in_torch_bit_for_bit_and_draws_the_same_image(folders, tmp_path, name):
    run = tmp_path / "run"
    trained(config(folders[name], steps=2, train={"eval_every": 2}), run)
    pipe = opened(folders[name])
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pairs = [(pipe.tokenizer, pipe.text_encoder)]
    if name == "sdxl":
        pairs.append((pipe.tokenizer_2, pipe.text_encoder_2))
    for i, (tokenizer, encoder) in enumerate(pairs):
        path = run / f"learned_embeds{'_2' * i}.safetensors"
        pipe.load_textual_inversion(path, tokenizer=tokenizer, text_encoder=encoder)
        rows = encoder.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids([WORD, f"{WORD}_1"])]
        np.testing.assert_array_equal(rows.detach(), load_file(path)[WORD])

    key = jax.random.key(0)
    ours = sample_run(run, 2, prompts=(f"a {WORD}",), readers=READERS)
    latents = jax.random.normal(jax.random.split(key)[0], (2, 8, 8, 4))
    theirs = pipe(
        f"a {WORD}", height=16, width=16, num_inference_steps=2, guidance_scale=2.0, num_images_per_prompt=2,
        latents=torch.from_numpy(np.array(latents).transpose(0, 3, 1, 2)), output_type="np",
    ).images  # fmt: skip
    # four calls of a UNet and a decoder, each within 1e-5
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert ours.std() > 0.01


def refused(folder, match, tmp_path, **changes):
    with pytest.raises(ConfigError, match=match):
        experiment.prepare(config(folder, **changes), tmp_path, READERS)


def test_what_does_not_go_together_is_said_before_anything_is_trained(folders, tmp_path):
    sd1 = folders["sd1"]
    refused(
        sd1, "task.words: two have the same", tmp_path, digits=(7, 3), task={"words": [{"placeholder_token": WORD}] * 2}
    )
    refused(sd1, "captions are asked for", tmp_path, task={"templates": "captions"})
    refused(sd1, "a thing", tmp_path, task={"templates": ["a thing"]})
    refused(sd1, "too long by", tmp_path, task={"templates": ["abcdefghij {}"]})
    refused(
        sd1,
        "are 1, but the data has the pictures of 2",
        tmp_path,
        digits=(7, 3),
        task={"words": [{"placeholder_token": WORD}]},
    )
    refused("nowhere", "no such folder", tmp_path)
    with pytest.raises(ConfigError, match="nothing that reads pipelines"):
        experiment.prepare(config(sd1), tmp_path)


def test_captions_masks_norms_and_vectors_of_a_file_go_together(folders, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(pictures / f"{i}.png")
        Image.fromarray(np.full((16, 16), 255 * (i > 0) + 100 * (i == 0), np.uint8)).save(pictures / f"{i}_mask.png")
        (pictures / f"{i}.txt").write_text(f"ab {{}} {'cd'[i % 2]}")
    rows = rng.normal(size=(2, 16)).astype(np.float32)
    path = tmp_path / "word.safetensors"
    save_file({"<other>": rows + 1, WORD: rows}, path)
    task = {
        "words": [{"placeholder_token": WORD, "init_from": str(path)}], "templates": "captions", "snr_gamma": 5.0,
        "norm": {"kind": "median"}, "pooling": "eos",
    }  # fmt: skip
    raw = config(folders["sd1"], task=task).model_dump()
    raw["data"] = {
        "name": "concepts", "roots": [str(pictures)], "image_size": 16, "captions": True, "masks": True, "batch_size": 8
    }  # fmt: skip
    job, variables, one = job_of(parse(raw, "small"), tmp_path / "run")
    np.testing.assert_array_equal(variables.params["rows"][0][0], rows)
    cache = variables.frozen["cache"]
    assert cache["mask"].shape == (1, 2, 3, 8, 8)
    assert cache["ids"][0].shape == (1, 3, TOKENS)
    state = steps_of(job, variables, one, 2)
    found = state.params["rows"][0][0]
    table = load_pipeline(folders["sd1"]).text_encoders[0].variables["params"]["text_model"]["embeddings"]
    median = np.median(np.linalg.norm(table["token_embedding"]["embedding"], axis=1))
    # an even number of rows: torch's median is the lower of two
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), median, rtol=1e-2)
    assert np.abs(found - rows).max() > 1e-3
