"""Encoding before training: what the shards hold is what encoding in training gives, wherever it was stopped."""

import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import script, small_config

from jaxkit import pre_encode
from jaxkit.config import parse
from jaxkit.data import DataError
from jaxkit.data.augment import make_augment
from jaxkit.data.feed import open_feed
from jaxkit.data.sources import open_source
from jaxkit.errors import ConfigError
from jaxkit.schema.data import Encoded
from jaxkit.schema.maskgit import Text
from jaxkit.schema.text import TextEncoder
from jaxkit.schema.tokenizer import TokenizerSource
from jaxkit.tasks.inputs import encoding
from jaxkit.tasks.task import Context

pytestmark = pytest.mark.level(1)

TOKENIZER = {
    "name": "vqgan", "resolution": 8, "num_channels": 1, "hidden_channels": 4, "channel_mult": [1, 1],
    "num_res_blocks": 1, "no_attn_mid_block": True, "z_channels": 4, "num_embeddings": 16, "quantized_embed_dim": 4,
    "norm_num_groups": 2,
}  # fmt: skip
MODEL = {
    "name": "maskgit_transformer", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 24,
}  # fmt: skip
LENGTH = 32
CAPTIONS = {"max_length": LENGTH}


def drawn(source, like, partly=False):
    """Random weights in the place of those of a run."""
    leaves, tree = jax.tree.flatten(like)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype) for leaf in leaves])


@pytest.fixture(autouse=True)
def weights(monkeypatch):
    monkeypatch.setattr(pre_encode, "load_weights", drawn)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP whose words are the bytes of this project's own tokenizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers

    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=258, hidden_size=8, intermediate_size=8, projection_dim=6, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder)
    return str(folder)


def config(text=None, **changes):
    raw = small_config(
        task={
            "name": "maskgit",
            "tokenizer": {"workdir": "somewhere", "pinned": "x", "model": TOKENIZER},
            "model": MODEL,
        },
        optimizer={"name": "adam", "learning_rate": 1e-3},
        **changes,
    )
    raw["data"] = {"name": "digits", "batch_size": 32, "eval_batch_size": 200, "captions": CAPTIONS} | raw["data"]
    raw["data"].pop("augment")
    if text is not None:
        raw["task"]["condition"] = text.model_dump()
    return parse(raw, "test")


def encoded(path):
    return open_source(Encoded(name="encoded", batch_size=32, path=str(path)))


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory, clip):
    """A folder with all digits and their captions encoded, in shards of 300."""
    folder = tmp_path_factory.mktemp("encoded")
    shutil.rmtree(folder)
    text = Text(name="text", encoder=TextEncoder(kind="clip_projection", folder=clip, penultimate=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pre_encode, "load_weights", drawn)
        assert pre_encode.pre_encode(config(text), folder, shard_size=300) == 6
    return folder, text


def test_an_example_is_what_the_encoders_make_of_it_one_by_one(written):
    folder, text = written
    source, made = open_source(config().data), encoded(folder)
    context = Context(num_classes=10, load_weights=drawn, image_shape=(8, 8, 1))
    stage = encoding(TokenizerSource(workdir="somewhere", model=TOKENIZER), text.encoder, context)
    assert (len(made.train), len(made.test)) == (len(source.train), len(source.test))
    assert (made.image_shape, made.num_classes) == ((8, 8, 1), 10)
    places = [0, 299, 300, 1197]
    batch = {name: jnp.stack([source.train[i][name] for i in places]) for name in source.train[0]}
    batch["image"] = batch["image"] / 255
    frozen = stage.init(jax.random.PRNGKey(0), batch)
    expected = stage.encode(frozen, batch)
    for row, place in enumerate(places):
        example = made.train[place]
        assert set(example) == {"tokens", "label", "encoder_hidden_states", "cond_embeds", "micro_conds"}
        np.testing.assert_array_equal(example["tokens"], expected["tokens"][row])
        np.testing.assert_array_equal(example["micro_conds"], expected["micro_conds"][row])
        assert example["label"] == source.train[place]["label"]
        # another size of batch, other sums
        np.testing.assert_allclose(example["encoder_hidden_states"], expected["encoder_hidden_states"][row], atol=1e-5)
        np.testing.assert_allclose(example["cond_embeds"], expected["cond_embeds"][row], atol=1e-5)
    assert example["tokens"].shape == (4, 4)
    assert example["encoder_hidden_states"].shape == (LENGTH, 8)
    assert len({made.train[i]["tokens"].tobytes() for i in range(50)}) > 10


def test_the_empty_caption_is_there_and_no_other(written):
    folder, text = written
    made, source = encoded(folder), open_source(config().data)
    context = Context(num_classes=10, load_weights=drawn, image_shape=(8, 8, 1))
    stage = encoding(TokenizerSource(workdir="somewhere", model=TOKENIZER), text.encoder, context)
    empty = {name: jnp.asarray(array)[None] for name, array in source.captions("").items()}
    frozen = stage.init(jax.random.PRNGKey(0), {**empty, "image": jnp.zeros((1, 8, 8, 1))})
    expected = stage.encode(frozen, empty)
    assert set(made.captions("")) == set(expected) == {"encoder_hidden_states", "cond_embeds"}
    for name, array in made.captions("").items():
        np.testing.assert_allclose(array, expected[name][0], atol=1e-5)
    with pytest.raises(DataError, match="'a seven' cannot be encoded"):
        made.captions("a seven")


def test_one_that_was_stopped_and_several_processes_arrive_at_the_same_bytes(written, tmp_path):
    folder, text = written
    whole = everything(folder)
    stopped = tmp_path / "stopped"
    shutil.copytree(folder, stopped)
    shutil.rmtree(stopped / "train" / "00002")
    shutil.rmtree(stopped / "test")
    (stopped / "test" / "00000.1.part").mkdir(parents=True)
    kept = (stopped / "train" / "00000" / "tokens.npy").stat().st_mtime_ns
    assert pre_encode.pre_encode(config(text), stopped, shard_size=300) == 3
    assert everything(stopped) == whole
    assert (stopped / "train" / "00000" / "tokens.npy").stat().st_mtime_ns == kept
    apart = tmp_path / "apart"
    written_by = [pre_encode.pre_encode(config(text), apart, shard_size=300, part=(i, 2)) for i in range(2)]
    assert written_by == [3, 3]
    assert everything(apart) == whole


def test_half_precision_is_of_states_and_reads_as_float32(written, tmp_path):
    folder, text = written
    half = tmp_path / "half"
    pre_encode.pre_encode(config(text), half, shard_size=2000, half=True)
    one, other = encoded(half).train[5], encoded(folder).train[5]
    for name, array in one.items():
        stored = np.load(half / "train" / "00000" / f"{name}.npy", mmap_mode="r")
        assert array.dtype == other[name].dtype
        if name in ("encoder_hidden_states", "cond_embeds"):
            assert stored.dtype == np.float16
            # half a unit in the last place of 11 bits
            np.testing.assert_allclose(array, other[name], rtol=2**-11, atol=1e-7)
        else:
            np.testing.assert_array_equal(array, other[name])


def test_batches_of_tokens_pass_a_feed_untouched(written):
    folder, _ = written
    data = Encoded(name="encoded", batch_size=32, path=str(folder))
    feed = open_feed(open_source(data), data, eval_batch_size=64, seed=0, process_index=0, process_count=1)
    batch = feed.first()
    assert batch["tokens"].shape == (32, 4, 4)
    keys = jax.random.split(jax.random.PRNGKey(0), 32)
    for same in (feed.preprocess(batch), make_augment(data, (8, 8, 1))(keys, batch)):
        assert same.keys() == batch.keys()
        np.testing.assert_array_equal(same["tokens"], batch["tokens"])


def test_the_encoders_are_left_out_of_memory_where_all_is_encoded(written):
    folder, text = written
    context = Context(num_classes=10, load_weights=drawn, image_shape=(8, 8, 1))
    source = TokenizerSource(workdir="somewhere", model=TOKENIZER)
    # its folder is not even there
    stage = encoding(source, text.encoder.model_copy(update={"folder": "gone"}), context)
    batch = {name: jnp.asarray(array)[None] for name, array in encoded(folder).train[0].items()}
    frozen = stage.init(jax.random.PRNGKey(0), batch)
    assert set(frozen) == {"tokenizer"}
    assert not [name for name in frozen["tokenizer"]["params"] if name.startswith("encoder")]
    assert [name for name in frozen["tokenizer"]["params"] if name.startswith("decoder")]
    assert stage.encode(frozen, batch).keys() == batch.keys()
    with pytest.raises(ConfigError, match="this run reads tokens, and has only what decodes them"):
        stage.encode(frozen, {"image": jnp.zeros((1, 8, 8, 1))})
    with pytest.raises(ConfigError, match=r"tokens \(2, 4\), but task.tokenizer makes \(4, 4\)"):
        stage.init(jax.random.PRNGKey(0), {"tokens": batch["tokens"][:, :2]})


def test_without_an_encoder_ids_are_kept_and_the_mask_with_them(tmp_path):
    pre_encode.pre_encode(config(), tmp_path / "out", shard_size=2000)
    source, made = open_source(config().data), encoded(tmp_path / "out")
    for name in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(made.test[7][name], source.test[7][name])
        np.testing.assert_array_equal(made.captions("")[name], source.captions("")[name])
    assert made.captions.vocabulary == 258


def test_images_without_captions_are_encoded_too(tmp_path):
    pre_encode.pre_encode(config(data__captions=None), tmp_path / "out", shard_size=2000)
    made = encoded(tmp_path / "out")
    assert set(made.train[0]) == {"tokens", "label"}
    assert made.captions is None


def test_a_folder_of_other_encodings_is_not_mixed_with_these(written, tmp_path):
    folder, text = written
    with pytest.raises(ConfigError, match="shard_size was 300, is 200"):
        pre_encode.pre_encode(config(text), folder, shard_size=200)
    with pytest.raises(ConfigError, match="encoders was .*, is "):
        pre_encode.pre_encode(config(), folder, shard_size=300)
    (tmp_path / "note").touch()
    with pytest.raises(ConfigError, match="holds other files"):
        pre_encode.pre_encode(config(text), tmp_path)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"data__name": "encoded"}, "data.name"),
        ({"data__augment": {"flip": 0.5}}, "data.augment"),
        ({"task__soft_code": {"temperature": 1.0}}, "task.soft_code"),
    ],
)
def test_what_cannot_be_encoded_before_training_is_refused(change, key, tmp_path):
    made = config()
    section, name = next(iter(change)).split("__")
    if name == "name":
        made = made.model_copy(update={"data": Encoded(name="encoded", batch_size=4, path="x")})
    else:
        part = getattr(made, section).model_copy(update={name: next(iter(change.values()))})
        made = made.model_copy(update={section: part})
    with pytest.raises(ConfigError, match=key):
        pre_encode.pre_encode(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_incomplete_or_damaged_is_refused(written, tmp_path):
    folder, _ = written
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / "train" / "00001" / "tokens.npy"
    path.write_bytes(path.read_bytes()[:-10])
    source = encoded(copy)
    assert source.train[299]["tokens"].shape == (4, 4)
    with pytest.raises(DataError, match=r"tokens.npy is damaged"):
        source.train[300]
    shutil.rmtree(path.parent)
    with pytest.raises(DataError, match="1 of 4 shards of train are missing, the first is 00001"):
        encoded(copy)
    (copy / "index.json").unlink()
    with pytest.raises(DataError, match="holds nothing that"):
        encoded(copy)


def test_another_folder_has_another_fingerprint(written, tmp_path):
    folder, _ = written
    assert encoded(folder).fingerprint == encoded(folder).fingerprint
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    index = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps(index | {"encoders": "others"}))
    assert encoded(copy).fingerprint != encoded(folder).fingerprint


def test_the_script_says_what_is_wrong_with_its_arguments(config_file):
    finished = script("pre_encode.py", "--config", str(config_file()), "--out", "nowhere", "--part", "2/2", check=False)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "--part 2/2: write I/N, from 0/N to N-1/N\n"
    finished = script("pre_encode.py", "--config", str(config_file()), "--out", "nowhere", check=False)
    assert finished.returncode == 2
    assert "classify has nothing to encode before training" in finished.stderr
