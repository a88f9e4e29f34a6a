"""What is written of masked-image models, in diffusers and transformers; Google's checkpoints; aMUSEd's pipelines."""

import json
import re
import warnings

import google_vqgan
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import serialization
from masked_samples import MODULES, VQ, contents, random_variables, same, written
from twins import QUICK, relative

from interop.files import FileError
from interop.masked.folders import load_folder, save_folder
from interop.masked.layouts import config_of
from interop.masked.pipeline import load_pipeline, save_pipeline
from jaxkit.errors import ConfigError
from jaxkit.models import tokenizers
from jaxkit.models.masked.bert import maskgit_bert_tiny
from jaxkit.models.masked.uvit import uvit_tiny

with warnings.catch_warnings():
    # what diffusers and transformers import is partly deprecated
    warnings.simplefilter("ignore")
    from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
    from transformers import BertForMaskedLM, CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

# diffusers and transformers tell of names they will drop; what is loaded is compared by its numbers
pytestmark = [pytest.mark.level(1), pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")]


def loaded(cls, path):
    """A network of diffusers or transformers, from a folder that has every weight it wants and no other."""
    net, info = cls.from_pretrained(path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return net.eval()


def same_network(net, path):
    """Whether a network and the one in a folder have the same weights, which identical numbers follow from."""
    fresh = loaded(type(net), path)
    states = net.state_dict(), fresh.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(leaf, states[1][key]) for key, leaf in states[0].items())
    return fresh


def through_ours(net, folder, layout):
    """What diffusers saved, read here and written again."""
    net.save_pretrained(folder / "theirs")
    module, variables = load_folder(folder / "theirs")
    save_folder(module, variables, folder / "ours", layout)
    return folder / "ours"


@pytest.mark.parametrize("name", ["uvit", "uvit of half size"])
def test_an_exported_uvit_loads_in_diffusers_to_identical_numbers(name, tmp_path):
    torch.manual_seed(0)
    config = config_of(MODULES[name], "diffusers", 4)
    net = UVit2DModel.from_config(config)
    net.mlm_layer.conv1.weight.data.normal_()
    path = through_ours(net.eval(), tmp_path, "diffusers")
    fresh = same_network(net, path)
    rng = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=rng) for shape in ((2, 5, 12), (2, 10), (2, 5))]
    tokens = torch.randint(72, (2, 4, 6), generator=rng)
    with torch.no_grad():
        expected = net(tokens, *given)
        assert expected.std() > 0.01
        assert torch.equal(fresh(tokens, *given), expected)


@pytest.mark.parametrize("name", ["vqgan", "movq"])
def test_an_exported_tokenizer_loads_in_diffusers_to_identical_numbers(name, tmp_path):
    torch.manual_seed(0)
    net = VQModel.from_config(config_of(MODULES[name], "diffusers")).eval()
    fresh = same_network(net, through_ours(net, tmp_path, "diffusers"))
    images = torch.rand(2, 3, 8, 12)
    with torch.no_grad():
        latents = net.encode(images).latents
        assert torch.equal(fresh.encode(images).latents, latents)
        assert torch.equal(fresh.decode(latents).sample, net.decode(latents).sample)


def test_an_exported_paella_loads_in_diffusers_with_its_count_of_batches(tmp_path):
    net = PaellaVQModel.from_config(config_of(MODULES["paella_vq"], "diffusers"))
    same_network(net.eval(), through_ours(net, tmp_path, "diffusers"))


def test_googles_transformer_loads_in_transformers_from_the_folder_written_of_it(tmp_path):
    path, _ = written(tmp_path, "maskgit_bert", "transformers")
    net = loaded(BertForMaskedLM, path)
    module, variables = load_folder(path)
    tokens, labels = np.random.default_rng(1).integers(0, 71, (2, 3, 5)), np.array([0, 4])
    sequence = np.concatenate([module.codebook_size + labels[:, None], tokens.reshape(2, -1)], axis=1)
    with torch.no_grad():
        expected = net(input_ids=torch.from_numpy(sequence)).logits[:, 1:].unflatten(1, (3, 5)).numpy()
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(module.apply, compiler_options=QUICK)(variables, jnp.asarray(tokens), jnp.asarray(labels))
    # float32 sums of some dozens in another order
    assert relative(logits, expected) <= 1e-5


def test_a_checkpoint_of_googles_transformer_is_read_with_imagenets_codes(tmp_path):
    module = maskgit_bert_tiny(vocab_size=1031, codebook_size=1024, type_vocab_size=1)
    variables = random_variables(module, "google")
    save_folder(module, variables, tmp_path / "checkpoint.msgpack", "google")
    found, read = load_folder(tmp_path / "checkpoint.msgpack")
    assert found == module
    same(read, variables)
    tree = serialization.msgpack_restore((tmp_path / "checkpoint.msgpack").read_bytes())
    assert tree["params"]["Embed_0"].keys() == {"word_embeddings", "position_embeddings", "embeddings_ln"}


def test_a_config_beside_googles_transformer_says_how_many_codes_it_has(tmp_path):
    path, variables = written(tmp_path, "maskgit_bert", "google")
    with pytest.raises(ConfigError, match="71 tokens, fewer than ImageNet's 1024 codes; say in a config.json"):
        load_folder(path)
    (tmp_path / "config.json").write_text(json.dumps(config_of(MODULES["maskgit_bert"], "google")))
    module, read = load_folder(path)
    assert module == MODULES["maskgit_bert"]
    same(read, variables)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_checkpoint_of_googles_tokenizer_is_read_without_a_config_and_written_as_it_was(wrapped, tmp_path):
    theirs = google_vqgan.VQVAE((64, 128, 64), 2, 64, 4, 64)
    tree = jax.eval_shape(theirs.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)
    path = tmp_path / "checkpoint.msgpack"
    path.write_bytes(serialization.msgpack_serialize(tree if wrapped else tree["params"]))
    module, variables = load_folder(path)
    fields = {"hidden_channels": 64, "channel_mult": (1, 2, 1), "num_res_blocks": 2}
    assert module == tokenizers.build("maskgit_vqgan", **fields, z_channels=4, num_embeddings=64)
    save_folder(module, variables, tmp_path / "again.msgpack", "google")
    same(serialization.msgpack_restore((tmp_path / "again.msgpack").read_bytes()), tree)


@pytest.mark.parametrize("wide", [True, False])
def test_a_checkpoint_of_google_that_is_not_whole_is_refused(wide, tmp_path):
    arrays = {
        "quantizer": {"codebook": np.zeros((64, 4))},
        "encoder": {"ResBlock_0": {"Conv_0": {"kernel": np.ones(2)}}},
    }
    if wide:
        arrays["encoder"]["Conv_0"] = {"kernel": np.zeros((3, 3, 3, 0))}
        arrays["decoder"] = {f"Conv_{i}": {"kernel": np.zeros(2)} for i in range(2)}
    (tmp_path / "net.msgpack").write_bytes(serialization.msgpack_serialize(arrays))
    with pytest.raises(FileError, match="arrays are missing that tell the sizes of Google's MaskGIT"):
        load_folder(tmp_path / "net.msgpack")


def test_a_pipeline_comes_back_and_samples_in_diffusers(tmp_path):
    source = tmp_path / "source"
    tiny_pipeline(tmp_path).save_pretrained(source)
    parts = load_pipeline(source)
    for part, (module, variables) in parts.items():
        parts[part] = module, jax.tree.map(lambda leaf: leaf * 1.5, variables)
    save_pipeline(parts["transformer"], parts["vqvae"], tmp_path / "ours", source, sample_size=4)
    for part, (_, variables) in load_pipeline(tmp_path / "ours").items():
        same(variables, parts[part][1])
    given = {path: raw for path, raw in contents(source).items() if path.parts[0] not in parts}
    assert given.items() <= contents(tmp_path / "ours").items()
    pipe = AmusedPipeline.from_pretrained(tmp_path / "ours")
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipe("ab", num_inference_steps=2, generator=generator, output_type="np").images
    assert images.shape == (1, 8, 8, 3)
    assert np.isfinite(images).all()
    assert images.std() > 0.01
    with pytest.raises(ConfigError, match="is a pipeline's folder: name its transformer or vqvae"):
        load_folder(source)


def tiny_pipeline(folder):
    torch.manual_seed(0)
    vocabulary = ["a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 6}
    text = CLIPTextConfig(vocab_size=7, projection_dim=10, max_position_embeddings=8, **sizes, **ends)
    transformer = UVit2DModel.from_config(config_of(MODULES["uvit"], "diffusers", 4))
    transformer.mlm_layer.conv1.weight.data.normal_()
    return AmusedPipeline(
        vqvae=VQModel.from_config(config_of(tokenizers.build("vqgan", **VQ, quantized_embed_dim=4), "diffusers")),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModelWithProjection(text),
        transformer=transformer,
        scheduler=AmusedScheduler(mask_token_id=71),
    )


def test_parts_of_a_pipeline_that_do_not_go_together_are_refused(tmp_path):
    source = tmp_path / "source"
    tiny_pipeline(tmp_path).save_pretrained(source)
    wide, small = uvit_tiny(vocab_size=80, cond_embed_dim=11), tokenizers.build("vqgan", **VQ | {"num_embeddings": 32})
    message = (
        "codebook_size 64 is not num_embeddings of the vqvae, 32; quantized_embed_dim 256 is not its z_channels, 4; "
        "mask_token_id 79 is not that of the scheduler, 71; "
        "cond_embed_dim 11 is not projection_dim of the texts, 10"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        save_pipeline((wide, random_variables(wide)), (small, random_variables(small)), tmp_path / "ours", source)
    assert not (tmp_path / "ours").exists()
