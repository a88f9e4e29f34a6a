"""The cross-check catches every mistake it is for, and names the place: one mutation of a small network a test."""

from functools import partial

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import thinned
from torch import nn

from interop.engine import flatten, to_flax, unflatten
from interop.layers import Place, attention, batch_norm, conv, dense, embedding, flatten_dense, layer_norm
from interop.parity import crosscheck
from jaxkit.errors import ConfigError
from jaxkit.nn.layers import Conv, Dense
from jaxkit.nn.norms import BatchNorm

pytestmark = pytest.mark.level(1)

TABLE = (
    ("conv{n}", "conv{n}", conv),
    ("bn{n}", "norm{n}", batch_norm),
    ("fc1", "hidden", flatten_dense),
    ("fc2", "head", dense),
)


class TorchNet(nn.Module):
    """Three convolutions, the second of stride 2; a flattened map; two dense layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, 2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 4, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(64, 8), nn.Linear(8, 5)
        for norm in (self.bn1, self.bn2):
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = nn.functional.gelu(self.bn2(self.conv2(x)))
        return self.fc2(torch.relu(self.fc1(torch.relu(self.conv3(x)).flatten(1))))


class FlaxNet(fnn.Module):
    """The same; each field is a mistake that can be made in it."""

    epsilon: float = 1e-5
    momentum: float = 0.1
    padding: int | str = 1
    relu: bool = True
    approximate: bool = False
    stopped: bool = False
    norm: type[fnn.Module] = BatchNorm

    @fnn.compact
    def __call__(self, x, train: bool = False):
        norm = partial(BatchNorm, use_running_average=not train, momentum=self.momentum)
        first = norm if self.norm is BatchNorm else partial(self.norm, use_running_average=not train)
        x = first(name="norm1")(Conv(6, (3, 3), padding=1, name="conv1")(x))
        x = fnn.relu(x) if self.relu else x
        x = fnn.Conv(6, (3, 3), 2, padding=self.padding, use_bias=False, name="conv2")(x)
        x = fnn.gelu(norm(name="norm2", epsilon=self.epsilon)(x), approximate=self.approximate)
        x = jax.lax.stop_gradient(x) if self.stopped else x
        x = fnn.relu(Conv(4, (3, 3), padding=1, name="conv3")(x))
        hidden = fnn.DenseGeneral(8, axis=(1, 2, 3), name="hidden")
        return Dense(5, name="head")(fnn.relu(hidden(x))), {"map": x}


def images(n=4):
    return np.random.default_rng(0).normal(size=(n, 8, 8, 3)).astype(np.float32)


def mistaken(table=TABLE, steps=0, **fields):
    """The report on the network with a mistake in it, or in its table; every mistake must be found."""
    report = crosscheck(TorchNet(), FlaxNet(**fields), table, images(), steps=steps)
    assert not report.passed
    assert report.diagnosis()
    return report


def retabled(name, layout):
    """The table with another layout of one layer's weight."""
    kind = {"weight": Place("params/{}/kernel", layout), "bias": Place("params/{}/bias", "o -> o")}
    return ((name, TABLE[0][1].replace("{n}", name[-1]) if "conv" in name else "hidden", kind), *without(name))


def without(name):
    rest = (("conv1", "conv1", conv), ("conv2", "conv2", conv), ("conv3", "conv3", conv), *TABLE[1:])
    return tuple(row for row in rest if row[0] != name)


@pytest.fixture(scope="module")
def sound():
    return crosscheck(TorchNet(), FlaxNet(), TABLE, images())


def test_a_right_port_passes_with_every_layer_and_every_leaf_compared(sound):
    assert sound.passed
    assert sound.diagnosis() == []
    names = ["conv1", "bn1", "conv2", "bn2", "conv3", "fc1", "fc2"]
    assert [layer.torch for layer in sound.layers] == names
    assert all(layer.entered and layer.local and layer.local_float64 for layer in sound.layers)
    assert {title: len(leaves) for title, leaves in sound.leaves.items()} == {
        "gradients": 13,
        "training gradients": 13,
        "first step": 13,
        "trajectory": 3 + 13 + 4,
    }
    assert sound.unseen == {}
    assert not sound.of_verdict("kink")


def test_without_steps_only_the_forward_pass_is_compared_with_dropout_or_without(tmp_path):
    net = TorchNet()
    net.dropout = nn.Dropout(0.5)
    report = crosscheck(net, FlaxNet(), TABLE, images(), steps=0)
    assert report.passed
    assert (report.leaves, report.losses) == ({}, ([], []))
    assert "losses" not in report.table()
    report.html(tmp_path / "report.html")
    assert "Losses" not in (tmp_path / "report.html").read_text()


def test_alone_in_float64_a_right_layer_has_no_error_but_float64s_own(sound):
    # Some tens of roundings of 1e-16.
    assert max(layer.local_float64.error for layer in sound.layers) < 1e-14


def test_square_kernels_are_blind_and_the_layers_numbers_are_their_evidence(sound):
    assert {"params/conv2/kernel", "params/hidden/kernel"} <= set(sound.blind)
    assert sound.without_evidence == {}


def test_the_losses_of_both_sides_are_reported_step_by_step(sound):
    torch_losses, flax_losses = sound.losses
    assert len(torch_losses) == 3
    assert torch_losses == sorted(torch_losses, reverse=True)
    # Some roundings of float32.
    np.testing.assert_allclose(flax_losses, torch_losses, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("conv2", "o i h w -> w h i o"),
        ("conv2", "o i h w -> h w o i"),
        ("fc1", "o (h w c) -> h w c o"),
        ("fc1", "o (c w h) -> h w c o"),
    ],
)
def test_a_wrong_layout_of_the_right_shape_is_found_in_its_layer(name, layout):
    report = mistaken(retabled(name, layout))
    assert report.first_local.torch == report.first_divergent.torch == name
    assert [layer.torch for layer in report.layers if not layer.right_alone] == [name]
    assert name in report.diagnosis()[0]


@pytest.mark.parametrize(
    ("fields", "name"), [({"epsilon": 1e-3}, "bn2"), ({"epsilon": 1e-6}, "bn2"), ({"padding": "SAME"}, "conv2")]
)
def test_a_layer_that_computes_something_else_is_named(fields, name):
    report = mistaken(**fields)
    assert report.first_local.torch == name
    assert [layer.torch for layer in report.layers if not layer.right_alone] == [name]
    assert name in report.diagnosis()[0]


@pytest.mark.parametrize(
    ("fields", "last", "name"), [({"relu": False}, "bn1", "conv2"), ({"approximate": True}, "bn2", "conv3")]
)
def test_a_mistake_between_layers_is_placed_after_the_last_that_agrees(fields, last, name):
    report = mistaken(**fields)
    assert report.first_local is None
    assert report.first_divergent.torch == name
    assert not report.first_divergent.entered.passed
    sentence = report.diagnosis()[0]
    assert sentence.index(name) < sentence.index(last)
    assert "right itself" in sentence


def test_a_wrong_bias_in_a_deep_layer_is_found_in_that_layer():
    net = TorchNet()
    like = jax.eval_shape(FlaxNet().init, jax.random.key(0), images())
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    leaves = flatten(to_flax(state, TABLE, like))
    leaves["params/conv3/bias"] = leaves["params/conv3/bias"] + np.float32([0, 0, 1e-4, 0])
    report = crosscheck(net, FlaxNet(), TABLE, images(), variables=unflatten(leaves), steps=0)
    assert report.first_local.torch == report.first_divergent.torch == "conv3"
    assert not report.passed


class LowOffset(fnn.Module):
    """A dense layer whose bias, added apart, gets no gradient if ``stopped``."""

    stopped: bool = False

    @fnn.compact
    def __call__(self, x):
        kernel = self.param("kernel", fnn.initializers.zeros, (2, 2))
        bias = self.param("bias", fnn.initializers.zeros, (2,))
        return x @ kernel + (jax.lax.stop_gradient(bias) if self.stopped else bias)


def test_a_small_gradient_that_stops_is_found_beside_a_large_one():
    x = 1e5 * np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    for stopped in (False, True):
        torch.manual_seed(0)
        net = nn.Linear(2, 2)
        report = crosscheck(net, LowOffset(stopped), (("", "", dense),), x, steps=1)
        assert report.passed is not stopped
    sizes = {leaf.name: leaf.difference.max_abs for _, leaf in report.of_verdict("fail")}
    # The kernel's are 1e5 times as large: of them it is less than the tolerance of 1e-4.
    assert report.first_gradient.name == "params/bias"
    assert sizes["params/bias"] > 0


def test_a_gradient_that_stops_is_found_though_the_outputs_agree():
    report = mistaken(stopped=True, steps=1)
    assert report.first_divergent is None
    assert report.final.passed
    assert report.first_gradient.name.startswith("params/norm2/")
    assert "params/norm2/" in report.diagnosis()[0]


@pytest.mark.parametrize(
    ("fields", "leaves"),
    [
        # linen stores the biased variance; at 4 images of 64 values it is 1/256 of a tenth of the way off.
        ({"norm": partial(fnn.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)}, {"norm1/var"}),
        ({"momentum": 0.01}, {"norm1/mean", "norm1/var", "norm2/mean", "norm2/var"}),
    ],
)
def test_wrong_running_statistics_are_found_by_training_alone(fields, leaves):
    report = mistaken(steps=3, **fields)
    failed = report.of_verdict("fail")
    assert {title for title, _ in failed} == {"trajectory"}
    assert {leaf.name for _, leaf in failed} == {f"batch_stats/{leaf}" for leaf in leaves}
    assert "in training" in report.diagnosis()[0]


class NearKink(fnn.Module):
    """Takes what is below the type's rounding for 0: 1e-9 is in float32, not in float64."""

    @fnn.compact
    def __call__(self, x):
        x = fnn.Dense(4, name="fc1")(x)
        x = jnp.where(jnp.abs(x) < jnp.finfo(x.dtype).eps, 0, x)
        return fnn.Dense(3, name="fc2")(fnn.relu(x))


def test_a_gradient_across_a_kink_is_no_failure_but_is_told():
    net = nn.Sequential()
    net.add_module("fc1", nn.Linear(4, 4))
    net.add_module("relu", nn.ReLU())
    net.add_module("fc2", nn.Linear(4, 3))
    with torch.no_grad():
        net.fc1.weight.copy_(torch.eye(4))
        net.fc1.bias.zero_()
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    x[:, 2] = 1e-9
    report = crosscheck(net, NearKink(), (("fc{n}", "fc{n}", dense),), x)
    assert report.passed
    kinks = {leaf.name for title, leaf in report.of_verdict("kink") if title == "training gradients"}
    assert kinks == {"params/fc1/kernel", "params/fc1/bias"}
    assert "kink" in report.table()


class TorchBlock(nn.Module):
    """Tokens through one layer of attention, its projections apart, and one of torch's own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(11, 16)
        self.norm = nn.LayerNorm(16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, "gelu", batch_first=True, norm_first=True)

    def forward(self, tokens):
        x = self.tokens(tokens)
        y = self.norm(x)
        weights = torch.softmax(self.q(y) @ self.k(y).mT / 4, -1)
        return self.layer(x + self.out(weights @ self.v(y)))


class FlaxBlock(fnn.Module):
    epsilon: float = 1e-5

    @fnn.compact
    def __call__(self, tokens):
        norm = partial(fnn.LayerNorm, epsilon=self.epsilon)
        x = fnn.Embed(11, 16, name="tokens")(tokens)
        y = norm(name="norm")(x)
        query, key, value = (fnn.Dense(16, name=name)(y) for name in ("query", "key", "value"))
        x = x + fnn.Dense(16, name="out")(fnn.softmax(query @ key.mT / 4) @ value)
        x = x + fnn.MultiHeadDotProductAttention(4, name="attention")(norm(name="norm1")(x))
        y = fnn.gelu(fnn.Dense(24, name="linear1")(norm(name="norm2")(x)), approximate=False)
        return x + fnn.Dense(16, name="linear2")(y)


BLOCK = (
    ("tokens", "tokens", embedding),
    ("norm", "norm", layer_norm),
    ("q", "query", dense),
    ("k", "key", dense),
    ("v", "value", dense),
    ("out", "out", dense),
    ("layer.self_attn", "attention", attention),
    ("layer.norm{n}", "norm{n}", layer_norm),
    ("layer.linear{n}", "linear{n}", dense),
)


def tokens():
    return np.random.default_rng(0).integers(0, 11, (2, 7))


def test_a_transformer_layer_passes_with_a_table_of_ones_own():
    report = crosscheck(TorchBlock(), FlaxBlock(), BLOCK, tokens())
    assert report.passed
    assert set(report.leaves) == {"training gradients", "first step", "trajectory"}
    assert len(report.layers) == 11
    assert all(layer.local and layer.local_float64 for layer in report.layers)
    assert "params/attention/query/kernel" in report.blind
    assert report.unseen == report.without_evidence == {}


def test_swapped_query_and_key_are_named():
    swapped = {"query": "key", "key": "query"}
    table = tuple((name, swapped.get(path, path), kind) for name, path, kind in BLOCK)
    report = crosscheck(TorchBlock(), FlaxBlock(), table, tokens(), steps=0)
    # Each is right, under the other's name; the first to get what they make together is not.
    assert not report.passed
    assert report.first_local is None
    assert report.first_divergent.torch == "out"
    assert "after v (value)" in report.diagnosis()[0]


def test_swapped_query_and_key_of_a_packed_attention_are_named():
    names = ("key", "query", "value")
    swapped = {
        **attention,
        "in_proj_weight": Place(tuple(f"params/{{}}/{name}/kernel" for name in names), "(s n d) i -> s i n d"),
        "in_proj_bias": Place(tuple(f"params/{{}}/{name}/bias" for name in names), "(s n d) -> s n d"),
    }
    table = tuple((name, path, swapped if kind is attention else kind) for name, path, kind in BLOCK)
    report = crosscheck(TorchBlock(), FlaxBlock(), table, tokens(), steps=0)
    assert not report.passed
    assert report.first_local.torch == report.first_divergent.torch == "layer.self_attn"


def test_the_epsilon_of_linen_is_found_though_it_changes_less_than_float32_may():
    report = crosscheck(TorchBlock(), FlaxBlock(epsilon=1e-6), BLOCK, tokens(), steps=0)
    assert not report.passed
    assert report.first_local.torch == "norm"


class Twice(fnn.Module):
    scale: float = 1.0

    @fnn.compact
    def __call__(self, x):
        layer = fnn.Dense(4, name="fc")
        return layer(self.scale * jnp.tanh(layer(x)))


class TorchTwice(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(torch.tanh(self.fc(x)))


def test_a_layer_called_twice_is_compared_call_by_call():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    table = (("fc", "fc", dense),)
    assert [layer.call for layer in crosscheck(TorchTwice(), Twice(), table, x, steps=0).layers] == [0, 1]
    report = crosscheck(TorchTwice(), Twice(scale=1.01), table, x, steps=0)
    assert report.first_local is None
    assert report.first_divergent.name == "fc (call 2)"


class Stacked(fnn.Module):
    @fnn.compact
    def __call__(self, x):
        scan = fnn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return scan(name="layers")(x, None)[0]


class Layer(fnn.Module):
    @fnn.compact
    def __call__(self, x, _):
        return jnp.tanh(fnn.Dense(4, name="fc")(x)), None


class TorchStacked(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def test_layers_inside_a_scan_are_told_to_have_no_numbers_of_their_own():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    report = crosscheck(TorchStacked(), Stacked(), (("layers.{i}", "layers[i]/fc", dense),), x)
    assert report.passed
    assert report.layers == []
    assert "params/layers/fc/kernel" in report.without_evidence
    assert "no evidence: params/layers/fc/kernel" in report.table()


@pytest.mark.parametrize("dtype", thinned(["bf16", "f16"], ["bf16"]))
def test_a_short_type_is_judged_by_torchs_own_rounding(dtype):
    report = crosscheck(TorchNet(), FlaxNet(), TABLE, images(), dtype=dtype)
    assert report.passed
    # In bfloat16 outputs lie 1e-3 apart and more, a hundred times float32's limit.
    assert report.final.max_abs / report.final.scale > 1e-5
    assert not crosscheck(TorchNet(), FlaxNet(padding="SAME"), TABLE, images(), dtype=dtype, steps=0).passed


def test_neither_module_changes_and_a_second_run_gives_the_same_numbers(sound):
    net = TorchNet()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    again = crosscheck(net, FlaxNet(), TABLE, images())
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert again.json() == sound.json()


def test_the_report_states_precision_versions_and_limits(sound):
    assert sound.setup["jax_default_matmul_precision"] == "highest"
    assert sound.setup["torch_tf32"] is False
    assert {"torch", "jax", "flax"} <= set(sound.setup["versions"])
    assert sound.setup["limits"] == {"forward": 1e-5, "gradients": 1e-4, "training": 1e-5}


def test_what_cannot_be_compared_is_said_before_anything_runs():
    table = (("0", "fc", dense),)
    x = np.zeros((2, 4), np.float32)
    with pytest.raises(ConfigError, match="dtype 'f8' is none of"):
        crosscheck(nn.Linear(4, 4), fnn.Dense(4), table, x, dtype="f8")
    with pytest.raises(ConfigError, match="steps -1"):
        crosscheck(nn.Linear(4, 4), fnn.Dense(4), table, x, steps=-1)
    net = TorchNet()
    net.drop = nn.Dropout(0.1)
    with pytest.raises(ConfigError, match="drop drops out at random"):
        crosscheck(net, FlaxNet(), TABLE, images())
