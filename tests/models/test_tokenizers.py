import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, thinned

from jaxkit.errors import ShapeError
from jaxkit.models.tokenizers import TOKENIZERS, build
from jaxkit.models.tokenizers.tokenizer import in_chunks
from jaxkit.nn.quantizer import settled

pytestmark = pytest.mark.level(1)

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
VQGAN = {
    "resolution": 16,
    "hidden_channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (),
    "z_channels": 4,
    "quantized_embed_dim": 4,
    "num_embeddings": 32,
    "norm_num_groups": 4,
}
TINY = {
    "vqgan": VQGAN,
    "movq": VQGAN,
    "maskgit_vqgan": {
        "hidden_channels": 32,
        "channel_mult": (1, 1),
        "num_res_blocks": 1,
        "z_channels": 4,
        "num_embeddings": 32,
    },
    "paella_vq": {"levels": 1, "bottleneck_blocks": 1, "c_hidden": 8, "codebook_size": 32},
}


def draw(like, seed=0):
    """Values from NumPy: to compile an ``init`` takes longer than to run the network."""
    rng = np.random.default_rng(seed)

    def leaf(path, leaf):
        values = rng.uniform(0.5, 2, leaf.shape) if path[-1].key == "var" else rng.normal(0, 0.3, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map_with_path(leaf, like)


def pictures(n=2, height=8, width=12):
    return jnp.asarray(np.random.default_rng(1).uniform(size=(n, height, width, 3)), jnp.float32)


def shapes(model, side=16):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


def made(name, **fields):
    model = build(name, **{**TINY[name], **fields})
    return model, draw(shapes(model))


def quick(f, *arguments):
    return jax.jit(f, compiler_options=QUICK)(*arguments)


def test_the_256_pixel_vqgan_of_amused_has_146244675_parameters():
    model = build(
        "vqgan",
        channel_mult=(1, 2, 2, 4, 6),
        attn_resolutions=(),
        no_attn_mid_block=True,
        z_channels=64,
        quantized_embed_dim=64,
        num_embeddings=8192,
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(model))) == 146_244_675


def test_a_tokenizer_is_imported_when_it_is_built():
    code = "import sys; import jaxkit.models.tokenizers; print('flax' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert finished.stdout.strip() == "False"


def test_the_lists_of_a_config_build_a_module_that_is_hashable():
    lists = build(
        "vqgan", **{field: list(value) if isinstance(value, tuple) else value for field, value in VQGAN.items()}
    )
    assert lists == build("vqgan", **VQGAN)
    assert hash(lists) == hash(build("vqgan", **VQGAN))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_five_methods_agree_on_a_grid_that_is_no_square(name):
    model, variables = made(name)
    images = pictures()

    def run(variables, images):
        z_q, tokens = model.apply(variables, images, method="encode")
        return (
            tokens,
            model.apply(variables, images, method="get_code"),
            model.apply(variables, images, 0.5, method="get_soft_code"),
            model.apply(variables, z_q, method="decode"),
            model.apply(variables, tokens, method="decode_code"),
            model.apply(variables, images),
        )

    tokens, codes, (soft, hard), decoded, decoded_code, whole = quick(run, variables, images)
    assert tokens.shape == (2, 4, 6)
    assert tokens.dtype == codes.dtype == hard.dtype == jnp.int32
    for others in (codes, hard, soft.argmax(-1), whole.tokens):
        assert np.array_equal(tokens, others)
    np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-5)
    assert decoded.shape == images.shape
    # the same sums, fused otherwise; straight-through adds the latents and takes them off again
    np.testing.assert_allclose(decoded, decoded_code, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole.images, decoded_code, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_images_that_no_grid_covers_are_refused(name):
    model, variables = made(name)
    with pytest.raises(ShapeError, match="images of 8 x 11 pixels cannot be cut into tokens of 2 x 2"):
        model.apply(variables, pictures(width=11), method="get_code")


def test_a_key_draws_tokens():
    model, variables = made("vqgan")
    images = pictures()
    soft, tokens = quick(
        lambda v, x: model.apply(v, x, 1e3, jax.random.key(0), method="get_soft_code"), variables, images
    )
    assert (tokens != soft.argmax(-1)).any()
    assert ((tokens >= 0) & (tokens < 32)).all()


@pytest.mark.parametrize("n", thinned([1, 2, 5, 7], [2]))
def test_chunks_give_what_the_whole_batch_gives(n):
    model, variables = made("vqgan")
    images = pictures(5)

    def both(f, x):
        return quick(f, x), quick(lambda x: in_chunks(f, x, n), x)

    whole, chunked = both(lambda x: model.apply(variables, x, method="encode"), images)
    assert np.array_equal(whole[1], chunked[1])
    assert np.array_equal(whole[0], chunked[0])
    decoded, chunked = both(lambda t: model.apply(variables, t, method="decode_code"), whole[1])
    # the same sums, in an order that XLA chooses by the batch
    np.testing.assert_allclose(chunked, decoded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_gradient_of_images_reaches_the_encoder_and_not_the_codebook(name):
    model, variables = made(name)
    images = pictures()

    def loss(params):
        return (model.apply({**variables, "params": params}, images).images ** 2).mean()

    gradients = quick(jax.grad(loss), variables["params"])
    assert not gradients["quantize"]["embedding"].any()
    assert all(
        leaf.any() for leaf in jax.tree.leaves(gradients["encoder"]["conv_in" if name != "paella_vq" else "in_block"])
    )
    node = gradients
    for key in model.last_layer:
        node = node[key]
    assert node.shape[-1] in (3, 12)
    assert node.any()


def test_remat_changes_no_gradient():
    images = pictures(1, 4, 4)

    def gradients(**fields):
        model, variables = made("movq", channel_mult=(1,), attn_resolutions=(16,), dropout=0.2, **fields)

        def loss(params):
            rngs = {"dropout": jax.random.key(0)}
            return model.apply({"params": params}, images, train=True, rngs=rngs).images.sum()

        return quick(jax.grad(loss), variables["params"])

    plain, again = gradients(), gradients(remat=True)
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        # the same sums, fused otherwise
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * abs(a).max() + 1e-4)


@pytest.mark.parametrize("name", ["vqgan", "maskgit_vqgan"])
def test_dropout_drops_in_training_alone(name):
    plain, variables = made(name)
    model, _ = made(name, dropout=0.5)
    images = pictures()

    def run(model, train, seed):
        return model.apply(variables, images, train=train, rngs={"dropout": jax.random.key(seed)}).latents

    expected, still, one, other = quick(
        lambda: (run(plain, False, 0), run(model, False, 0), run(model, True, 0), run(model, True, 1))
    )
    np.testing.assert_allclose(still, expected, rtol=1e-5, atol=1e-5)
    assert abs(one - other).max() > 0.1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bfloat16_arithmetic_keeps_float32_outside(name):
    model, variables = made(name)
    half = model.clone(dtype=jnp.bfloat16)
    assert jax.tree.map(jnp.shape, shapes(half)) == jax.tree.map(jnp.shape, shapes(model))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes(half)))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (1, 3, 4)))

    def run(variables):
        return [m.apply(variables, tokens, method="decode_code") for m in (model, half)]

    exact, rough = quick(run, variables)
    assert rough.dtype == jnp.float32
    # eight bits, through some ten layers
    error = abs(exact - rough).max() / abs(exact).max()
    assert 1e-5 < error < 0.1
    soft, found = quick(lambda v: half.apply(v, pictures(), method="get_soft_code"), variables)
    assert soft.dtype == jnp.float32
    assert np.array_equal(found, soft.argmax(-1))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_moving_average_codebook_moves_in_training_and_settles_into_the_plain_model(name):
    model, _ = made(name, codebook_decay=0.5)
    plain, _ = made(name)
    variables = draw(shapes(model))
    assert "quantize" not in variables["params"]
    variables["codebook"]["quantize"]["sizes"] = jnp.ones(32)
    images = pictures()

    def step(variables):
        found, moved = model.apply(variables, images, train=True, mutable=["codebook", "batch_stats"])
        _, still = model.apply(variables, images, mutable=["codebook"])
        return found, moved, still, {**variables, **moved}

    found, moved, still, variables_after = quick(step, variables)
    before, after = variables["codebook"]["quantize"], moved["codebook"]["quantize"]
    assert np.array_equal(still["codebook"]["quantize"]["embedding"], before["embedding"])
    used = np.unique(found.tokens)
    assert (abs(after["embedding"] - before["embedding"])[used].max(-1) > 1e-3).all()
    np.testing.assert_allclose(after["sizes"].sum(), 0.5 * 32 + 0.5 * found.tokens.size, rtol=1e-5)

    frozen = settled(variables_after)
    assert jax.tree.map(jnp.shape, frozen) == jax.tree.map(jnp.shape, shapes(plain))
    tokens, expected = quick(
        lambda a, b: (plain.apply(a, images, method="get_code"), model.apply(b, images, method="get_code")),
        frozen,
        variables_after,
    )
    assert np.array_equal(tokens, expected)


def test_a_token_beyond_the_codebook_is_seen():
    model, variables = made("vqgan")
    tokens = jnp.zeros((2, 3, 4), jnp.int32).at[1, 0, 0].set(32)
    images = quick(lambda v, t: model.apply(v, t, method="decode_code"), variables, tokens)
    assert np.isfinite(images[0]).all()
    assert np.isnan(images[1]).any()
