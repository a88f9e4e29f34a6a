"""The masked transformers against diffusers, transformers and a re-derived torch reference, from the same weights."""

import warnings
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from twins import QUICK, arrays, relative

from interop.engine import flatten, to_flax, to_torch
from interop.layers import dense
from interop.reference.maskgit_transformer import MaskGitTransformer as TorchMaskGit
from interop.tables.maskgit_bert import MASKGIT_BERT_GOOGLE, MASKGIT_BERT_TRANSFORMERS
from interop.tables.maskgit_transformer import MASKGIT_TRANSFORMER
from interop.tables.uvit import UVIT_DIFFUSERS, UVIT_MUSE
from jaxkit.models.masked.bert import maskgit_bert_tiny
from jaxkit.models.masked.config import from_config, to_config, to_diffusers_config
from jaxkit.models.masked.transformer import maskgit_transformer_tiny
from jaxkit.models.masked.uvit import uvit_tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import UVit2DModel
    from diffusers.models.attention import FeedForward
    from diffusers.models.normalization import RMSNorm
    from transformers import BertConfig, BertForMaskedLM

pytestmark = pytest.mark.level(1)

# Wider than high, and even: the convolutions take any grid.
GRID = (4, 6)


@pytest.fixture(autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield
    jax.clear_caches()


def shaken(net, seed=0):
    """The network with no parameter at 0 or 1: a scale, a shift, a fresh zero would hide what is done with it."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.empty_like(parameter).uniform_(-0.1, 0.1))
    return net.eval()


def converted(net, table, model, *inputs, **named):
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, **named))
    return jax.tree.map(jnp.asarray, to_flax(arrays(net), table, like)), like


def applied(model, variables, *inputs, **named):
    return jax.jit(model.apply, compiler_options=QUICK)(variables, *inputs, **named)


def draw_tokens(size, grid=GRID, seed=0):
    return np.random.default_rng(seed).integers(0, size, (2, *grid))


def text(model):
    """A text's states, its pooled embedding, and micro-conditions of a 512 x 384 image."""
    rng = np.random.default_rng(2)
    shapes = (2, 5, model.encoder_hidden_size), (2, model.cond_embed_dim)
    micro = jnp.tile(jnp.array([512.0, 384, 0, 64, 6]), (2, 1))
    return *(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes), micro


def same_bytes(state, given):
    assert set(state) == set(given)
    assert all(
        array.shape == given[key].shape and array.tobytes() == given[key].tobytes() for key, array in state.items()
    )


def largest(ours, theirs):
    """The largest of the leaves' errors, each relative to its largest value.

    The bias of the keys has no gradient, since a softmax cancels what all its inputs share: of what rounding leaves
    there, and of nothing larger, the error is relative to a thousandth of the largest gradient.
    """
    ours, theirs = flatten(ours), flatten(theirs)
    sizes = {path: abs(leaf).max() for path, leaf in theirs.items()}
    floor = max(sizes.values()) / 1000
    errors = {path: abs(ours[path] - leaf).max() / max(sizes[path], floor) for path, leaf in theirs.items()}
    return float(max(errors.values()))


def uvit_twins(half=False, **fields):
    """diffusers' network, ours, the converted variables and the shapes these were made for."""
    model = uvit_tiny(force_down_up_sample=half, **fields)
    config = to_diffusers_config(model.clone(norm_type="rmsnorm", use_fused_mlp=False), sample_size=4)
    net = UVit2DModel.from_config(config)
    table = UVIT_DIFFUSERS
    if model.norm_type == "layernorm":
        swap_norms(net, model.use_bias)
    if model.use_fused_mlp:
        for layer in net.transformer_layers:
            layer.ff = FeedForward(
                model.hidden_size,
                inner_dim=model.intermediate_size,
                activation_fn="gelu-approximate",
                bias=model.use_bias,
            )
        table = (
            *UVIT_DIFFUSERS[:-1],
            ("transformer_layers.{i}.ff.net.0.proj", "transformer_layers_{i}/ffn/wi_0", dense),
        )
    shaken(net)
    given = text(model)
    tokens = draw_tokens(model.vocab_size)
    return net, model, table, *converted(net, table, model, jnp.asarray(tokens), *given), tokens, given


def swap_norms(module, bias):
    for name, child in module.named_children():
        if isinstance(child, RMSNorm):
            setattr(module, name, torch.nn.LayerNorm(child.dim, child.eps, bias=bias))
        else:
            swap_norms(child, bias)


def torch_logits(net, tokens, given):
    logits = net(torch.from_numpy(tokens), *(torch.from_numpy(np.array(x)) for x in given))
    return logits.movedim(1, -1)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"num_res_blocks": 2}, marks=pytest.mark.slow),
        pytest.param({"half": True, "use_bias": True}, marks=pytest.mark.slow),
        # no projection of the text where its width is that of the blocks
        {"block_out_channels": (32,), "block_num_heads": 4, "use_fused_mlp": True},
        {"norm_type": "layernorm", "use_bias": True, "half": True},
    ],
    ids=str,
)
def test_uvit_matches_diffusers_forward_and_backward(fields, record_property):
    net, model, table, variables, like, tokens, given = uvit_twins(**fields)
    expected = torch_logits(net, tokens, given)
    labels = draw_tokens(model.codebook_size, seed=1)
    torch.nn.functional.cross_entropy(expected.movedim(-1, 1), torch.from_numpy(labels)).backward()
    gradients = {key: parameter.grad.numpy() for key, parameter in net.named_parameters()}
    theirs = to_flax(gradients, table, like)["params"]

    def loss(params):
        logits = model.apply({"params": params}, jnp.asarray(tokens), *given)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean(), logits

    ours, logits = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)(variables["params"])
    # Some tens of float32 roundings (6e-8 each) of sums in another order.
    errors = {"logits": relative(logits, expected.detach().numpy()), "gradients": largest(ours, theirs)}
    for name, error in errors.items():
        record_property(name, float(error))
    assert errors["logits"] <= 1e-5
    assert errors["gradients"] <= 1e-4


@pytest.mark.parametrize("shared", [False, True])
def test_a_style_adapter_is_a_bottleneck_behind_the_attention_to_the_text(shared):
    net, model, _, variables, _, tokens, given = uvit_twins()
    model = model.clone(use_adapter=True, is_adapter_shared=shared)
    fresh = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(tokens), *given))["params"]["adapter"]
    rng = np.random.default_rng(0)
    adapter = {name: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for name, leaf in fresh.items()}
    variables["params"]["adapter"] = adapter

    theirs = {
        key.removeprefix("adapter."): leaf for key, leaf in to_torch(variables, UVIT_MUSE).items() if "adapt" in key
    }
    down = theirs["WD.weight"].reshape(-1, 32, 4) + (theirs["DD.weight"][:, None] if shared else 0)
    up = theirs["WU.weight"].reshape(-1, 4, 32) + (theirs["DU.weight"][:, None] if shared else 0)
    for layer, *pair in zip(net.transformer_layers, torch.from_numpy(down), torch.from_numpy(up), strict=True):
        layer.attn2.register_forward_hook(partial(bottleneck, pair))
    with torch.no_grad():
        expected = torch_logits(net, tokens, given).numpy()
    logits = applied(model, variables, jnp.asarray(tokens), *given)
    assert relative(logits, expected) <= 1e-5
    without = applied(model.clone(use_adapter=False), variables, jnp.asarray(tokens), *given)
    assert relative(without, expected) > 1e-3


def bottleneck(pair, _module, _inputs, output):
    return output + torch.nn.functional.gelu(output @ pair[0]) @ pair[1]


@pytest.mark.parametrize("half", [False, True])
def test_an_exported_uvit_loads_strictly_in_diffusers_and_gives_identical_logits(half):
    net, model, table, variables, _, tokens, given = uvit_twins(half, use_bias=True)
    state = to_torch(variables, table)
    same_bytes(state, arrays(net))
    fresh = UVit2DModel.from_config(to_diffusers_config(model, sample_size=4)).eval()
    fresh.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()}, strict=True)
    with torch.no_grad():
        assert torch.equal(torch_logits(fresh, tokens, given), torch_logits(net, tokens, given))


@pytest.mark.parametrize("fields", [{}, {"use_fused_mlp": True}], ids=str)
def test_uvit_under_open_muses_names_comes_back_bit_for_bit(fields):
    _, _, _, variables, like, *_ = uvit_twins(half=True, use_bias=True, **fields)
    state = to_torch(variables, UVIT_MUSE)
    same_bytes(flatten(to_flax(state, UVIT_MUSE, like)), flatten(jax.tree.map(np.asarray, variables)))


def test_the_names_of_uvit_are_those_open_muse_publishes():
    model = uvit_tiny(num_res_blocks=1, num_hidden_layers=1, force_down_up_sample=True)
    given = jnp.zeros((2, 4, 6), jnp.int32), *text(model)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), *given))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), like)
    attention = [
        f"{name}.{part}" for name in ("attention", "crossattention") for part in ("query", "key", "value", "out")
    ]
    blocks = [
        *("res_blocks.0." + name for name in ("depthwise", "norm.norm", "channelwise.0", "channelwise.4")),
        "res_blocks.0.adaLN_modulation.mapper",
        *("attention_blocks.0." + name for name in ("kv_mapper", "attn_layer_norm", "crossattn_layer_norm")),
        *("attention_blocks.0." + name for name in attention),
    ]
    ffn = ("pre_mlp_layer_norm", "adaLN_modulation.mapper", "wi_0", "wi_1", "wo")
    layer = [
        *("attn_layer_norm", "self_attn_adaLN_modulation.mapper"),
        *("crossattn_layer_norm", "cross_attn_adaLN_modulation.mapper"),
        *attention,
        *(f"ffn.{name}" for name in ffn),
    ]
    modules = [
        *("encoder_proj", "encoder_proj_layer_norm", "embed.embeddings", "embed.layer_norm", "embed.conv"),
        *("cond_embed.0", "cond_embed.2", "down_blocks.0.downsample.0.norm", "down_blocks.0.downsample.1"),
        *(f"{level}_blocks.0.{name}" for level in ("down", "up") for name in blocks),
        *("project_to_hidden_norm", "project_to_hidden", "project_from_hidden_norm", "project_from_hidden"),
        *(f"transformer_layers.0.{name}" for name in layer),
        *("up_blocks.0.upsample.0.norm", "up_blocks.0.upsample.1"),
        *("mlm_layer.conv1", "mlm_layer.layer_norm.norm", "mlm_layer.conv2"),
    ]
    norms = {
        f"{level}_blocks.0.res_blocks.0.channelwise.2.{leaf}" for level in ("down", "up") for leaf in ("gamma", "beta")
    }
    assert set(to_torch(zeros, UVIT_MUSE)) == {f"{module}.weight" for module in modules} | norms


PLAIN = {"norm_type": "layernorm", "use_normformer": False, "use_bias": False}
CROSS = {"add_cross_attention": True, "encoder_hidden_size": 12}
OPTIONS = [
    *(
        {"norm_type": norm, "use_normformer": normformer, "use_bias": bias, **CROSS}
        for norm, normformer, bias in product(("layernorm", "rmsnorm"), (True, False), (True, False))
    ),
    PLAIN,
    {"use_encoder_layernorm": False, "use_mlm_layernorm": False},
    {"use_mlm_layer": False, "use_bias": True},
    {"use_codebook_size_for_output": True, **CROSS, "project_encoder_hidden_states": True, "use_bias": True},
    {"project_encoder_hidden_states": True, "encoder_hidden_size": 12, "norm_type": "rmsnorm"},
    {"num_classes": 6, "max_position_embeddings": 20},
    {"use_conv_in_out": True, "embedding_size": 10, "use_bias": True},
    {"use_conv_in_out": True, "embedding_size": 10, "patch_size": 2, "norm_type": "rmsnorm", **CROSS},
    {"use_conv_in_out": True, "embedding_size": 10, "use_mlm_layer": False, "use_codebook_size_for_output": True},
]


def muse_twins(options):
    model = maskgit_transformer_tiny(**options)
    net = shaken(TorchMaskGit(to_config(model)))
    tokens = draw_tokens(model.vocab_size, (4, 4))
    named = {}
    rng = np.random.default_rng(1)
    if model.add_cross_attention:
        named["encoder_hidden_states"] = jnp.asarray(rng.normal(size=(2, 5, model.encoder_hidden_size)), jnp.float32)
    if model.num_classes:
        named["labels"] = jnp.asarray(rng.integers(0, model.num_classes, 2))
    return net, model, tokens, named


def muse_logits(net, model, tokens, named, mask=None):
    sequence = torch.from_numpy(tokens).flatten(1)
    if "labels" in named:
        classes = torch.from_numpy(np.array(named["labels"])) + model.codebook_size
        sequence = torch.cat([classes[:, None], sequence], dim=1)
    context = named.get("encoder_hidden_states")
    context = None if context is None else torch.from_numpy(np.array(context))
    logits = net(sequence, context, mask)
    return logits[:, -16:].unflatten(1, (4, 4))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_maskgit_transformer_matches_torch_and_converts_back_bit_for_bit(options, record_property):
    net, model, tokens, named = muse_twins(options)
    variables, _ = converted(net, MASKGIT_TRANSFORMER, model, jnp.asarray(tokens), **named)
    expected = muse_logits(net, model, tokens, named)
    logits = applied(model, variables, jnp.asarray(tokens), **named)
    record_property("logits", relative(logits, expected.detach().numpy()))
    assert logits.shape == expected.shape
    assert relative(logits, expected.detach().numpy()) <= 1e-5
    same_bytes(to_torch(variables, MASKGIT_TRANSFORMER), arrays(net))


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[7], OPTIONS[-2]], ids=str)
def test_the_gradients_of_maskgit_transformer_match_torch(options):
    net, model, tokens, named = muse_twins(options)
    variables, like = converted(net, MASKGIT_TRANSFORMER, model, jnp.asarray(tokens), **named)
    labels = draw_tokens(model.codebook_size, (4, 4), seed=1)
    logits = muse_logits(net, model, tokens, named)
    torch.nn.functional.cross_entropy(logits.movedim(-1, 1), torch.from_numpy(labels)).backward()
    theirs = to_flax({key: p.grad.numpy() for key, p in net.named_parameters()}, MASKGIT_TRANSFORMER, like)["params"]

    def loss(params):
        logits = model.apply({"params": params}, jnp.asarray(tokens), **named)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

    assert largest(jax.jit(jax.grad(loss), compiler_options=QUICK)(variables["params"]), theirs) <= 1e-4


def test_padding_that_is_masked_is_masked_as_in_torch():
    net, model, tokens, named = muse_twins(CROSS)
    variables, _ = converted(net, MASKGIT_TRANSFORMER, model, jnp.asarray(tokens), **named)
    mask = np.array([[True, True, False, False, False], [True] * 5])
    expected = muse_logits(net, model, tokens, named, torch.from_numpy(mask)).detach().numpy()
    assert relative(applied(model, variables, jnp.asarray(tokens), **named), expected) > 1e-3
    logits = applied(model, variables, jnp.asarray(tokens), **named, encoder_mask=jnp.asarray(mask))
    assert relative(logits, expected) <= 1e-5


def bert_twins(**fields):
    model = maskgit_bert_tiny(**fields)
    config = BertConfig(**{key: value for key, value in to_config(model).items() if key != "architectures"})
    net = shaken(BertForMaskedLM(config))
    tokens = draw_tokens(model.vocab_size, (3, 5))
    labels = np.array([0, 4])
    return net, model, tokens, labels


def test_google_maskgit_matches_transformers_bert_and_converts_back_bit_for_bit(record_property):
    net, model, tokens, labels = bert_twins(type_vocab_size=2)
    given = jnp.asarray(tokens), jnp.asarray(labels)
    variables, _ = converted(net, MASKGIT_BERT_TRANSFORMERS, model, *given)
    sequence = np.concatenate([model.codebook_size + labels[:, None], tokens.reshape(2, -1)], axis=1)
    with torch.no_grad():
        expected = net(input_ids=torch.from_numpy(sequence)).logits[:, 1:].unflatten(1, (3, 5)).numpy()
    logits = applied(model, variables, *given)
    record_property("logits", relative(logits, expected))
    assert relative(logits, expected) <= 1e-5
    same_bytes(to_torch(variables, MASKGIT_BERT_TRANSFORMERS), arrays(net))


def test_a_checkpoint_of_google_reaches_transformers_bert_by_way_of_ours():
    model = maskgit_bert_tiny(type_vocab_size=1)
    tokens, labels = jnp.asarray(draw_tokens(model.vocab_size, (3, 5))), jnp.array([0, 4])
    variables = model.init(jax.random.key(0), tokens, labels)
    checkpoint = to_torch(variables, MASKGIT_BERT_GOOGLE)
    assert sorted(checkpoint) == sorted(GOOGLE)
    back = to_flax(checkpoint, MASKGIT_BERT_GOOGLE, variables)
    # Google has one type of token
    variables["params"]["token_type_embeddings"]["embedding"] = jnp.zeros((1, 24))
    same_bytes(flatten(back), flatten(jax.tree.map(np.asarray, variables)))

    config = BertConfig(**{key: value for key, value in to_config(model).items() if key != "architectures"})
    net = BertForMaskedLM(config).eval()
    state = to_torch(back, MASKGIT_BERT_TRANSFORMERS)
    net.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()}, strict=True)
    sequence = jnp.concatenate([model.codebook_size + labels[:, None], tokens.reshape(2, -1)], axis=1)
    with torch.no_grad():
        expected = net(input_ids=torch.from_numpy(np.array(sequence))).logits[:, 1:].unflatten(1, (3, 5)).numpy()
    assert relative(applied(model, variables, tokens, labels), expected) <= 1e-5


_LAYERS = [f"params/TransformerLayer_{i}" for i in range(2)]
GOOGLE = [
    "params/Embed_0/word_embeddings/embedding",
    "params/Embed_0/position_embeddings/embedding",
    *(f"params/{name}/{leaf}" for name in ("Embed_0/embeddings_ln", "MlmLayer_0/mlm_ln") for leaf in ("scale", "bias")),
    *(f"params/MlmLayer_0/{leaf}" for leaf in ("mlm_dense/kernel", "mlm_dense/bias", "mlm_bias/bias")),
    *(
        f"{layer}/{name}/{leaf}"
        for layer in _LAYERS
        for name in (
            *(f"Attention_0/self_attention/{part}" for part in ("query", "key", "value", "out")),
            *("Mlp_0/intermediate_output", "Mlp_0/layer_output"),
        )
        for leaf in ("kernel", "bias")
    ),
    *(
        f"{layer}/{name}/{leaf}"
        for layer in _LAYERS
        for name in ("Attention_0/attention_output_ln", "Mlp_0/layer_output_ln")
        for leaf in ("scale", "bias")
    ),
]


def test_a_config_that_diffusers_or_transformers_saved_builds_the_module_whose_weights_fit(tmp_path):
    net, model, *_ = uvit_twins(half=True)
    net.save_config(tmp_path)
    assert from_config(net.load_config(tmp_path)) == model

    bert, model, *_ = bert_twins(type_vocab_size=2)
    assert from_config(bert.config.to_diff_dict() | {"architectures": ["BertForMaskedLM"]}) == model
