import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.tree_util import keystr, tree_leaves_with_path

from jaxkit.errors import ConfigError
from jaxkit.models.masked.bert import maskgit_bert_tiny
from jaxkit.models.masked.transformer import maskgit_transformer_tiny
from jaxkit.nn.adapters import ATTENTION, FEED_FORWARD, QUERY_KEY_VALUE, lora_applied, lora_init, lora_merge

pytestmark = pytest.mark.level(1)

TOKENS = jnp.arange(16).reshape(1, 4, 4)
MODEL = maskgit_transformer_tiny(use_normformer=False)
# a program that runs once: XLA's cheapest code is ready soonest
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), TOKENS)["params"]


def adapters_of(params, *match, rank=3):
    return lora_init(jax.random.key(1), params, match or (ATTENTION, FEED_FORWARD), rank)


def perturbed(adapters):
    return jax.tree.map(lambda leaf: leaf + 0.1, adapters)


def test_fresh_adapters_change_nothing(params):
    merged = lora_merge(params, adapters_of(params), scale=2.0)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_every_kernel_of_attention_and_feed_forward_gets_an_adapter_and_no_other(params):
    adapters = adapters_of(params)
    names = {keystr(path, simple=True, separator="/").rpartition("/")[0] for path, _ in tree_leaves_with_path(adapters)}
    parts = [f"attention/{part}" for part in ("query", "key", "value", "out")]
    parts += [f"ffn/{part}" for part in ("wi_0", "wi_1", "wo")]
    assert names == {f"transformer_layers_{i}/{part}/kernel" for i in range(2) for part in parts}

    bert = maskgit_bert_tiny()
    shapes = jax.eval_shape(lambda: bert.init(jax.random.key(0), TOKENS))["params"]
    assert len(jax.tree.leaves(adapters_of(shapes))) == 2 * 2 * 6


@pytest.mark.parametrize(("part", "inputs"), [("query", 1), ("out", 2)])
def test_an_adapter_adds_the_product_of_its_matrices_whichever_axes_are_inputs(params, part, inputs):
    adapters = perturbed(adapters_of(params, f"layers_1/attention/{part}"))
    old, new = (
        tree["transformer_layers_1"]["attention"][part]["kernel"]
        for tree in (params, lora_merge(params, adapters, scale=0.5))
    )
    down, up = (adapters["transformer_layers_1"]["attention"][part]["kernel"][name] for name in ("down", "up"))
    assert down.shape == (*old.shape[:inputs], 3)
    assert up.shape == (3, *old.shape[inputs:])
    matrix = (new - old).reshape(24, 24)
    np.testing.assert_allclose(matrix, 0.5 * down.reshape(24, 3) @ up.reshape(3, 24), atol=1e-6)


def test_only_adapters_receive_a_gradient_and_half_of_them_at_first(params):
    def loss(adapters):
        return jnp.square(MODEL.apply({"params": lora_merge(params, adapters, 1.0)}, TOKENS)).sum()

    gradients = jax.jit(jax.grad(loss))(adapters_of(params))
    for path, leaf in tree_leaves_with_path(gradients):
        # down is multiplied by up, which is zero
        assert (abs(leaf).max() > 0) == (path[-1].key == "up")


@pytest.mark.parametrize("remat", [False, True])
def test_layers_that_add_what_adapters_make_compute_what_merged_kernels_do(params, remat):
    model = MODEL.clone(remat=remat)
    weights = jnp.arange(72.0) / 72

    def merged(adapters):
        return (model.apply({"params": lora_merge(params, adapters, 0.5)}, TOKENS) * weights).sum()

    def beside(adapters):
        with lora_applied(adapters, 0.5):
            return (model.apply({"params": params}, TOKENS) * weights).sum()

    adapters = perturbed(adapters_of(params))
    with jax.default_matmul_precision("highest"):
        (one, slope), (other, same) = (
            jax.jit(jax.value_and_grad(f), compiler_options=QUICK)(adapters) for f in (merged, beside)
        )
    # float32, the products in another order
    np.testing.assert_allclose(other, one, rtol=1e-5)
    steepest = max(abs(leaf).max() for leaf in jax.tree.leaves(slope))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * steepest), slope, same)


def test_dropout_takes_whole_entries_of_an_adapters_input_and_scales_the_rest_up():
    layer, x = nn.Dense(400, use_bias=False), jnp.ones((5, 400))
    adapters = {"kernel": {"down": jnp.eye(400), "up": jnp.eye(400)}}
    with lora_applied(adapters, 1.0, dropout_rate=0.2):
        given = {"params": {"kernel": jnp.zeros((400, 400))}}
        trained = layer.apply(given, x, rngs={"dropout": jax.random.key(0)})
        evaluated = layer.apply(given, x)
    np.testing.assert_array_equal(evaluated, x)
    # 2000 draws of probability 0.8: a deviation is 0.009
    assert (trained > 0).mean() == pytest.approx(0.8, abs=0.03)
    np.testing.assert_allclose(trained[trained > 0], 1.25, rtol=1e-6)
    assert not (trained[0] == trained[1]).all()


def test_the_layer_after_attention_is_left_out_where_it_is_not_asked_for(params):
    adapters = adapters_of(params, QUERY_KEY_VALUE)
    assert adapters["transformer_layers_0"]["attention"].keys() == {"query", "key", "value"}


def test_down_is_uniform_within_the_root_of_the_inputs(params):
    adapters = adapters_of(params, "ffn/wo", rank=20)
    down = adapters["transformer_layers_0"]["ffn"]["wo"]["kernel"]["down"]
    bound = 1 / np.sqrt(40)
    assert 0.95 * bound < abs(down).max() <= bound


@pytest.mark.parametrize(
    ("match", "rank", "message"),
    [
        (("atention",), 3, "no parameter's path has a match of 'atention'"),
        (("attn_layer_norm/scale",), 3, "is no kernel"),
        ((ATTENTION,), 0, "a rank of 0"),
    ],
)
def test_what_cannot_be_adapted_is_refused(params, match, rank, message):
    with pytest.raises(ConfigError, match=message):
        lora_init(jax.random.key(0), params, match, rank)


def test_an_adapter_without_its_kernel_is_refused(params):
    adapters = adapters_of(params)
    adapters["transformer_layers_7"] = adapters.pop("transformer_layers_1")
    with pytest.raises(ConfigError, match="transformer_layers_7/attention/key/kernel, which the network has not"):
        lora_merge(params, adapters, 1.0)


def test_an_adapter_of_another_shape_than_its_kernel_is_refused(params):
    adapters = adapters_of(params, "layers_0/ffn/wo")
    pair = adapters["transformer_layers_0"]["ffn"]["wo"]["kernel"]
    pair["up"] = pair["up"][:, :1]
    with pytest.raises(ConfigError, match=r"ffn/wo/kernel is of shape \(40, 1\), and the kernel of \(40, 24\)"):
        lora_merge(params, adapters, 1.0)
