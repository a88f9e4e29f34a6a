"""LoRA files of diffusers' aMUSEd: in and out, against torch; what runs with adapters leave, as whole networks."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from masked_samples import MODULES, random_variables, same
from twins import QUICK, relative

from interop.masked.adapters import load_lora, save_lora
from interop.masked.folders import save_folder
from interop.problems import WeightsError
from jaxkit.errors import ConfigError
from jaxkit.nn.adapters import TARGETS, lora_applied, lora_init, lora_merge

with warnings.catch_warnings():
    # what diffusers imports is partly deprecated
    warnings.simplefilter("ignore")
    from diffusers import UVit2DModel
    from diffusers.utils.peft_utils import get_peft_kwargs

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
MODULE = MODULES["uvit"]
TOKENS = np.random.default_rng(0).integers(0, 72, (2, 4, 4))
TEXT = [np.random.default_rng(1).normal(size=shape).astype(np.float32) for shape in ((2, 5, 12), (2, 10), (2, 5))]


@pytest.fixture(scope="module")
def variables():
    return jax.tree.map(lambda leaf: 0.2 * leaf, random_variables(MODULE))


def lora(variables, *targets, rank=3):
    """Adapters as after some training."""
    adapters = lora_init(jax.random.key(0), variables["params"], [TARGETS[target] for target in targets], rank)
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), adapters)


def torch_network(variables, folder):
    save_folder(MODULE, variables, folder, "diffusers", sample_size=4)
    return UVit2DModel.from_pretrained(folder).eval()


def torch_logits(net):
    with torch.no_grad():
        logits = net(torch.from_numpy(TOKENS), *map(torch.from_numpy, TEXT))
    return logits.permute(0, 2, 3, 1).numpy()


def logits_of(module, variables):
    with jax.default_matmul_precision("highest"):
        given = jnp.asarray(TOKENS), *map(jnp.asarray, TEXT)
        return jax.jit(lambda v: module.apply(v, *given), compiler_options=QUICK)(variables)


def add(net, name, down, up, scale=1.0):
    """What peft does to a layer, by hand."""
    net.get_submodule(name).weight.data += scale * torch.from_numpy(up @ down)


def test_a_lora_file_added_to_the_weights_of_diffusers_gives_the_logits_trained_here(variables, tmp_path):
    adapters = lora(variables, "attention", "feed_forward")
    save_lora(MODULE, adapters, 1.5, tmp_path / "pytorch_lora_weights.safetensors")
    saved = safetensors.numpy.load_file(tmp_path / "pytorch_lora_weights.safetensors")

    net = torch_network(variables, tmp_path / "net")
    before = torch_logits(net)
    names = {key.removeprefix("transformer.").partition(".lora_")[0] for key in saved}
    for name in names:
        add(net, name, *(saved[f"transformer.{name}.lora_{side}.weight"] for side in "AB"))
    expected = torch_logits(net)
    assert relative(before, expected) > 0.1
    with lora_applied(adapters, 1.5):
        # float32, the products in another order
        assert relative(logits_of(MODULE, variables), expected) <= 1e-5

    # four projections of eight attentions; wi_0 and wi_1 are one layer there
    assert len(names) == 4 * 8 + 2 * 2
    # what diffusers makes of a file that does not say alpha: a scale of 1 throughout
    ranks = {f"^{key}": value.shape[1] for key, value in saved.items() if "lora_B" in key}
    said = get_peft_kwargs(ranks, None, saved)
    assert (said["r"], said["lora_alpha"], said["rank_pattern"], said["alpha_pattern"]) == (6, 6, {}, {})


def test_attentions_adapters_come_back_from_a_file_bit_for_bit(variables, tmp_path):
    adapters = lora(variables, "attention")
    save_lora(MODULE, adapters, 1.0, tmp_path / "lora.safetensors")
    same(load_lora(tmp_path / "lora.safetensors", MODULE), adapters)
    with pytest.raises(ConfigError, match=r"lora.safetensors"):
        save_lora(MODULE, adapters, 1.0, tmp_path / "lora.safetensors")
    save_lora(MODULE, adapters, 2.0, tmp_path / "lora.safetensors", force=True)


def peft_file(path, net, names, ranks, alpha=None, metadata=None, **extra):
    """A file as peft and diffusers write it, and its matrices by layer."""
    rng, pairs = np.random.default_rng(3), {}
    for name, rank in zip(names, ranks, strict=True):
        outputs, inputs = net.get_submodule(name).weight.shape
        shapes = (rank, inputs), (outputs, rank)
        pairs[name] = [rng.normal(0, 0.3, shape).astype(np.float32) for shape in shapes]
    arrays = {}
    for name, (down, up) in pairs.items():
        arrays |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    said = {"r": 2, "lora_alpha": alpha, **(metadata or {})}
    text = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in said.items()})}
    safetensors.numpy.save_file(arrays | extra, path, text if alpha is not None else None)
    return pairs


NAMES = ("transformer_layers.0.ff.net.0.proj", "down_block.attention_blocks.0.attn1.to_out.0", "encoder_proj")


@pytest.mark.parametrize(("alpha", "ranks"), [(None, (2, 2, 2)), (8, (2, 4, 1))])
def test_a_lora_file_of_peft_merged_here_gives_the_logits_of_diffusers(alpha, ranks, variables, tmp_path):
    net = torch_network(variables, tmp_path / "net")
    pairs = peft_file(tmp_path / "lora.safetensors", net, NAMES, ranks, alpha)
    for name, (down, up) in pairs.items():
        add(net, name, down, up, 1 if alpha is None else alpha / len(down))
    adapters = load_lora(tmp_path / "lora.safetensors", MODULE)
    merged = {"params": lora_merge(variables["params"], adapters, 1.0)}
    # float32, the products in another order
    assert relative(logits_of(MODULE, merged), torch_logits(net)) <= 1e-5


def test_what_is_no_lora_of_the_network_is_refused_and_named(variables, tmp_path):
    net, path = torch_network(variables, tmp_path / "net"), tmp_path / "lora.safetensors"
    ones = np.ones((2, 2), np.float32)
    for extra, message in (
        ({"text_encoder.q_proj.lora_A.weight": ones}, r"unexpected +text_encoder.q_proj.lora_A.weight"),
        ({"transformer.transformer_layers.1.attn1.to_q.lora_A.weight": ones}, r"missing .*to_q.lora_B.weight"),
        ({f"transformer.encoder_proj.lora_{side}.weight": ones for side in "AB"}, r"\[2, 2\] for \[32, 12\]"),
    ):
        peft_file(path, net, NAMES[:2], (2, 2), **extra)
        with pytest.raises(WeightsError, match=message):
            load_lora(path, MODULE)
    for options, message in (
        ({"ranks": (1, 2, 2)}, r"ranks \[1, 2\], and nothing says what alpha is"),
        ({"ranks": (2, 2, 2), "alpha": 2, "metadata": {"use_rslora": True}}, "has use_rslora, and only scales"),
    ):
        peft_file(path, net, NAMES, **options)
        with pytest.raises(ConfigError, match=message):
            load_lora(path, MODULE)


def test_what_diffusers_has_no_place_for_is_not_written(variables, tmp_path):
    adapters = lora(variables, "query_key_value")
    with pytest.raises(ConfigError, match="LoRA is written as .safetensors"):
        save_lora(MODULE, adapters, 1.0, tmp_path / "lora.bin")
    with pytest.raises(ConfigError, match="MaskGitTransformer has no layout 'diffusers'"):
        save_lora(MODULES["maskgit_transformer of classes"], adapters, 1.0, tmp_path / "lora.safetensors")
    conv = lora_init(jax.random.key(0), variables["params"], ["embed_conv/kernel"], 2)
    with pytest.raises(ConfigError, match="embed_conv/kernel is no matrix of UVit2DModel"):
        save_lora(MODULE, conv, 1.0, tmp_path / "lora.safetensors")
    assert list(tmp_path.iterdir()) == []
