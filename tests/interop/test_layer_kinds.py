"""Every layer kind against torch: the same numbers come out, and the weights come back as they were."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from flax import linen as nn

from interop import layers
from interop.engine import flatten, plan_to_flax, to_flax, to_torch
from interop.layers import Dropped, Filled, Place, Tied
from interop.layout import contiguous, parse, spec
from interop.problems import WeightsError

NORM = torch.nn.utils.parametrizations.weight_norm


class WeightNormed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(4, name="dense"), name="norm")(x)


# kind -> torch layer, Flax layer, shape of one channels-last input. Sizes differ wherever the layer lets them.
KINDS = {
    "dense": (torch.nn.Linear(3, 5), nn.Dense(5), (3,)),
    "conv1d": (torch.nn.Conv1d(4, 6, 3, padding=1), nn.Conv(6, (3,), padding=1), (8, 4)),
    "conv": (
        torch.nn.Conv2d(4, 6, (3, 5), padding=1, groups=2),
        nn.Conv(6, (3, 5), padding=1, feature_group_count=2),
        (8, 7, 4),
    ),
    "conv3d": (torch.nn.Conv3d(2, 3, (4, 5, 6)), nn.Conv(3, (4, 5, 6), padding=0), (7, 8, 9, 2)),
    "conv_transpose1d": (
        torch.nn.ConvTranspose1d(4, 4, 4, 2, 1),
        nn.ConvTranspose(4, (4,), (2,), padding=((2, 2),), transpose_kernel=True),
        (5, 4),
    ),
    "conv_transpose": (
        torch.nn.ConvTranspose2d(4, 4, 4, 2, 1),
        nn.ConvTranspose(4, (4, 4), (2, 2), padding=((2, 2), (2, 2)), transpose_kernel=True),
        (5, 6, 4),
    ),
    "conv_transpose3d": (
        torch.nn.ConvTranspose3d(3, 3, 4, 2, 1),
        nn.ConvTranspose(3, (4,) * 3, (2,) * 3, padding=((2, 2),) * 3, transpose_kernel=True),
        (3, 4, 5, 3),
    ),
    "conv_transpose_flipped": (
        torch.nn.ConvTranspose2d(4, 4, 4, 2, 1),
        nn.ConvTranspose(4, (4, 4), (2, 2), padding=((2, 2), (2, 2))),
        (5, 6, 4),
    ),
    "layer_norm": (torch.nn.LayerNorm(5), nn.LayerNorm(epsilon=1e-5), (3, 5)),
    "group_norm": (torch.nn.GroupNorm(2, 6), nn.GroupNorm(2, epsilon=1e-5), (4, 5, 6)),
    "instance_norm": (torch.nn.InstanceNorm2d(3, affine=True), nn.InstanceNorm(epsilon=1e-5), (4, 5, 3)),
    "batch_norm": (torch.nn.BatchNorm2d(3), nn.BatchNorm(use_running_average=True, epsilon=1e-5), (4, 5, 3)),
    "rms_norm": (torch.nn.RMSNorm(5, eps=1e-6), nn.RMSNorm(), (3, 5)),
}


def randomized(net, seed=0):
    rng = torch.Generator().manual_seed(seed)
    state = {
        key: torch.rand(value.shape, generator=rng) + 0.5 if value.is_floating_point() else value
        for key, value in net.state_dict().items()
    }
    net.load_state_dict(state)
    return net.eval()


def arrays(net):
    return {key: value.numpy() for key, value in net.state_dict().items()}


def check(table, net, module, inputs, expected, tolerance=2e-6):
    """Converts, compares the outputs, converts back and compares the bytes."""
    like = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    variables = to_flax(arrays(net), table, like)
    with jax.default_matmul_precision("highest"):
        output = module.apply(variables, *inputs)
    np.testing.assert_allclose(output, expected, rtol=0, atol=tolerance * abs(expected).max())
    back = to_torch(variables, table)
    assert {key: array.tobytes() for key, array in back.items()} == {
        key: array.tobytes() for key, array in arrays(net).items()
    }
    return variables


@pytest.mark.parametrize("name", KINDS)
def test_a_converted_layer_computes_what_torch_does_and_returns_every_bit(name):
    net, layer, shape = KINDS[name]
    module = nn.Sequential([layer])
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    channels_first = "norm" not in name or name in ("group_norm", "instance_norm", "batch_norm")
    moved = rearrange(x, "b ... c -> b c ...") if channels_first else x
    expected = randomized(net)(torch.from_numpy(moved.copy())).detach().numpy()
    expected = rearrange(expected, "b c ... -> b ... c") if channels_first else expected
    # A float32 sum of some hundred products in another order.
    check((("", "layers_0", getattr(layers, name)),), net, module, (jnp.asarray(x),), expected)


def test_an_embedding_is_looked_up_as_in_torch():
    net, tokens = randomized(torch.nn.Embedding(5, 3)), np.array([[0, 4, 2]])
    expected = net(torch.from_numpy(tokens)).detach().numpy()
    module = nn.Sequential([nn.Embed(5, 3)])
    check((("", "layers_0", layers.embedding),), net, module, (jnp.asarray(tokens),), expected, tolerance=0)


@pytest.mark.parametrize(
    ("kind", "widths"), [("attention", {}), ("attention_apart", {"kdim": 6, "vdim": 10})], ids=["packed", "apart"]
)
def test_attention_is_converted_to_linens_heads(kind, widths):
    net = randomized(torch.nn.MultiheadAttention(8, 2, batch_first=True, **widths))
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 3, 8)).astype(np.float32)
    key = rng.normal(size=(2, 5, widths.get("kdim", 8))).astype(np.float32)
    value = rng.normal(size=(2, 5, widths.get("vdim", 8))).astype(np.float32)
    expected, _ = net(*map(torch.from_numpy, (query, key, value)))
    module = nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=8)
    inputs = tuple(map(jnp.asarray, (query, key, value)))
    check((("", "", getattr(layers, kind)),), net, module, inputs, expected.detach().numpy())


class FusedHeads(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.DenseGeneral((3, 2, 4), name="qkv")(x)


def test_fused_and_joined_projections_lie_alike():
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    fused = randomized(torch.nn.Linear(8, 24))
    expected = rearrange(fused(torch.from_numpy(x)).detach().numpy(), "b (s n d) -> b s n d", s=3, n=2)
    one = check((("", "qkv", layers.fused_qkv),), fused, FusedHeads(), (jnp.asarray(x),), expected)

    apart = torch.nn.ModuleDict({f"{name}_proj": torch.nn.Linear(8, 8) for name in "qkv"})
    for part, name in enumerate("qkv"):
        for leaf in ("weight", "bias"):
            rows = getattr(fused, leaf).detach()[8 * part : 8 * part + 8]
            apart.load_state_dict({f"{name}_proj.{leaf}": rows}, strict=False)
    other = check((("", "qkv", layers.joined_qkv),), apart, FusedHeads(), (jnp.asarray(x),), expected)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    "names", [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")]
)
def test_weight_norm_keeps_its_pair(names):
    net = torch.nn.Linear(3, 4)
    with warnings.catch_warnings():
        # torch deprecates the older of the two forms, in which most weights are published.
        warnings.simplefilter("ignore", FutureWarning)
        net = randomized(NORM(net) if "." in names[0] else torch.nn.utils.weight_norm(net))
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    table = (("", "dense", layers.weight_norm("o i -> i o", "norm/dense/kernel/scale", *names)),)
    check(table, net, WeightNormed(), (jnp.asarray(x),), net(torch.from_numpy(x)).detach().numpy())


@pytest.mark.parametrize(
    ("net", "cell", "kind"),
    [(torch.nn.LSTM, nn.OptimizedLSTMCell, layers.lstm), (torch.nn.GRU, nn.GRUCell, layers.gru)],
    ids=["lstm", "gru"],
)
def test_gates_are_split_and_biases_summed_to_the_same_function_both_ways(net, cell, kind):
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.RNN(cell(5, name="layer1"))(nn.RNN(cell(5, name="layer0"))(x))

    net, x = randomized(net(3, 5, num_layers=2, batch_first=True)), np.random.default_rng(0).normal(size=(2, 4, 3))
    x, table = x.astype(np.float32), (("", "layer{layer}", kind),)
    expected = net(torch.from_numpy(x))[0].detach()
    like = jax.eval_shape(Stack().init, jax.random.key(0), jnp.asarray(x))
    variables = to_flax(arrays(net), table, like)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(Stack().apply(variables, jnp.asarray(x)), expected, atol=2e-6)

    back = to_torch(variables, table)
    net.load_state_dict({key: torch.from_numpy(array) for key, array in back.items()}, strict=True)
    # Sums of two biases in another order.
    np.testing.assert_allclose(net(torch.from_numpy(x))[0].detach(), expected, atol=2e-6)
    again = to_flax(back, table, like)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_a_recurrent_row_without_a_number_is_of_the_first_layer():
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    net, model = randomized(torch.nn.LSTM(3, 5, batch_first=True)), nn.RNN(nn.OptimizedLSTMCell(5, name="cell"))
    table, like = (("", "cell", layers.lstm),), jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(x))
    variables = to_flax(arrays(net), table, like)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(
            model.apply(variables, jnp.asarray(x)), net(torch.from_numpy(x))[0].detach(), atol=2e-6
        )
    assert set(to_torch(variables, table)) == set(net.state_dict())
    with pytest.raises(WeightsError, match="weight_ih_l1"):
        to_flax(arrays(torch.nn.LSTM(3, 5, num_layers=2)), table, like)


LIKE = {"params": {"blocks": {"fc": {"kernel": np.zeros((3, 4, 5)), "bias": np.zeros((3, 5))}}}}
STACKED = (("h.{layer}.fc", "blocks[layer]/fc", layers.dense),)


def stacked_state(n=3):
    rng = np.random.default_rng(0)
    return {
        f"h.{i}.fc.{name}": rng.normal(size=shape)
        for i in range(n)
        for name, shape in (("weight", (5, 4)), ("bias", (5,)))
    }


def test_layers_of_a_scan_are_stacked_in_the_order_of_their_numbers():
    state = dict(reversed(stacked_state().items()))
    variables = flatten(to_flax(state, STACKED, LIKE))
    for i in range(3):
        np.testing.assert_array_equal(variables["params/blocks/fc/kernel"][i], state[f"h.{i}.fc.weight"].T)
    back = to_torch(
        {"params": {"blocks": {"fc": {k: variables[f"params/blocks/fc/{k}"] for k in ("kernel", "bias")}}}}, STACKED
    )
    assert {key: array.tobytes() for key, array in back.items()} == {
        key: array.tobytes() for key, array in state.items()
    }


def test_a_layer_absent_from_a_scan_is_missing_by_name():
    state = stacked_state()
    del state["h.1.fc.weight"]
    with pytest.raises(WeightsError) as caught:
        to_flax(state, STACKED, LIKE)
    assert caught.value.problems.missing == ["h.1.fc.weight"]


def test_as_many_layers_as_the_scan_has_are_demanded():
    with pytest.raises(WeightsError, match="misshapen"):
        to_flax(stacked_state(2), STACKED, LIKE)


TIED = (("emb", "emb", layers.embedding), ("head", "", {"weight": Tied("emb.weight")}))


def test_a_tied_leaf_may_be_given_or_not_and_comes_back_as_a_copy():
    table, like = np.arange(6.0).reshape(3, 2), {"params": {"emb": {"embedding": np.zeros((3, 2))}}}
    for state in ({"emb.weight": table}, {"emb.weight": table, "head.weight": table.copy()}):
        back = to_torch(to_flax(state, TIED, like), TIED)
        assert set(back) == {"emb.weight", "head.weight"}
        np.testing.assert_array_equal(back["head.weight"], table)
        assert not np.shares_memory(back["head.weight"], back["emb.weight"])


def test_tied_leaves_that_differ_are_refused():
    state, like = (
        {"emb.weight": np.zeros((3, 2)), "head.weight": np.ones((3, 2))},
        {"params": {"emb": {"embedding": np.zeros((3, 2))}}},
    )
    with pytest.raises(WeightsError, match=r"head.weight and emb.weight are tied, but differ"):
        to_flax(state, TIED, like)


def test_a_flax_leaf_without_counterpart_is_filled_and_left_out_on_the_way_back():
    table = (("fc", "fc", layers.dense), ("", "fc", {"": Filled("usage/{}/count", "torch counts nothing", 2.0)}))
    like = {
        "params": {"fc": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}},
        "usage": {"fc": {"count": np.zeros(4, np.float32)}},
    }
    state = {"fc.weight": np.ones((3, 2)), "fc.bias": np.ones(3)}
    variables = to_flax(state, table, like)
    np.testing.assert_array_equal(variables["usage"]["fc"]["count"], np.full(4, 2, np.float32))
    assert set(to_torch(variables, table)) == set(state)


def test_a_dropped_leaf_without_refill_stays_away():
    table = (("fc", "fc", {**layers.dense, "position_ids": Dropped("counted anew")}),)
    like = {"params": {"fc": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}}
    state = {"fc.weight": np.ones((3, 2)), "fc.bias": np.ones(3), "fc.position_ids": np.arange(3)}
    assert set(to_torch(to_flax(state, table, like), table)) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("shape", "doubt"),
    [
        ((6, 4, 5, 3), None),
        ((6, 4, 3, 3), "h = w = 3"),
        ((4, 4, 1, 1), "o = i = 4"),
        ((4, 1, 1, 1), None),
    ],
)
def test_kernels_whose_shape_cannot_tell_a_wrong_layout_are_flagged(shape, doubt):
    o, i, h, w = shape
    plan = plan_to_flax(
        {"c.weight": spec(np.zeros(shape))},
        (("c", "c", layers.conv),),
        {"params": {"c": {"kernel": np.zeros((h, w, i, o))}}},
    )
    assert [move.blindness() for move in plan.moves] == [doubt]


def test_a_flattened_axis_and_equal_leaves_are_always_flagged():
    like = {"params": {"d": {"kernel": np.zeros((2, 3, 4, 5))}}}
    plan = plan_to_flax({"d.weight": spec(np.zeros((5, 24)))}, (("d", "d", layers.flatten_dense),), like)
    assert plan.moves[0].blindness() == "the order of c, h, w within one axis"
    names = [f"params/{name}/kernel" for name in ("query", "key", "value")]
    like = {"params": {name: {"kernel": np.zeros((5, 2, 4))} for name in ("query", "key", "value")}}
    table = (("", "", {"w": Place(tuple(names), "(s n d) i -> s i n d")}),)
    assert plan_to_flax({"w": spec(np.zeros((24, 5)))}, table, like).moves[0].blindness() == "3 leaves of one shape"


@pytest.mark.parametrize("shape", [(600, 700), (300, 40, 3, 3), (3, 3, 200, 300), (2, 600, 500), (5,), (), (0, 3)])
def test_a_copy_of_a_view_is_contiguous_and_equal_however_it_is_cut_into_tiles(shape):
    rng = np.random.default_rng(0)
    array = rng.normal(size=shape)
    for axes in {tuple(rng.permutation(len(shape))) for _ in range(6)}:
        for view in (array.transpose(axes), np.flip(array.transpose(axes))):
            copied = contiguous(view)
            assert copied.flags.c_contiguous
            assert not np.shares_memory(copied, array) or not copied.size
            np.testing.assert_array_equal(copied, view)


def test_alike_layers_share_a_line_of_the_message():
    state = stacked_state() | {f"h.{i}.norm.weight": np.zeros(5) for i in range(12)}
    with pytest.raises(WeightsError, match=r"unexpected  h\.\{0\.\.\.11\}\.norm\.weight \(x12\)"):
        to_flax(state, STACKED, LIKE)


def test_a_reversed_axis_leads_back():
    layout, x = parse("i o h w -> -h -w i o"), np.arange(120).reshape(2, 3, 4, 5)
    sizes = layout.sizes(x.shape, {})
    moved = layout.apply(x, sizes)
    assert moved[0, 0, 1, 2] == x[1, 2, 3, 4]
    np.testing.assert_array_equal(layout.inverse.apply(moved, sizes), x)
