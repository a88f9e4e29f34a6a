import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit.models.text import TextEncoderError, text_encoder

with warnings.catch_warnings():
    # transformers warns of its own deprecations
    warnings.simplefilter("ignore")
    import transformers

LENGTH, VOCABULARY = 9, 60
# Float32, two layers, in another order of summation: the largest difference seen is 1.3e-6.
TOLERANCE = 1e-5


def clip_config(**changes):
    fields = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "projection_dim": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": LENGTH,
        "bos_token_id": 0, "eos_token_id": 59, "pad_token_id": 1,
    }  # fmt: skip
    return transformers.CLIPTextConfig(**(fields | changes))


def t5_config():
    return transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )


TWINS = {
    "clip": lambda: transformers.CLIPTextModel(clip_config()),
    "clip_projection": lambda: transformers.CLIPTextModelWithProjection(clip_config(hidden_act="gelu")),
    "t5": lambda: transformers.T5EncoderModel(t5_config()),
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    with jax.default_matmul_precision("highest"):
        yield


def random(model):
    """The model with weights far from their initial ones, whose norms and biases say nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def saved(model, folder, **options):
    random(model).save_pretrained(folder, **options)
    return model


def read(*arguments, **options):
    apply, variables = text_encoder(*arguments, **options)
    return apply, variables()


def prompts():
    rng = np.random.default_rng(0)
    ids = rng.integers(2, VOCABULARY - 1, (3, LENGTH))
    lengths = np.array([3, LENGTH, 5])
    ids[np.arange(3), lengths - 1] = VOCABULARY - 1
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    return np.where(mask, ids, 1).astype(np.int32), mask


@pytest.mark.parametrize("penultimate", [False, True], ids=["last", "penultimate"])
@pytest.mark.parametrize("masked", [False, True], ids=["padding attended", "padding masked"])
@pytest.mark.parametrize("kind", TWINS)
def test_an_encoder_gives_the_states_of_torch(kind, masked, penultimate, tmp_path):
    model = saved(TWINS[kind](), tmp_path)
    ids, mask = prompts()
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(ids, dtype=torch.long),
            attention_mask=torch.tensor(mask if masked else np.ones_like(mask)),
            output_hidden_states=True,
        )
    apply, variables = read(kind, tmp_path, penultimate=penultimate)
    states, pooled = jax.jit(apply)(variables, ids, mask if masked else None)
    reference = expected.hidden_states[-2] if penultimate else expected.last_hidden_state
    real = mask if masked else np.ones_like(mask)
    difference = np.abs(states - reference.numpy()) * real[..., None]
    assert difference.max() <= TOLERANCE
    assert np.abs(reference.numpy()).max() > 0.1
    if kind == "clip_projection":
        assert np.abs(pooled - expected.text_embeds.numpy()).max() <= TOLERANCE
    else:
        assert pooled is None


def test_the_text_encoder_of_a_whole_model_is_read_from_shards(tmp_path):
    model = transformers.T5ForConditionalGeneration(t5_config())
    saved(model, tmp_path, max_shard_size="12KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    ids, mask = prompts()
    with torch.no_grad():
        reference = model.encoder(torch.tensor(ids, dtype=torch.long), torch.tensor(mask)).last_hidden_state
    apply, variables = read("t5", tmp_path)
    states, _ = apply(variables, jnp.asarray(ids), jnp.asarray(mask))
    assert np.abs((states - reference.numpy()) * mask[..., None]).max() <= TOLERANCE


def test_weights_of_flax_are_read_as_those_of_torch_are(tmp_path):
    from flax.serialization import msgpack_serialize

    saved(TWINS["clip"](), tmp_path)
    _, expected = read("clip", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(jax.tree.map(np.asarray, expected["params"])))
    _, found = read("clip", tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_half_precision_computes_in_it_and_keeps_parameters_in_float32(tmp_path):
    saved(TWINS["clip"](), tmp_path)
    ids, _ = prompts()
    apply, variables = read("clip", tmp_path, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    whole, _ = read("clip", tmp_path)[0](variables, jnp.asarray(ids))
    half, _ = apply(variables, jnp.asarray(ids))
    assert half.dtype == jnp.float32
    # bfloat16 has 8 bits: states of up to 4 differ, but by little
    assert 1e-4 < np.abs(half - whole).max() < 0.2


def test_a_folder_that_is_no_such_encoder_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    with pytest.raises(TextEncoderError, match=r"no text encoder is there"):
        read("clip", tmp_path)
    saved(TWINS["clip"](), tmp_path)
    with pytest.raises(TextEncoderError, match="'clip_text_model', but the encoder asked for is 't5'"):
        read("t5", tmp_path)
    with pytest.raises(TextEncoderError, match="missing: text_projection/weight$"):
        read("clip_projection", tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "text_model.more.bias": np.zeros(2, np.float32)}, path)
    with pytest.raises(TextEncoderError, match="stray: text_model/more/bias$"):
        read("clip", tmp_path)
    save_file({**weights, "text_model.final_layer_norm.bias": np.zeros(2, np.float32)}, path)
    with pytest.raises(TextEncoderError, match=r"final_layer_norm/bias is \[2\], its config.json says \[16\]"):
        read("clip", tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TextEncoderError, match="cannot be read"):
        read("clip", tmp_path)
    path.unlink()
    with pytest.raises(TextEncoderError, match=r"neither model.safetensors nor flax_model.msgpack"):
        read("clip", tmp_path)


def test_longer_captions_than_positions_are_refused(tmp_path):
    saved(TWINS["clip"](), tmp_path)
    apply, variables = read("clip", tmp_path)
    with pytest.raises(TextEncoderError, match=f"takes {LENGTH} tokens, not {LENGTH + 1}"):
        apply(variables, jnp.zeros((1, LENGTH + 1), jnp.int32))


@pytest.mark.parametrize("length", [1, 9, 200])
def test_distances_fall_into_the_buckets_of_transformers(length):
    from transformers.models.t5.modeling_t5 import T5Attention

    from jaxkit.models.t5 import relative_buckets

    distances = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    for buckets, farthest in ((32, 128), (8, 20)):
        expected = T5Attention._relative_position_bucket(distances, True, buckets, farthest)
        np.testing.assert_array_equal(relative_buckets(length, buckets, farthest), expected.numpy())


def test_without_transformers_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TextEncoderError, match=r"pip install 'jaxkit\[diffusion\]'"):
        text_encoder("clip", tmp_path)
