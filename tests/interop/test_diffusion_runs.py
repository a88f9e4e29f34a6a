"""Runs of the diffusion tasks as pipelines that torch's diffusers opens: the same numbers, words and files."""

import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import small_config, thinned
from diffusion_samples import END, TOKENS, UNETS, VOCABULARY, for_us, pipeline, unet
from safetensors.numpy import load_file

from interop import starts
from interop.diffusion import runs
from interop.diffusion.folders import load_part, load_pipeline
from interop.diffusion.runs import export_run
from interop.engine import flatten
from interop.starts import READERS
from jaxkit import experiment, tracking
from jaxkit.checkpoint import CheckpointError
from jaxkit.config import load, parse
from jaxkit.data import clip_words
from jaxkit.errors import ConfigError
from jaxkit.inference import restored
from jaxkit.models.diffusion.config import from_config
from jaxkit.tasks import text_to_image, textual_inversion

with warnings.catch_warnings():
    # both warn of their own deprecations
    warnings.simplefilter("ignore")
    import diffusers
    import transformers

# diffusers tells of names it will drop, and transformers of tokenizers it will clean up
pytestmark = [
    pytest.mark.level(1),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
AUTOENCODER = {
    "name": "autoencoder",
    "model": {
        "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "mid_block_add_attention": False,
        "scaling_factor": 0.9,
    },
}  # fmt: skip
UNET = {
    "block_out_channels": [16], "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 4,
    "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"],
}  # fmt: skip
TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SAMPLER = {"method": "ddim", "steps": 3, "guidance_scale": 2.0}
LENGTH, PROMPTS = 8, ["a seven", "the digit zero", "what else"]
VECTORS = {"<x>": 2, "<y>": 2}


def trained(folder, task, **data):
    raw = small_config(task=task, optimizer={"name": "adamw", "learning_rate": 1e-2})
    raw["data"] = {"name": "digits", "image_size": 16, "channels": 3, "batch_size": 8, "eval_examples": 8, **data}
    raw["data"] |= {"eval_batch_size": 8} if raw["data"]["name"] == "digits" else {}
    raw["train"] = {"steps": 2, "eval_every": 2, "checkpoint_every": 2, "matmul_precision": "highest"}
    experiment.run(parse(raw, "small"), folder, readers=READERS)


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    """No curves and no samples in training, which have their own tests; no tokenizer where the user's are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "draw_curves", lambda records, path: None)
        patch.setattr(clip_words, "CACHE", tmp_path_factory.mktemp("tokenizers"))
        for module in (text_to_image, textual_inversion):
            make = module.make
            patch.setattr(module, "make", lambda *given, make=make: make(*given)._replace(sample=None))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps over an autoencoder of two."""
    root = tmp_path_factory.mktemp("runs")
    trained(root / "autoencoder", AUTOENCODER)
    task = {
        "name": "text_to_image", "autoencoder": {"workdir": str(root / "autoencoder")}, "unet": UNET,
        "text_encoder": TEXT, "sampler": SAMPLER,
    }  # fmt: skip
    trained(root / "run", task, captions={"tokenizer": "clip", "max_length": LENGTH})
    return root / "run"


@pytest.fixture(scope="module")
def ours(run):
    config = load(run / "config.yaml")
    with experiment.precision(config):
        return restored(run, config, None, READERS)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """What is exported of it."""
    path = tmp_path_factory.mktemp("exported") / "pipeline"
    lines = export_run(run, path)
    assert lines == [f"{path}: step 2", f"prompts as the run's captions, of at most {LENGTH} tokens"]
    return path


def opened(folder):
    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, name).from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def theirs(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return opened(folder)


def exact(function, *given):
    """What a function gives, compiled, with products in float32."""
    with jax.default_matmul_precision("highest"):
        return jax.jit(function, compiler_options=QUICK)(*given)


def test_the_exported_tokenizer_gives_the_ids_of_training(ours, theirs):
    assert isinstance(theirs.tokenizer, transformers.CLIPTokenizer)
    for text in [*PROMPTS, "", "größer 12!", "a handwritten three and much more of it"]:
        found = theirs.tokenizer(text, padding="max_length", truncation=True).input_ids
        assert found == ours.source.captions(text)["input_ids"].tolist()


def test_the_exported_networks_compute_what_the_run_does(ours, theirs, folder):
    pipe = load_pipeline(folder)
    text, unet, vae = (from_config(part.config) for part in (pipe.text_encoders[0], pipe.unet, pipe.vae))
    weights = {name: {"params": tree} for name, tree in ours.variables.params.items()} | ours.variables.frozen
    ids = np.stack([ours.source.captions(text)["input_ids"] for text in PROMPTS])
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(len(PROMPTS), 8, 8, 4)).astype(np.float32)
    times, in_torch = np.array([3, 500, 999]), torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())

    states = exact(text.apply, weights["text_encoder"], ids).last
    noise = exact(unet.apply, weights["unet"], latents, times, states)
    images = exact(lambda *given: vae.apply(*given, method="decode"), weights["vae"], latents)
    with torch.no_grad():
        their_states = theirs.text_encoder(torch.from_numpy(ids).long())[0]
        their_noise = theirs.unet(in_torch, torch.from_numpy(times), their_states).sample
        their_images = theirs.vae.decode(in_torch).sample
    for found, expected in (states, their_states.numpy()), (noise, for_us(their_noise)), (images, for_us(their_images)):
        np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))
    assert theirs.vae.config.scaling_factor == 0.9


@pytest.mark.parametrize("guidance", thinned([2.0, 1.0], [2.0]))
def test_ddim_in_torch_draws_the_same_images_from_the_same_latents(run, theirs, guidance):
    config = load(run / "config.yaml", (f"task.sampler.guidance_scale={guidance}",))
    with experiment.precision(config):
        mine = restored(run, config, None, READERS)
    key = jax.random.PRNGKey(3)
    ids = jnp.stack([mine.source.captions(text)["input_ids"] for text in PROMPTS])
    images = exact(mine.task.draw, mine.variables, key, {"input_ids": ids})
    start = jax.random.normal(jax.random.split(key)[0], (len(PROMPTS), 8, 8, 4))
    latents = torch.from_numpy(np.asarray(start).transpose(0, 3, 1, 2).copy())
    options = {"num_inference_steps": 3, "guidance_scale": guidance, "output_type": "np"}
    expected = theirs(PROMPTS, height=16, width=16, latents=latents, **options).images
    # three calls in float32, doubled by guidance
    np.testing.assert_allclose(images, expected, atol=2e-5)
    levels = (np.round(255 * np.asarray(side)).astype(int) for side in (images, expected))
    assert np.abs(np.subtract(*levels)).max() <= 1
    assert np.std(expected) > 0.01


def test_what_is_there_is_replaced_by_force_alone_and_only_if_it_is_a_pipeline(run, folder, tmp_path):
    with pytest.raises(ConfigError, match="exists already; --force overwrites it"):
        export_run(run, folder)
    old = tmp_path / "old"
    old.mkdir()
    (old / "diary.txt").write_text("dear")
    with pytest.raises(ConfigError, match="is no pipeline, and is not replaced by one"):
        export_run(run, old, force=True)
    assert [path.name for path in old.iterdir()] == ["diary.txt"]
    (old / "model_index.json").write_text("{}")
    export_run(run, old, force=True)
    assert sorted(path.name for path in old.iterdir()) == sorted(path.name for path in folder.iterdir())
    with pytest.raises(ConfigError, match="no such folder|does not exist; make it first"):
        export_run(run, tmp_path / "nowhere" / "deep")


def test_runs_of_other_tasks_steps_that_are_not_there_and_texts_as_bytes_are_refused(run, ours, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="is of the task autoencoder, and no text_to_image or textual_inversion"):
        export_run(run.parent / "autoencoder", tmp_path / "out")
    with pytest.raises(ConfigError, match="no run is there"):
        export_run(tmp_path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="the steps saved are: 2"):
        export_run(run, tmp_path / "out", step=7)
    captions = ours.source.captions._replace(folder=None)
    bytewise = ours._replace(source=ours.source._replace(captions=captions))
    monkeypatch.setattr(runs, "restored", lambda *given: bytewise)
    with pytest.raises(ConfigError, match="bytes is no tokenizer of other projects"):
        export_run(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_on_its_way_leaves_nothing(run, folder, tmp_path, monkeypatch):
    save_part = runs.save_part

    def full(part, path):
        if path.name == "vae":
            raise OSError(28, "No space left on device")
        save_part(part, path)

    monkeypatch.setattr(runs, "save_part", full)
    with pytest.raises(Exception, match="out: cannot be written: No space left on device"):
        export_run(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())

    shutil.copytree(folder, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(Exception, match="No space left on device"):
        export_run(run, tmp_path / "out", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


# that of two text encoders has all that the other has
@pytest.fixture(scope="module", params=thinned(["sd1", "sdxl"], ["sdxl"]))
def inverted(request, tmp_path_factory):
    """A torch pipeline, a run of two new words on it, and what is exported of that."""
    root = tmp_path_factory.mktemp(request.param)
    (root / "words").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline(request.param, root / "words").save_pretrained(root / "source")
    # what lies beside a pipeline's parts on the hub is none of it
    (root / "source" / "v1-5-pruned.ckpt").write_text("large")
    words = [{"placeholder_token": word, "initializer_token": "ab"} for word in VECTORS]
    task = {
        "name": "textual_inversion", "pipeline": str(root / "source"), "backend": "native", "words": words,
        "vectors": 2, "templates": ["{}"], "sampler": SAMPLER, "eval_draws": 1, "pooling": "eos",
    }  # fmt: skip
    data = {"name": "digit_concepts", "digits": [7, 3], "pictures": 3, "image_size": 16, "batch_size": 8}
    raw = small_config(task=task, optimizer={"name": "adamw", "learning_rate": 1e-2})
    raw |= {"data": data, "train": {"steps": 1, "eval_every": 1, "checkpoint_every": 1}}
    experiment.run(parse(raw, "small"), root / "run", readers=READERS)
    export_run(root / "run", root / "exported")
    return root


def learned(root, encoder):
    """The rows of the words' files, in order."""
    end = "_2" * (encoder == "text_encoder_2")
    return np.concatenate([load_file(root / "run" / f"learned_embeds-{w[1]}{end}.safetensors")[w] for w in VECTORS])


def encoders_of(pipe):
    return [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]


def test_exported_words_are_tokens_of_torchs_pipeline_with_the_learned_rows_bit_for_bit(inverted):
    theirs, before = opened(inverted / "exported"), opened(inverted / "source")
    for name in encoders_of(theirs):
        words = getattr(theirs, name.replace("text_encoder", "tokenizer"))
        known = getattr(before, name.replace("text_encoder", "tokenizer"))
        names = ["<x>", "<x>_1", "<y>", "<y>_1"]
        numbers = words.convert_tokens_to_ids(names)
        assert numbers == list(range(END + 1, END + 5))
        table = getattr(theirs, name).get_input_embeddings().weight.detach().numpy()
        source = getattr(before, name).get_input_embeddings().weight.detach().numpy()
        assert table[numbers].tobytes() == learned(inverted, name).tobytes()
        assert table[: END + 1].tobytes() == source.tobytes()
        assert getattr(theirs, name).config.vocab_size == len(table) == END + 5
        for text in ["a ab", "Größe 12!", "<|endoftext|> a", "<z>"]:
            assert words(text).input_ids == known(text).input_ids


def test_a_prompt_with_the_words_becomes_the_ids_of_training(inverted):
    theirs, config = opened(inverted / "exported"), load(inverted / "run" / "config.yaml")
    run = restored(inverted / "run", config, None, READERS)
    for prompt in ["a <x>", "<y>, <x>", "b <y>c"]:
        read = run.task.read_prompt(prompt)
        for i, name in enumerate(encoders_of(theirs)):
            words = getattr(theirs, name.replace("text_encoder", "tokenizer"))
            text = theirs.maybe_convert_prompt(prompt, words)
            found = words(text, padding="max_length", truncation=True, max_length=TOKENS).input_ids
            assert found == read[f"input_ids_{i}"].tolist()


def test_all_that_was_frozen_is_the_pipelines_own_files(inverted):
    source, exported = inverted / "source", inverted / "exported"
    files = {path.relative_to(exported) for path in exported.rglob("*") if path.is_file()}
    changed = {path for path in files if path.parts[0].startswith(("text_encoder", "tokenizer"))}
    assert {path.parts[0] for path in files - changed} == {"model_index.json", "scheduler", "unet", "vae"}
    for path in files - changed:
        assert (exported / path).read_bytes() == (source / path).read_bytes(), path
    for part in ("unet", "vae"):
        weights = f"{part}/diffusion_pytorch_model.safetensors"
        assert (exported / weights).samefile(source / weights)


def test_text_encoders_pool_in_torch_where_they_did_in_training(inverted):
    theirs, config = opened(inverted / "exported"), load(inverted / "run" / "config.yaml")
    assert config.task.pooling == "eos"
    run = restored(inverted / "run", config, None, READERS)
    for i, name in enumerate(encoders_of(theirs)):
        assert getattr(theirs, name).config.eos_token_id == END
        ids = run.task.read_prompt("a <x> b")[f"input_ids_{i}"][None]
        state = run.variables.frozen["text"][i]
        part = load_pipeline(inverted / "source").text_encoders[i]
        rows = run.variables.params["rows"][i].reshape(4, -1)
        encoder = from_config(part.config, eos_token_id=END)
        pooled = exact(lambda v, t, r, e=encoder: e.apply(v, t, r).pooled, state, ids, rows)
        with torch.no_grad():
            found = getattr(theirs, name)(torch.from_numpy(ids).long())
        expected = found.text_embeds if "text_embeds" in found else found.pooler_output
        np.testing.assert_allclose(pooled, expected.numpy(), atol=1e-5)


def test_the_pipeline_that_the_run_was_made_with_is_kept(inverted, tmp_path, monkeypatch):
    source = inverted / "source"
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="is the pipeline that the run was made with; choose another folder"):
        export_run(inverted / "run", source, force=True)
    export_run(inverted / "run", inverted / "exported", force=True)
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before

    def full(part, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "save_part", full)
    with pytest.raises(Exception, match="No space left on device"):
        export_run(inverted / "run", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_part_of_a_variant_is_linked_under_plain_names(tmp_path):
    source, part = tmp_path / "source", tmp_path / "part"
    unet(**UNETS["sd1"]).save_pretrained(source, variant="fp16", max_shard_size="200KB")
    (source / "diffusion_pytorch_model.safetensors").write_bytes(b"of another variant")
    runs._link_part(source, part, "fp16")
    names = {path.name for path in part.iterdir()}
    assert not [name for name in names if "fp16" in name]
    assert len([name for name in names if "-of-" in name]) > 1
    expected, found = (flatten(load_part(*given).variables) for given in ((source, "fp16"), (part,)))
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
    with torch.no_grad():
        x, theirs = torch.zeros(1, 4, 8, 8), diffusers.UNet2DConditionModel.from_pretrained(part)
        assert theirs(x, 3, torch.zeros(1, 2, 16)).sample.isfinite().all()
    runs._link_part(source, tmp_path / "as it is", None)
    assert {path.name for path in (tmp_path / "as it is").iterdir()} == {path.name for path in source.iterdir()}


def test_a_run_on_a_variant_and_a_revision_exports_what_opens_without_asking_for_either(tmp_path, monkeypatch):
    (tmp_path / "words").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline("sd1", tmp_path / "words").save_pretrained(tmp_path / "source", variant="fp16")
    asked = []

    def folder(*of):
        asked.append(of)
        return tmp_path / "source"

    monkeypatch.setattr(runs, "pipeline_folder", folder)
    monkeypatch.setattr(starts, "pipeline_folder", folder)
    words = [{"placeholder_token": "<x>", "initializer_token": "ab"}]
    task = {
        "name": "textual_inversion", "pipeline": "owner/name", "variant": "fp16", "revision": "abc", "words": words,
        "backend": "native", "vectors": 2, "templates": ["{}"], "eval_draws": 1, "validation_images": 0,
    }  # fmt: skip
    data = {"name": "digit_concepts", "digits": [7], "pictures": 3, "image_size": 16, "batch_size": 8}
    raw = small_config(task=task, optimizer={"name": "adamw", "learning_rate": 1e-2})
    raw |= {"data": data, "train": {"steps": 1, "eval_every": 1, "checkpoint_every": 1}}
    experiment.run(parse(raw, "small"), tmp_path / "run", readers=READERS)
    export_run(tmp_path / "run", tmp_path / "out")
    assert set(asked) == {("owner/name", "fp16", "abc")}
    assert load_pipeline(tmp_path / "out").text_encoders[0].config["vocab_size"] == VOCABULARY + 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert opened(tmp_path / "out").tokenizer.convert_tokens_to_ids("<x>") == VOCABULARY


def test_a_disk_without_links_gets_copies(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    runs._linked(str(tmp_path / "link"), str(tmp_path / "b"))
    assert (tmp_path / "b").samefile(tmp_path / "a")
    assert not (tmp_path / "b").is_symlink()

    def refuse(source, destination):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(runs.os, "link", refuse)
    runs._linked(str(tmp_path / "link"), str(tmp_path / "c"))
    assert (tmp_path / "c").read_bytes() == b"weights"
    assert not (tmp_path / "c").samefile(tmp_path / "a")


def test_a_pipeline_of_flax_classes_is_refused(inverted, tmp_path):
    source, work = tmp_path / "source", tmp_path / "run"
    shutil.copytree(inverted / "source", source)
    index = json.loads((source / "model_index.json").read_text())
    (source / "model_index.json").write_text(json.dumps(index | {"_class_name": f"Flax{index['_class_name']}"}))
    shutil.copytree(inverted / "run", work)
    config = (work / "config.yaml").read_text()
    (work / "config.yaml").write_text(config.replace(str(inverted / "source"), str(source)))
    with pytest.raises(ConfigError, match="is a FlaxStableDiffusion.*, which torch does not open"):
        export_run(work, tmp_path / "out")
