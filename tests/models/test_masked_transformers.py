import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxkit.errors import ConfigError, ShapeError
from jaxkit.models.masked import TRANSFORMERS, transformer_class
from jaxkit.models.masked.bert import maskgit_bert_tiny
from jaxkit.models.masked.config import from_config, to_config, to_diffusers_config
from jaxkit.models.masked.style_adapter import StyleAdapter
from jaxkit.models.masked.transformer import MaskGitTransformer, maskgit_transformer_tiny
from jaxkit.models.masked.uvit import MaskGiTUViT, uvit_tiny
from jaxkit.nn.attention import Attention
from jaxkit.nn.transformer import GlobalResponseNorm, sinusoidal_embedding

pytestmark = pytest.mark.level(1)

TINY = {"uvit": uvit_tiny, "maskgit_transformer": maskgit_transformer_tiny, "maskgit_bert": maskgit_bert_tiny}


def text(model, batch=2, tokens=5, seed=0):
    """A text's states, its pooled embedding, and micro-conditions of a 512 x 384 image."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(batch, tokens, model.encoder_hidden_size))
    pooled = rng.normal(size=(batch, model.cond_embed_dim))
    micro = np.tile([512, 384, 0, 64, 6], (batch, 1))
    return tuple(jnp.asarray(x, jnp.float32) for x in (states, pooled, micro))


def drawn(model, *inputs, **named):
    """Variables that no initialisation makes 0, without compiling one."""
    rng = np.random.default_rng(0)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, **named))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), leaf.dtype), like)


def parameters(model, *inputs, **named):
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, **named))
    return sum(leaf.size for leaf in jax.tree.leaves(like))


GRID = jnp.zeros((1, 16, 16), jnp.int32)
TEXT2IMAGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "add_cross_attention": True,
    "norm_type": "rmsnorm",
    "use_normformer": False,
}


@pytest.mark.parametrize(("half", "count"), [(False, 603_537_664), (True, 608_257_792)])
def test_uvit_has_as_many_parameters_as_amused(half, count):
    model = MaskGiTUViT(force_down_up_sample=half)
    assert parameters(model, GRID, *text(model, 1, 77)) == count


@pytest.mark.parametrize(
    ("fields", "named", "count"),
    [
        (
            {"vocab_size": 2048, "max_position_embeddings": 264, "num_hidden_layers": 24, "num_classes": 1000}
            | {"num_attention_heads": 16},
            {"labels": jnp.zeros(1, jnp.int32)},
            230_561_280,
        ),
        ({"vocab_size": 1040, **TEXT2IMAGE}, {"encoder_hidden_states": jnp.zeros((1, 16, 1024))}, 506_832_896),
        (
            {"vocab_size": 8256, "codebook_size": 8192, "use_codebook_size_for_output": True, **TEXT2IMAGE},
            {"encoder_hidden_states": jnp.zeros((1, 32, 1024))},
            521_545_728,
        ),
    ],
    ids=["imagenet.yaml", "imagenet_text2image.yaml", "cc12m.yaml"],
)
def test_maskgit_transformer_has_as_many_parameters_as_open_muses_configs(fields, named, count):
    assert parameters(MaskGitTransformer(**fields), GRID, **named) == count


def test_a_fresh_uvit_finds_all_tokens_equally_likely():
    model = uvit_tiny()
    tokens = jnp.arange(24).reshape(1, 4, 6)
    logits, _ = jax.jit(model.init_with_output)(jax.random.key(0), tokens, *text(model, 1))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()
    assert abs(loss - math.log(64)) <= 1e-5


def test_a_fresh_uvit_is_drawn_as_open_muse_draws_it():
    model = uvit_tiny(force_down_up_sample=True, use_bias=True)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 6), jnp.int32), *text(model, 1))["params"]
    embeddings = params["embeddings"]["embedding"]
    np.testing.assert_array_equal(params["mlm_conv2"]["kernel"][0, 0].T, embeddings[:64])
    # 20 times 72 draws: their deviation is known to within a tenth
    assert abs(embeddings.std() / math.sqrt(1 / 72) - 1) < 0.1
    assert abs(params["transformer_layers_1"]["ffn"]["wi_0"]["kernel"].std() / 0.02 - 1) < 0.1
    bound = 0.02 * math.sqrt(6 / (20 + 24))
    assert 0.9 * bound < abs(params["embed_conv"]["kernel"]).max() <= bound
    bound = 1 / math.sqrt(4 * 24)
    assert 0.9 * bound < abs(params["upsample_conv"]["kernel"]).max() <= bound
    zeros = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if any(name in jax.tree_util.keystr(path) for name in ("modulation", "channelwise_norm", "mlm_conv1"))
    ]
    # kernels and biases of 8 modulations and a convolution, gamma and beta of 2 norms
    assert len(zeros) == 2 * (8 + 1 + 2)
    assert not any(leaf.any() for leaf in zeros)


def test_a_fresh_maskgit_transformer_has_normal_kernels_and_torchs_convolutions():
    model = maskgit_transformer_tiny(use_conv_in_out=True, embedding_size=10, initializer_range=0.05)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4), jnp.int32))["params"]
    assert abs(params["embeddings"]["embedding"].std() / 0.05 - 1) < 0.1
    assert abs(params["transformer_layers_0"]["ffn"]["wo"]["kernel"].std() / 0.05 - 1) < 0.1
    bound = 1 / math.sqrt(24)
    assert 0.9 * bound < abs(params["mlm_conv1"]["kernel"]).max() <= bound


@pytest.mark.parametrize("shared", [False, True])
def test_a_fresh_style_adapter_changes_nothing_but_learns(shared):
    model = uvit_tiny(use_adapter=True, is_adapter_shared=shared)
    tokens = jnp.arange(16).reshape(1, 4, 4)
    given = text(model, 1)
    variables = drawn(model, tokens, *given)
    adapter = variables["params"].pop("adapter")
    fresh = StyleAdapter(2, 4, shared).init(jax.random.key(0), 32)["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, adapter)

    def loss(adapter):
        logits = model.apply({"params": {**variables["params"], "adapter": adapter}}, tokens, *given)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).sum(), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(fresh)
    assert abs(gradients["up"]).max() > 0
    plain = jax.jit(model.clone(use_adapter=False).apply)(variables, tokens, *given)
    np.testing.assert_allclose(logits, plain, rtol=1e-5, atol=1e-5 * abs(plain).max())


def test_google_draws_kernels_within_two_deviations():
    model = maskgit_bert_tiny()
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4), jnp.int32))["params"]
    for leaf in (params["word_embeddings"]["embedding"], params["layers_0"]["attention"]["query"]["kernel"]):
        assert 0.035 < abs(leaf).max() <= 0.04


def test_every_name_is_that_of_a_class():
    assert {name: type(tiny()) for name, tiny in TINY.items()} == {n: transformer_class(n) for n in TRANSFORMERS}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_grid_may_be_wider_than_high(name):
    model = TINY[name]()
    tokens = jnp.zeros((2, 2, 6), jnp.int32)
    given = text(model) if name == "uvit" else ()
    variables = drawn(model, tokens, *given)
    changed = tokens.at[1, 0, 5].set(model.mask_token_id)
    apply = jax.jit(model.apply)
    before, after = apply(variables, tokens, *given), apply(variables, changed, *given)
    assert before.shape == (2, 2, 6, model.codebook_size if name == "uvit" else model.vocab_size)
    # what changes is the image that was changed, and there every place, by attention
    assert (before[0] == after[0]).all()
    assert (before[1] != after[1]).any(-1).all()


def test_the_mask_of_google_is_the_last_token_under_either_name():
    model = maskgit_bert_tiny()
    assert model.mask_token_id == 70
    tokens = jnp.arange(16).reshape(1, 4, 4)
    variables = drawn(model, tokens)
    masked = [model.apply(variables, tokens.at[0, 1, 2].set(mask)) for mask in (-1, 70)]
    assert (masked[0] == masked[1]).all()
    assert (masked[0] != model.apply(variables, tokens)).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_recomputed_activations_give_the_same_gradients(name):
    model = TINY[name]()
    tokens = jnp.arange(16).reshape(1, 4, 4)
    given = text(model, 1) if name == "uvit" else ()
    variables = drawn(model, tokens, *given)

    def gradients(model):
        def loss(params):
            logits = model.apply({"params": params}, tokens, *given, train=True, rngs={"dropout": jax.random.key(0)})
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

        return jax.jit(jax.grad(loss)), str(jax.make_jaxpr(jax.grad(loss))(variables["params"]))

    (stored, program), (recomputed, with_remat) = gradients(model), gradients(model.clone(remat=True))
    assert "remat" in with_remat
    assert "remat" not in program
    jax.tree.map(
        # the compiler adds up in another order
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        stored(variables["params"]),
        recomputed(variables["params"]),
    )


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_in_bfloat16_parameters_and_logits_stay_float32(name):
    model = TINY[name]()
    half = model.clone(dtype=jnp.bfloat16)
    tokens = jnp.arange(16).reshape(1, 4, 4)
    given = text(model, 1) if name == "uvit" else ()
    variables = drawn(half, tokens, *given)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact, rounded = model.apply(variables, tokens, *given), half.apply(variables, tokens, *given)
    assert rounded.dtype == jnp.float32
    error = abs(rounded - exact).max() / abs(exact).max()
    # bfloat16 rounds to 4e-3; float32 would be 1e-6
    assert 1e-3 < error < 0.1


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_dropout_acts_in_training_alone(name):
    rates = {"hidden_dropout": 0.3, "attention_dropout": 0.3}
    if name == "maskgit_bert":
        rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    model = TINY[name](**rates)
    tokens = jnp.arange(16).reshape(1, 4, 4)
    given = text(model, 1) if name == "uvit" else ()
    variables = drawn(model, tokens, *given)

    def logits(model, **options):
        return model.apply(variables, tokens, *given, **options)

    train = partial(logits, train=True)
    keys = [{"dropout": jax.random.key(seed)} for seed in (0, 0, 1)]
    first, again, other = (train(model, rngs=key) for key in keys)
    assert (first == again).all()
    assert (first != other).any()
    without = model.clone(**dict.fromkeys(rates, 0.0))
    assert (train(without, rngs=keys[0]) == logits(model)).all()
    for rate in rates:
        assert (train(model.clone(**{rate: 0.0}), rngs=keys[0]) != logits(model)).any(), rate


def test_padding_that_is_masked_changes_nothing():
    model = uvit_tiny()
    tokens = jnp.arange(16).reshape(1, 4, 4)
    states, pooled, micro = text(model, 1)
    variables = drawn(model, tokens, states, pooled, micro)
    padded = jnp.concatenate([states, jnp.full((1, 3, 12), 9.0)], axis=1)
    mask = jnp.arange(8)[None] < 5
    apply = jax.jit(model.apply)
    expected = apply(variables, tokens, states, pooled, micro)
    assert abs(apply(variables, tokens, padded, pooled, micro) - expected).max() > 1e-3
    np.testing.assert_allclose(
        apply(variables, tokens, padded, pooled, micro, mask), expected, rtol=1e-4, atol=1e-4 * abs(expected).max()
    )


def test_attention_is_linens_with_the_same_parameters():
    rng = np.random.default_rng(0)
    x, context = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3, 8), (2, 5, 6)))
    mask = jnp.asarray(rng.random((2, 5)) < 0.6).at[:, 0].set(True)
    linen = nn.MultiHeadDotProductAttention(num_heads=2)
    variables = linen.init(jax.random.key(0), x, context)
    expected = linen.apply(variables, x, context, mask=mask[:, None, None, :])
    np.testing.assert_allclose(
        Attention(2, use_bias=True).apply(variables, x, context, mask), expected, rtol=1e-5, atol=1e-6
    )


def test_dropped_attention_weights_average_to_those_kept():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 8)), jnp.float32)
    attention = Attention(2, dropout_rate=0.5)
    variables = attention.init(jax.random.key(0), x)
    keys = jax.random.split(jax.random.key(1), 4000)
    runs = jax.vmap(lambda key: attention.apply(variables, x, train=True, rngs={"dropout": key}))(keys)
    spread = runs.std(0)
    assert spread.min() > 0
    # five standard errors
    assert (abs(runs.mean(0) - attention.apply(variables, x)) < 5 * spread / math.sqrt(len(keys))).all()


def test_a_global_response_norm_has_a_slope_where_a_channel_is_zero():
    norm = GlobalResponseNorm()
    x = jnp.ones((1, 2, 2, 3)).at[..., 0].set(0)
    variables = {"params": {"gamma": jnp.ones(3), "beta": jnp.zeros(3)}}
    slope = jax.grad(lambda x: norm.apply(variables, x).sum())(x)
    assert jnp.isfinite(slope).all()
    # ‖x‖ is 0, 2, 2 and their mean 4/3: x (1 + 2 / (4/3))
    np.testing.assert_allclose(norm.apply(variables, x)[0, 0, 0], [0, 2.5, 2.5], rtol=1e-5)


def test_a_sinusoidal_embedding_lists_cosines_then_sines_of_each_number():
    embedded = sinusoidal_embedding(jnp.array([[3.0, 500.0]]), 4)
    angles = [3, 3 / 100, 500, 5]
    expected = [*np.cos(angles[:2]), *np.sin(angles[:2]), *np.cos(angles[2:]), *np.sin(angles[2:])]
    # 500 radians are rounded to 3e-5
    np.testing.assert_allclose(embedded[0], expected, atol=5e-5)


@pytest.mark.parametrize(
    "model",
    [
        maskgit_transformer_tiny(num_classes=6),
        uvit_tiny(force_down_up_sample=True),
        maskgit_bert_tiny(type_vocab_size=2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_the_config_of_a_module_builds_it_again(model):
    assert from_config(to_config(model)) == model
    if isinstance(model, MaskGiTUViT):
        assert from_config(to_diffusers_config(model, 16)) == model


RESEARCH_RUN = {
    "_class_name": "MaskGiTUViT",
    "_version": "0.0.1",
    "vocab_size": 8256,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 22,
    "num_attention_heads": 16,
    "in_channels": 768,
    "block_out_channels": [768],
    "block_has_attention": [True],
    "block_num_heads": [12],
    "num_res_blocks": 3,
    "res_ffn_factor": 4,
    "patch_size": 1,
    "encoder_hidden_size": 768,
    "add_cross_attention": True,
    "project_encoder_hidden_states": True,
    "codebook_size": 8192,
    "num_vq_tokens": 256,
    "initializer_range": 0.02,
    "norm_type": "rmsnorm",
    "layer_norm_eps": 1e-6,
    "ln_elementwise_affine": True,
    "use_encoder_layernorm": False,
    "use_bias": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "use_codebook_size_for_output": True,
    "use_empty_embeds_for_uncond": True,
    "add_cond_embeds": True,
    "cond_embed_dim": 768,
    "add_micro_cond_embeds": True,
    "micro_cond_encode_dim": 256,
    "micro_cond_embed_dim": 1280,
    "mask_token_id": 8255,
}


def test_the_config_of_the_research_run_is_uvit_as_it_stands():
    assert from_config(RESEARCH_RUN) == MaskGiTUViT()
    assert from_config(RESEARCH_RUN | {"force_down_up_sample": True}) == MaskGiTUViT(force_down_up_sample=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"use_normformer": True}, "use_normformer True is not offered, only False; .* version 1"),
        ({"block_has_attention": [False]}, "block_has_attention .False,. is not offered"),
        ({"block_out_channels": [512, 1024]}, "block_out_channels .512, 1024. has 2 levels"),
        ({"mask_token_id": 8192}, "mask_token_id 8192 is not the last token, 8255"),
        ({"ffn_type": "vanilla"}, "ffn_type 'vanilla' is not offered, only 'glu'"),
        ({"learn_uncond_embeds": True, "patch_size": 2}, "patch_size 2 .*; learn_uncond_embeds True"),
        ({"hiden_size": 3}, "hiden_size: unknown key, did you mean 'hidden_size'?"),
        ({"_class_name": "MaskGitTransformr"}, "'MaskGitTransformr', which jaxkit has not, did you mean 'MaskGitTrans"),
        ({"_class_name": None}, "there are MaskGitTransformer, MaskGiTUViT_v2"),
        ({"_class_name": "MaskGitTransformer"}, "block_has_attention: unknown key"),
    ],
)
def test_what_jaxkit_has_not_is_refused_by_name(changed, message):
    with pytest.raises(ConfigError, match=message):
        from_config(RESEARCH_RUN | changed)


MOVQ_CONV = {
    "_class_name": "MaskGitTransformer",
    "vocab_size": 16400,
    "codebook_size": 16384,
    "num_vq_tokens": 1024,
    **TEXT2IMAGE,
    "use_codebook_size_for_output": True,
    "use_conv_in_out": True,
    "patch_size": 2,
}


def test_movq_conv_yaml_whose_embedding_size_is_that_of_the_layers_is_built():
    model = from_config(MOVQ_CONV)
    tokens = jnp.zeros((1, 32, 32), jnp.int32)
    states = jnp.zeros((1, 16, 1024))
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, states))["params"]
    assert like["embeddings"]["embedding"].shape == (16400, 1024)
    assert like["mlm_conv1"]["kernel"].shape == (1, 1, 1024, 4096)


def test_a_config_without_the_size_of_the_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="num_layers: unknown key.*; vocab_size is missing"):
        from_config({"_class_name": "MaskGitTransformer", "num_layers": 2})


def test_a_config_whose_two_halves_disagree_is_refused():
    config = to_diffusers_config(uvit_tiny(), 16) | {"upsample": True}
    with pytest.raises(ConfigError, match="upsample True contradicts force_down_up_sample False"):
        from_config(config)


@pytest.mark.parametrize("fields", [{"norm_type": "layernorm"}, {"use_fused_mlp": True}, {"use_adapter": True}])
def test_what_diffusers_has_not_is_not_written_for_it(fields):
    with pytest.raises(ConfigError, match="UVit2DModel has"):
        to_diffusers_config(uvit_tiny(**fields), 16)


@pytest.mark.parametrize(
    ("fields", "named", "error", "message"),
    [
        ({}, {"encoder_hidden_states": jnp.zeros((1, 2, 1024))}, ConfigError, "cross-attention"),
        ({"add_cross_attention": True}, {}, ConfigError, "encoder_hidden_states"),
        ({}, {"labels": jnp.zeros(1, jnp.int32)}, ConfigError, "num_classes"),
        ({"num_classes": 6}, {}, ConfigError, "labels"),
        ({"embedding_size": 8}, {}, ConfigError, "embedding_size is that of use_conv_in_out"),
        ({"patch_size": 2}, {}, ConfigError, "patch_size above 1 needs"),
        (
            {"use_conv_in_out": True, "embedding_size": 8, "num_classes": 6},
            {"labels": jnp.zeros(1, jnp.int32)},
            ConfigError,
            "class token has no place",
        ),
        ({"use_conv_in_out": True, "embedding_size": 8, "patch_size": 3}, {}, ShapeError, "do not tile"),
        ({"max_position_embeddings": 15}, {}, ShapeError, "16 tokens, but there are 15"),
        ({"num_attention_heads": 5}, {}, ShapeError, "5 heads do not divide a width of 24"),
        ({"norm_type": "batchnorm"}, {}, ConfigError, "'batchnorm'; there are 'layernorm' and 'rmsnorm'"),
        ({"attention": "cudnn"}, {}, ConfigError, "cannot compute in"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, named, error, message):
    model = maskgit_transformer_tiny(**fields)
    with pytest.raises(error, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 4, 4), jnp.int32), **named))


@pytest.mark.parametrize(
    ("fields", "grid", "error", "message"),
    [
        ({"block_out_channels": (24, 32)}, (4, 4), ConfigError, "version 1's"),
        ({"force_down_up_sample": True}, (4, 5), ShapeError, "4 x 5 is odd"),
        ({"micro_cond_embed_dim": 48}, (4, 4), ShapeError, "5 micro-conditions"),
        ({"micro_cond_encode_dim": 9, "micro_cond_embed_dim": 45}, (4, 4), ConfigError, "9 is odd"),
    ],
)
def test_uvit_refuses_what_it_has_no_place_for(fields, grid, error, message):
    model = uvit_tiny(**fields)
    with pytest.raises(error, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *grid), jnp.int32), *text(model, 1)))


def test_cudnn_drops_no_attention_weights():
    attention = Attention(2, dropout_rate=0.1, implementation="cudnn", dtype=jnp.bfloat16)
    with pytest.raises(ConfigError, match="set attention_dropout to 0"):
        attention.init(jax.random.key(0), jnp.zeros((1, 3, 8)), train=True)
