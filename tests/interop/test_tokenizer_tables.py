"""Tokenizers against diffusers and a torch re-derivation, from the same weights: codes, images, gradients, and back."""

import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import google_vqgan
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import thinned
from einops import rearrange
from twins import QUICK, arrays, for_torch, relative

from interop.engine import flatten, to_flax, to_torch
from interop.reference import maskgit_vqgan
from interop.tables.maskgit_vqgan import MASKGIT_VQGAN_MUSE, maskgit_vqgan_google
from interop.tables.paella import PAELLA_DIFFUSERS, PAELLA_MUSE
from interop.tables.vqgan import MOVQ_MUSE, VQGAN_MUSE, vq_diffusers
from jaxkit.models import tokenizers
from jaxkit.models.tokenizers.vq_model import to_vq_model

with warnings.catch_warnings():
    # what diffusers imports is partly deprecated
    warnings.simplefilter("ignore")
    from diffusers import VQModel
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

pytestmark = pytest.mark.level(1)

CODES = 64


class Case(NamedTuple):
    """One network on both sides: how to build it, its table, and how the torch side is called."""

    torch: Callable
    flax: Callable
    table: tuple
    encode: Callable
    """net, images -> latents."""
    decode: Callable
    """net, tokens [b h w] -> images."""


def vq_model(mult, blocks, attended=(), mid=True, kind="vqgan", groups=32, hidden=64):
    def build_flax(**fields):
        return tokenizers.build(
            kind,
            resolution=16,
            hidden_channels=hidden,
            channel_mult=mult,
            num_res_blocks=blocks,
            attn_resolutions=tuple(16 // 2**i for i in attended),
            no_attn_mid_block=not mid,
            z_channels=4,
            quantized_embed_dim=6 if kind == "vqgan" else 4,
            num_embeddings=CODES,
            norm_num_groups=groups,
            **fields,
        )

    def decode(net, tokens):
        shape = (*tokens.shape, net.config.vq_embed_dim)
        return net.decode(tokens.flatten(), force_not_quantize=True, shape=shape).sample

    def build_torch():
        return VQModel(**to_vq_model(build_flax()))

    return Case(build_torch, build_flax, vq_diffusers(len(mult)), lambda net, x: net.encode(x).latents, decode)


def paella(levels, blocks):
    def build_torch():
        return PaellaVQModel(levels=levels, bottleneck_blocks=blocks, embed_dim=32, num_vq_embeddings=CODES).eval()

    def build_flax():
        return tokenizers.build("paella_vq", levels=levels, bottleneck_blocks=blocks, c_hidden=32, codebook_size=CODES)

    def decode(net, tokens):
        z_q = rearrange(net.vquantizer.embedding(tokens), "b h w d -> b d h w")
        return net.decode(z_q, return_dict=False)[0]

    return Case(build_torch, build_flax, PAELLA_DIFFUSERS, lambda net, x: net.encode(x, return_dict=False)[0], decode)


def maskgit(mult, blocks):
    fields = {
        "hidden_channels": 64,
        "channel_mult": mult,
        "num_res_blocks": blocks,
        "z_channels": 4,
        "num_embeddings": CODES,
    }

    def decode(net, tokens):
        return net.decode(rearrange(net.quantize["embedding"](tokens), "b h w d -> b d h w"))

    return Case(
        lambda: maskgit_vqgan.MaskGitVQGAN(**fields),
        lambda: tokenizers.build("maskgit_vqgan", **fields),
        MASKGIT_VQGAN_MUSE,
        lambda net, x: net.encoder(x),
        decode,
    )


CASES = {
    "group norms, attention in the middle": vq_model((1, 2), 1, groups=8, hidden=32),
    "group norms, no attention": vq_model((1, 2, 3), 2, mid=False, groups=16, hidden=32),
    "group norms, attention at two levels": vq_model((1, 1, 2), 2, attended=(0, 2), groups=8, hidden=32),
    "modulated norms, attention in the middle": vq_model((1, 2), 2, kind="movq"),
    "modulated norms, attention at a level": vq_model((1, 2, 1), 1, attended=(1,), mid=False, kind="movq"),
    "paella of one level": paella(1, 2),
    "paella of three levels": paella(3, 1),
    "maskgit, channels change": maskgit((1, 2, 1), 2),
    "maskgit, channels stay": maskgit((1, 1), 1),
}


@pytest.fixture(autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield
    jax.clear_caches()


def pictures(seed=0, height=16, width=24):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(2, height, width, 3)), jnp.float32)


def twins(case):
    """The torch network with random weights, and codes among its latents, so that many are in use; ours; weights."""
    torch.manual_seed(0)
    net = case.torch()
    for key, value in net.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point() and value.ndim == 1:
            value.add_(torch.empty_like(value).uniform_(-0.3, 0.3))
    with torch.no_grad():
        latents = rearrange(case.encode(net, for_torch(pictures(1))), "b d h w -> (b h w) d")
        codebook = next(p for p in net.parameters() if len(p) == CODES and p.shape[1:] == latents.shape[1:])
        picks = latents[torch.randint(len(latents), (CODES,))]
        codebook.copy_(picks + latents.std(0) * torch.randn_like(picks) / 2)
    model = case.flax()
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    return net, codebook, model, like, jax.tree.map(jnp.asarray, to_flax(arrays(net), case.table, like))


def nearest(latents, codebook):
    """Tokens, and which of them no rounding can change: the second code is clearly farther away."""
    z = rearrange(latents, "b d h w -> b h w 1 d").double()
    distances = (z - codebook.double()).square().sum(-1)
    first, second = distances.topk(2, largest=False).values.unbind(-1)
    return distances.argmin(-1), (second - first > 1e-4 * second).numpy()


@pytest.mark.parametrize("name", CASES)
def test_codes_and_images_match_torch_on_a_grid_that_is_no_square(name, record_property):
    case = CASES[name]
    net, codebook, model, _, variables = twins(case)
    images = pictures()
    with torch.no_grad():
        tokens, clear = nearest(case.encode(net, for_torch(images)), codebook)
        expected = rearrange(case.decode(net, tokens).numpy(), "b c h w -> b h w c")

    def run(variables, images, tokens):
        z_q, found = model.apply(variables, images, method="encode")
        decoded = model.apply(variables, tokens, method="decode_code")
        return found, decoded, z_q, model.apply(variables, z_q, method="decode")

    found, decoded, z_q, again = jax.jit(run, compiler_options=QUICK)(variables, images, tokens.numpy())
    assert clear.mean() > 0.95
    assert len(np.unique(tokens)) > 5
    assert np.array_equal(np.asarray(found)[clear], tokens.numpy()[clear])
    # Some tens of float32 roundings (6e-8 each) of sums in another order.
    record_property("float32", relative(decoded, expected))
    assert relative(decoded, expected) <= 1e-5
    if clear.all():
        assert relative(again, expected) <= 1e-5
        codes = codebook.detach().numpy()[tokens]
        assert relative(z_q * getattr(model, "scale_factor", 1), codes) <= 1e-6


DIFFERENTIATED = ("group norms, attention in the middle", "paella of one level")


@pytest.mark.parametrize("name", thinned(CASES, DIFFERENTIATED))
def test_the_gradient_of_encoder_decoder_and_codebook_matches_torch(name, record_property):
    case = CASES[name]
    net, codebook, model, like, variables = twins(case)
    images, rng = pictures(), np.random.default_rng(2)
    latents = case.encode(net, for_torch(images))
    tokens, _ = nearest(latents.detach(), codebook.detach())
    decoded = case.decode(net, tokens)
    weights = [rng.normal(size=x.shape).astype(np.float32) for x in (latents, decoded)]
    sum((x * torch.from_numpy(w)).sum() for x, w in zip((latents, decoded), weights, strict=True)).backward()
    given = {key: p.grad.numpy() for key, p in net.named_parameters()}
    expected = flatten(to_flax(arrays(net) | given, case.table, like)["params"])

    def loss(params):
        now = {**variables, "params": params}
        ours = (
            model.apply(now, images, method="latents"),
            model.apply(now, jnp.asarray(tokens), method="decode_code"),
        )
        return sum((x * rearrange(w, "b c h w -> b h w c")).sum() for x, w in zip(ours, weights, strict=True))

    gradients = flatten(jax.jit(jax.grad(loss), compiler_options=QUICK)(variables["params"]))
    # The biases of keys have no gradient, others before a norm hardly one: roundings of the larger ones they cancel.
    least = 1e-3 * max(abs(leaf).max() for leaf in expected.values())
    error = max(
        float(abs(leaf - expected[path]).max()) / max(abs(expected[path]).max(), least)
        for path, leaf in gradients.items()
    )
    record_property("float32", float(error))
    assert error <= 1e-4


@pytest.mark.parametrize("name", CASES)
def test_an_export_has_torchs_bytes_and_loads_strictly_to_identical_numbers(name):
    case = CASES[name]
    net, codebook, _, _, variables = twins(case)
    state, given = to_torch(variables, case.table), arrays(net)
    assert set(state) == set(given)
    for key, array in state.items():
        assert (array.dtype, array.shape) == (given[key].dtype, given[key].shape)
        assert array.tobytes() == given[key].tobytes()
    fresh = case.torch()
    fresh.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()}, strict=True)
    with torch.no_grad():
        latents = case.encode(net, for_torch(pictures()))
        assert torch.equal(case.encode(fresh, for_torch(pictures())), latents)
        tokens, _ = nearest(latents, codebook)
        assert torch.equal(case.decode(fresh, tokens), case.decode(net, tokens))


def in_open_muse(key, levels):
    """A name of VQModel as open-muse has it."""
    renames = (
        (r"down_blocks\.", "down."),
        (r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}"),
        (r"(down|up)\.(\d+)\.resnets", r"\1.\2.block"),
        (r"(down|up)\.(\d+)\.attentions", r"\1.\2.attn"),
        (r"downsamplers\.0", "downsample"),
        (r"upsamplers\.0", "upsample"),
        (r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"to_(q|k|v)\b", r"\1"),
        (r"to_out\.0", "proj_out"),
        (r"group_norm|spatial_norm", "norm"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    )
    for pattern, name in renames:
        key = re.sub(pattern, name, key)
    return key


@pytest.mark.parametrize("name", [name for name in CASES if "norms" in name])
def test_open_muses_layout_holds_the_same_weights_as_that_of_diffusers(name):
    case = CASES[name]
    net, _, model, like, variables = twins(case)
    modulated = name.startswith("modulated")
    levels = len(model.channel_mult)
    published = {in_open_muse(key, levels): array for key, array in arrays(net).items()}
    if not modulated:
        for key, array in published.items():
            if "attn" in key and array.ndim == 2:
                published[key] = array[:, :, None, None]
    table = MOVQ_MUSE if modulated else VQGAN_MUSE
    ours = flatten(to_flax(published, table, like))
    assert all(np.array_equal(ours[path], leaf) for path, leaf in flatten(variables).items())
    back = to_torch(variables, table)
    assert {key: array.shape for key, array in back.items()} == {key: array.shape for key, array in published.items()}
    assert all(np.array_equal(back[key], array) for key, array in published.items())


def test_open_muses_paella_differs_from_diffusers_in_the_name_of_the_codebook_alone():
    _, _, _, _, variables = twins(CASES["paella of three levels"])
    theirs, diffusers = to_torch(variables, PAELLA_MUSE), to_torch(variables, PAELLA_DIFFUSERS)
    assert set(theirs) ^ set(diffusers) == {"vquantizer.codebook.weight", "vquantizer.embedding.weight"}


def test_a_decoder_of_its_own_sizes_has_open_muses_names():
    model = tokenizers.build(
        "vqgan",
        hidden_channels=32,
        channel_mult=(1, 1),
        num_res_blocks=1,
        decoder_res_blocks=(3, 0),
        extra_mid_res_blocks=2,
        decoder_hidden_channels=64,
        decoder_channel_mult=(1, 2),
        attn_resolutions=(),
        resample_with_conv=False,
        z_channels=4,
    )
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    shapes = {key: array.shape for key, array in to_torch(variables, VQGAN_MUSE).items()}
    assert shapes["decoder.conv_in.weight"] == (128, 4, 3, 3)
    assert shapes["decoder.mid.extra_mid_res_blocks.1.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["decoder.up.0.block.0.nin_shortcut.weight"] == (64, 128, 1, 1)
    blocks = {key.split(".norm1")[0] for key in shapes if key.startswith("decoder.up") and ".norm1.weight" in key}
    assert blocks == {"decoder.up.1.block.0", *(f"decoder.up.0.block.{i}" for i in range(4))}
    assert not any("sample" in key for key in shapes)


@pytest.mark.parametrize(("mult", "blocks"), [((1, 2, 1), 2), ((1, 1), 1)])
def test_googles_flax_checkpoint_converts_both_ways(mult, blocks):
    theirs = google_vqgan.VQVAE(tuple(64 * times for times in mult), blocks, 64, 4, CODES)
    images = pictures(height=8, width=16)
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    latents = np.asarray(theirs.apply({"params": params}, images, method=lambda module, x: module.encoder(x)))
    spread = latents.std((0, 1, 2)) * rng.normal(size=(CODES, 4))
    params["quantizer"]["codebook"] = (latents.reshape(-1, 4).mean(0) + spread).astype(np.float32)
    checkpoint = {path.replace("/", "."): leaf for path, leaf in flatten(params).items()}

    model = maskgit(mult, blocks).flax()
    table = maskgit_vqgan_google(len(mult), blocks)
    like = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = to_flax(checkpoint, table, like)
    tokens, decoded = jax.jit(theirs.apply, compiler_options=QUICK)({"params": params}, images)
    found = jax.jit(model.apply, compiler_options=QUICK)(variables, images)
    assert len(np.unique(tokens)) > 3
    assert np.array_equal(found.tokens, tokens)
    assert relative(found.images, decoded) <= 1e-5

    back = to_torch(variables, table)
    assert set(back) == set(checkpoint)
    assert all(np.array_equal(back[key], leaf) for key, leaf in checkpoint.items())
