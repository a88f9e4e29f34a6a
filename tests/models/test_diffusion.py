import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from jaxkit.errors import ConfigError, ShapeError
from jaxkit.models.diffusion.attention import attend
from jaxkit.models.diffusion.backend import build, condition
from jaxkit.models.diffusion.clip_text import TextStates
from jaxkit.models.diffusion.config import KINDS, from_config, shapes
from jaxkit.models.diffusion.flax_diffusers import refusals
from jaxkit.models.diffusion.unet import Added

pytestmark = pytest.mark.level(1)

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "sample_size": 8,
}
SDXL = UNET | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 36,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 9,
    "eos_token_id": 59,
}


@pytest.fixture(scope="module", autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


def drawn(module, seed=0):
    """Variables that no initialisation makes 0, without compiling one."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype), shapes(module))


def normal(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


INPUTS = normal(2, 8, 8, 4), jnp.array([3, 977]), normal(2, 5, 16)


def text_ids(*new):
    ids = jnp.arange(3, 12).at[6:].set(59)
    return ids.at[2 : 2 + len(new)].set(jnp.array(new, jnp.int32))[None]


def test_rows_alone_tell_of_new_words_and_a_word_without_a_row_is_no_number():
    module = from_config(TEXT)
    variables, rows = drawn(module), normal(2, 16)
    found = module.apply(variables, text_ids(60, 61), rows)
    grown = jax.tree.map(lambda leaf: leaf, variables)
    embeddings = grown["params"]["text_model"]["embeddings"]["token_embedding"]
    embeddings["embedding"] = jnp.concatenate([embeddings["embedding"], rows])
    expected = module.clone(vocab_size=62).apply(grown, text_ids(60, 61))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert np.isnan(module.apply(variables, text_ids(62), rows).last[0]).all()


def test_a_row_that_no_text_has_receives_no_gradient():
    module = from_config(TEXT)
    variables = drawn(module)
    gradients = jax.grad(lambda rows: module.apply(variables, text_ids(61), rows).last.sum())(normal(2, 16))
    assert not gradients[0].any()
    assert np.isfinite(gradients).all()
    assert gradients[1].any()


def test_several_concepts_are_encoded_in_one_program():
    module = from_config(TEXT)
    variables, rows = drawn(module), normal(3, 1, 16)
    found = jax.vmap(lambda row: module.apply(variables, text_ids(60), row).last)(rows)
    for i in range(3):
        alone = module.apply(variables, text_ids(60), rows[i]).last
        np.testing.assert_allclose(found[i], alone, atol=2e-6)


def test_a_text_encoder_refuses_rows_of_another_width_and_texts_that_are_too_long():
    module = from_config(TEXT)
    with pytest.raises(ShapeError, match="rows of 15 numbers, but the text encoder's are 16 wide"):
        module.apply(drawn(module), text_ids(60), normal(1, 15))
    with pytest.raises(ShapeError, match="a text of 10 tokens, but there are 9 position embeddings"):
        module.apply(drawn(module), jnp.zeros((1, 10), jnp.int32))


def test_a_fresh_text_encoder_is_drawn_as_transformers_draws_it():
    module = from_config(TEXT | {"initializer_factor": 2.0, "hidden_size": 64, "intermediate_size": 256})
    params = module.init(jax.random.key(0), text_ids())["params"]["text_model"]
    layer = params["encoder"]["layers"]["1"]
    deviations = {
        "embeddings": (params["embeddings"]["token_embedding"]["embedding"], 0.04),
        "in": (layer["self_attn"]["q_proj"]["kernel"], 2 / np.sqrt(64 * 4)),
        "out": (layer["self_attn"]["out_proj"]["kernel"], 2 / np.sqrt(64)),
        "fc1": (layer["mlp"]["fc1"]["kernel"], 2 / np.sqrt(128)),
        "fc2": (layer["mlp"]["fc2"]["kernel"], 2 / np.sqrt(64 * 4)),
    }
    for name, (kernel, deviation) in deviations.items():
        # of 3840 draws or more: known to within a twentieth
        assert abs(kernel.std() / deviation - 1) < 0.05, name


@pytest.mark.parametrize("length", [64, 2048, 1100])
def test_attention_in_chunks_is_attention(length):
    query, key, value = normal(1, length, 2, 8), normal(1, 7, 2, 8, seed=2), normal(1, 7, 2, 8, seed=3)

    def loss(implementation, *inputs):
        return jnp.sin(attend(*inputs, implementation)).sum()

    for implementation in ("chunked", "xla"):
        found = jax.grad(loss, (1, 2, 3))(implementation, query, key, value)
        expected = jax.grad(loss, (1, 2, 3))(None, query, key, value)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * abs(theirs).max())


def test_attention_in_chunks_never_keeps_all_weights():
    inputs = normal(1, 2048, 1, 8), normal(1, 2048, 1, 8), normal(1, 2048, 1, 8)
    gradients = {
        implementation: jax.make_jaxpr(jax.grad(lambda *x, how=implementation: attend(*x, how).sum()))(*inputs)
        for implementation in ("chunked", "xla")
    }
    assert "2048,2048" in str(gradients["xla"])
    assert "2048,2048" not in str(gradients["chunked"])


def test_attention_says_what_it_cannot_do():
    x = normal(1, 4, 2, 8)
    with pytest.raises(ConfigError, match="'cudnn' cannot compute in float32"):
        attend(x, x, x, "cudnn")
    with pytest.raises(ConfigError, match="'chunked' is not causal"):
        attend(x, x, x, "chunked", causal=True)


def test_heads_that_cudnn_has_not_are_left_to_xla():
    x = normal(1, 4, 2, 160).astype(jnp.bfloat16)
    np.testing.assert_array_equal(attend(x, x, x, "cudnn"), attend(x, x, x, "xla"))


def residuals(module, variables):
    """The bytes that the backward pass keeps of the forward pass, but for its arguments."""

    def loss(context):
        return module.apply(variables, *INPUTS[:2], context).sum()

    with contextlib.redirect_stdout(io.StringIO()) as said:
        print_saved_residuals(loss, INPUTS[2])
    lines = [line for line in said.getvalue().splitlines() if "argument" not in line and "constant" not in line]
    shapes = [line.split("[")[1].split("]")[0] for line in lines]
    return sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)


def test_remat_keeps_less_and_changes_no_gradient():
    modules = {policy: from_config(UNET, remat=policy) for policy in ("none", "dots", "full")}
    variables = drawn(modules["none"])
    kept = {policy: residuals(module, variables) for policy, module in modules.items()}
    assert 4 * kept["full"] < 2 * kept["dots"] < kept["none"]

    def gradient(module):
        loss = lambda context: jnp.square(module.apply(variables, *INPUTS[:2], context)).sum()  # noqa: E731
        return jax.jit(jax.grad(loss), compiler_options=QUICK)(INPUTS[2])

    expected = gradient(modules["none"])
    np.testing.assert_allclose(gradient(modules["full"]), expected, atol=1e-5 * abs(expected).max())


def test_dropout_acts_in_training_alone():
    module = from_config(UNET | {"dropout": 0.5})
    variables = drawn(module)
    run = jax.jit(module.apply, static_argnames="train", compiler_options=QUICK)
    same = run(variables, *INPUTS)
    np.testing.assert_array_equal(same, run(variables, *INPUTS, rngs={"dropout": jax.random.key(0)}))
    dropped = run(variables, *INPUTS, train=True, rngs={"dropout": jax.random.key(0)})
    assert abs(dropped - same).max() > 1e-3


def test_a_unet_in_bfloat16_answers_in_float32_and_nearly_the_same():
    module = from_config(UNET)
    variables = drawn(module)
    expected = jax.jit(module.apply, compiler_options=QUICK)(variables, *INPUTS)
    found = jax.jit(module.clone(dtype=jnp.bfloat16).apply, compiler_options=QUICK)(variables, *INPUTS)
    assert found.dtype == jnp.float32
    # seven bits of mantissa through some thirty layers
    assert 0 < abs(found - expected).max() <= 0.05 * abs(expected).max()


def test_a_unet_says_what_it_is_not_told():
    module, added = from_config(SDXL), Added(normal(2, 12), normal(2, 6))
    like = shapes(module)

    def told(*inputs):
        return lambda: jax.eval_shape(module.apply, like, *inputs)

    assert told(*INPUTS, added)().shape == (2, 8, 8, 4)
    for inputs, message in (
        (INPUTS, "text_embeds and time_ids belong to"),
        ((*INPUTS, added._replace(time_ids=normal(2, 5))), "make 32 numbers, but projection_class.* is 36"),
        ((*INPUTS[:2], normal(2, 5, 15), added), "a text of width 15, but cross_attention_dim is 16"),
    ):
        with pytest.raises(ShapeError, match=message):
            told(*inputs)()


def test_two_encoders_are_put_side_by_side_and_the_last_one_pools():
    states = [TextStates(*(normal(1, 5, width, seed=i) for i in (0, 1)), normal(1, width)) for width in (4, 6)]
    context, added = condition(states, normal(1, 6))
    np.testing.assert_array_equal(context, jnp.concatenate([state.penultimate for state in states], -1))
    np.testing.assert_array_equal(added.text_embeds, states[1].pooled)
    assert condition(states[:1]) == (states[0].last, None)


REFUSED = [(UNET, key, "other") for key in KINDS["UNet2DConditionModel"].fixed]
REFUSED += [(VAE, key, "other") for key in KINDS["AutoencoderKL"].fixed]
REFUSED += [(TEXT, key, 0.5) for key in KINDS["CLIPTextModel"].fixed]
REFUSED += [
    (UNET, "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
    (UNET, "addition_embed_type", "image"),
    (UNET, "addition_embed_type", "text_time"),
    (UNET, "downsample_padding", 2),
    (UNET, "cross_attention_dim", [16, 24]),
    (UNET, "transformer_layers_per_block", [[1, 2], 1]),
    (UNET, "norm_num_groups", None),
    (UNET, "norm_eps", "1e-5"),
    (VAE, "down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
    (VAE, "up_block_types", ["UpDecoderBlock2D"]),
    (TEXT, "hidden_act", "relu"),
]


@pytest.mark.parametrize(("config", "key", "value"), REFUSED, ids=[f"{key} {value}" for _, key, value in REFUSED])
def test_what_is_not_computed_is_refused_by_its_name(config, key, value):
    from_config(config)
    with pytest.raises(ConfigError, match=f"config.json of .*{key}"):
        from_config(config | {key: value})


def test_a_config_is_told_all_that_is_wrong_with_it():
    with pytest.raises(ConfigError) as error:
        from_config(UNET | {"norm_groups": 8, "act_fn": "mish"})
    assert "norm_groups: unknown key, did you mean 'norm_num_groups'?" in str(error.value)
    assert "act_fn 'mish' is not offered, only 'silu'" in str(error.value)
    with pytest.raises(ConfigError, match="'UNet2DModel', no part of Stable Diffusion, did you mean 'UNet2DCond"):
        from_config({"_class_name": "UNet2DModel"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": [32, 32, 32]}, "down_block_types has 2 entries, but there are 3"),
        ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "up_block_types: 'AttnUpBlock2D' is not offered"),
        ({"norm_num_groups": 5}, "describes no UNet that can be built"),
        ({"attention_head_dim": 5}, "5 heads do not divide a width of 32"),
    ],
)
def test_fields_that_do_not_go_together_are_refused_before_anything_is_computed(changes, message):
    with pytest.raises(ConfigError, match=message):
        shapes(from_config(UNET | changes))


FLAX_REFUSED = [
    (UNET, {"norm_num_groups": 16}),
    (UNET, {"norm_eps": 1e-6}),
    (UNET, {"center_input_sample": True}),
    (UNET, {"mid_block_scale_factor": 2.0}),
    (UNET, {"conv_in_kernel": 5}),
    (UNET, {"layers_per_block": [1, 2]}),
    (VAE, {"use_quant_conv": False}),
    (VAE, {"mid_block_add_attention": False}),
]


@pytest.mark.parametrize(("config", "changes"), FLAX_REFUSED, ids=[next(iter(changes)) for _, changes in FLAX_REFUSED])
def test_what_diffusers_flax_classes_compute_wrongly_is_refused_with_advice(config, changes):
    assert refusals(config) == []
    (line,) = refusals(config | changes)
    assert next(iter(changes)) in line
    assert "take the backend 'native'" in line


def test_the_diffusers_backend_refuses_before_it_imports_anything():
    configs = [TEXT], UNET | {"norm_eps": 1e-6, "upcast_attention": True}, VAE
    with pytest.raises(ConfigError) as error:
        build("diffusers", *configs, dtype=jnp.bfloat16, remat="full", attention="cudnn")
    for name in ("norm_eps", "upcast_attention", "remat", "cudnn"):
        assert name in str(error.value)
    assert len(build("native", *configs, dtype=jnp.bfloat16, remat="full", attention="cudnn").text) == 1


def test_an_autoencoder_that_float16_overflows_stays_in_float32():
    images, config = normal(1, 4, 4, 3), VAE | {"mid_block_add_attention": False}
    variables = drawn(from_config(config))

    def mean(dtype, **changes):
        models = build("native", [TEXT], UNET, config | changes, dtype=dtype)
        return jax.jit(models.encode, compiler_options=QUICK)(variables, images)[0]

    exact, upcast = mean(jnp.float32), mean(jnp.float16, force_upcast=True)
    np.testing.assert_array_equal(exact, upcast)
    assert abs(exact - mean(jnp.float16, force_upcast=False)).max() > 0


def test_weights_of_half_precision_are_computed_with_in_single():
    module = from_config(TEXT)
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), drawn(module))
    singles = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halves)
    run = jax.jit(module.apply)
    jax.tree.map(np.testing.assert_array_equal, run(halves, text_ids()), run(singles, text_ids()))
