import json
import math
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, script
from flax import linen as nn

from jaxkit import profile as profiling
from jaxkit.costs import Cost, Profile, Seconds
from jaxkit.errors import ConfigError, UserError
from jaxkit.macs import macs
from jaxkit.models import build
from jaxkit.profile import profile, profile_model
from jaxkit.recorder import Recorder, record

pytestmark = pytest.mark.level(1)

# Millions of multiply-accumulates of convolutions and dense layers, an image of 32 x 32 pixels, as published.
PUBLISHED = {
    100: {
        "cnn": 10.6,
        "alexnet_tfkd": 15.0,
        "shufflenet_v2_x1_0_tfkd": 43.7,
        "resnet18_cifar": 555,
        "densenet121_tfkd": 888,
        "resnet50_cifar": 1298,
        "googlenet_tfkd": 1522,
        "resnet101_cifar": 2510,
    },
    10: {"resnet20": 40.8, "resnet32": 69.1, "resnet110": 253},
}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


class Attention(nn.Module):
    """Heads of width 4 by einsum, with no module around the two products, and a class token."""

    @nn.compact
    def __call__(self, x):
        token = self.param("token", nn.initializers.normal(), (1, 1, x.shape[-1]))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        q, k, v = (nn.DenseGeneral((2, 4), name=name)(x) for name in "qkv")
        weights = nn.softmax(jnp.einsum("b n h d, b m h d -> b h n m", q, k))
        return nn.DenseGeneral(8, axis=(-2, -1), name="out")(jnp.einsum("b h n m, b m h d -> b n h d", weights, v))


class Stack(nn.Module):
    """One dense layer after another, ``length`` times, as a scan; then one used twice."""

    length: int = 5

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.length)
        x, _ = scan(name="scan")(x, None)
        again = nn.Dense(8, name="again")
        return again(nn.relu(again(x)))


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(8, name="dense")(x)), None


def applied(model, *inputs, **options):
    variables = model.init(jax.random.key(0), *inputs)
    return variables, partial(model.apply, variables, *inputs, **options)


@pytest.mark.parametrize(("classes", "name"), [(c, name) for c, names in PUBLISHED.items() for name in names])
def test_multiply_accumulates_are_the_published_ones(classes, name):
    model = build(name, num_classes=classes)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    expected = PUBLISHED[classes][name]
    # published to the last digit given
    assert abs(macs(model.apply, variables, image) / 1e6 - expected) <= (0.05 if expected < 100 else 0.5)


def test_grouped_depthwise_dilated_and_transposed_convolutions_count_by_their_kernels():
    def conv(groups=1, **options):
        return partial(
            jax.lax.conv_general_dilated,
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
            **options,
        )

    x, plain = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 6, 12))
    assert macs(conv(window_strides=(1, 1)), x, plain) == 2 * 64 * 9 * 6 * 12
    assert macs(conv(window_strides=(2, 2)), x, plain) == 2 * 16 * 9 * 6 * 12
    assert macs(conv(window_strides=(1, 1), rhs_dilation=(2, 2)), x, plain) == 2 * 64 * 9 * 6 * 12
    assert macs(conv(window_strides=(1, 1), groups=3), x, jnp.zeros((3, 3, 2, 12))) == 2 * 64 * 9 * 2 * 12
    assert macs(conv(window_strides=(1, 1), groups=6), x, jnp.zeros((3, 3, 1, 6))) == 2 * 64 * 9 * 6
    transposed = partial(jax.lax.conv_transpose, strides=(2, 2), padding="SAME")
    assert macs(transposed, x, jnp.zeros((4, 4, 6, 12))) == 2 * 64 * 16 * 6 * 12


def test_a_convolution_has_twice_its_multiply_accumulates_in_its_gradients():
    x, kernel = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 6, 12))

    def loss(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).sum()

    # with respect to the input, and to the kernel; the forward pass of a sum is not needed
    assert macs(jax.grad(loss, (0, 1)), x, kernel) == 3 * macs(loss, x, kernel)


def test_loops_and_branches_are_counted_as_often_as_they_run():
    def product(x):
        return x @ x

    def scanned(x):
        return jax.lax.scan(lambda x, _: (jax.jit(product)(x), None), x, length=7)[0]

    def nested(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: jax.checkpoint(scanned)(x), x)

    def branch(x):
        return jax.lax.cond(x.sum() > 0, lambda x: product(product(x)), product, x)

    def batched(x):
        return jax.vmap(product)(jnp.stack([x, x, x]))

    def endless(x):
        return jax.lax.while_loop(lambda x: x.sum() < 1, product, x)

    x = jnp.zeros((4, 4))
    counts = [macs(function, x) / 64 for function in (product, scanned, nested, branch, batched)]
    assert counts == [1, 7, 21, 2, 3]
    assert math.isnan(macs(endless, x))
    assert macs(lambda x: jax.lax.while_loop(lambda x: x.sum() < 1, jnp.sin, x), x) == 0


def test_layers_and_what_is_outside_of_them_add_up_to_the_whole():
    x = normal(2, 6, 8)
    variables, run = applied(Attention(), x)
    found = profile(run, iterations=1)
    assert [layer.path for layer in found.layers] == ["q", "k", "v", "out"]
    # 7 tokens of width 8: each projection 8 x 8, and two products over 2 heads of width 4
    assert [layer.macs for layer in found.layers] == [2 * 7 * 64] * 4
    assert found.outside.macs == 2 * 2 * (2 * 7 * 7 * 4)
    assert found.outside.parameters == variables["params"]["token"].size
    assert found.whole.macs == macs(Attention().apply, variables, x)
    assert found.whole.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert found.activation_bytes == 4 * (2 * 7 * 8) * 4


def test_a_scan_is_outside_layers_and_a_shared_layer_is_called_twice_but_has_its_parameters_once():
    _, run = applied(Stack(), normal(3, 8))
    found = profile(run, iterations=1)
    assert [layer.path for layer in found.layers] == ["again"]
    for layer, calls, macs_of_it, parameters in (
        (found.layers[0], 2, 2 * 3 * 64, 72),
        (found.outside, 1, 5 * 3 * 64, 360),
    ):
        assert (layer.calls, layer.macs, layer.parameters) == (calls, macs_of_it, parameters)


def test_depth_chooses_which_modules_are_layers():
    model = build("cifar_resnet_tiny", num_classes=3)
    _, run = applied(model, normal(2, 8, 8, 3))
    recorder = Recorder()
    with nn.intercept_methods(recorder.intercept):
        run()
    paths = [[layer.path for layer in recorder.layers(depth)] for depth in (None, 1, 2, 9)]
    assert {path.count("/") for path in paths[1]} == {0}
    assert any(path.count("/") for path in paths[0])
    assert paths[0] == paths[2] == paths[3]
    assert {path.split("/")[0] for path in paths[0]} == set(paths[1])
    assert [layer.path for layer in recorder.layers(0)] == ["."]


@pytest.mark.parametrize("train", [False, True])
def test_every_layer_by_itself_computes_what_it_does_in_the_model(train):
    model = build("cifar_resnet_tiny", num_classes=3)
    x = normal(2, 8, 8, 3)
    mutable = ["batch_stats", "intermediates"]
    _, run = applied(model, x, train=train, mutable=mutable, capture_intermediates=True)
    _, collections = run()
    recorder = Recorder(keep_inputs=True)
    with nn.intercept_methods(recorder.intercept):
        run()
    for call in recorder.runs[0]:
        program, moving, fixed = profiling._program(call, {})
        output, alone = program.forward(moving, fixed)
        expected, statistics = collections["intermediates"], collections["batch_stats"]
        for name in call.path:
            expected, statistics = expected[name], statistics.get(name, {})
        (expected,) = expected["__call__"]
        jax.tree.map(np.testing.assert_array_equal, output, expected)
        jax.tree.map(np.testing.assert_array_equal, alone.get("batch_stats", {}), statistics)
    assert sum(call.kind == "BatchNorm" for call in recorder.runs[0]) > 3


def test_a_layer_with_more_to_do_takes_longer_each_way():
    class Uneven(nn.Module):
        @nn.compact
        def __call__(self, x):
            small = nn.Dense(8, name="small")(x)
            return nn.Dense(2048, name="large")(jnp.tile(small, (1, 128)))

    _, run = applied(Uneven(), normal(256, 8))
    small, large = profile(run, iterations=5).layers
    # 2**29 against 2**14 multiply-accumulates: no overhead hides a factor of 32768
    assert large.forward.jit > small.forward.jit > 0
    assert large.forward.eager > small.forward.eager > 0
    assert large.backward.jit > small.backward.jit > 0
    assert large.backward.eager > small.backward.eager > 0


def test_equal_layers_are_compiled_once():
    class Tower(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(6):
                x = nn.Dense(8)(x)
            return x

    _, run = applied(Tower(), normal(2, 8))
    recorder, programs = Recorder(keep_inputs=True), {}
    with nn.intercept_methods(recorder.intercept):
        run()
    for call in recorder.runs[0]:
        profiling._program(call, programs)
    assert len(recorder.runs[0]) == 7
    assert len(programs) == 2


def test_integer_inputs_and_dropout_are_measured_too():
    class Embedded(nn.Module):
        @nn.compact
        def __call__(self, tokens, train):
            x = nn.Embed(5, 8)(tokens)
            return nn.Dropout(0.5)(x, deterministic=not train)

    model, tokens = Embedded(), jnp.arange(4)
    variables = model.init(jax.random.key(0), tokens, False)
    found = profile(lambda: model.apply(variables, tokens, True, rngs={"dropout": jax.random.key(1)}), iterations=1)
    assert [layer.kind for layer in found.layers] == ["Embed", "Dropout"]
    assert all(layer.backward.jit > 0 for layer in found.layers)


def test_a_count_that_is_unknown_is_null_in_json_and_said_in_the_table():
    times = Seconds(1.0, 2.0)
    layer = Cost("loop", "Loop", 1, 16, math.nan, 64, times, times)
    found = Profile([layer], layer, {})
    assert json.loads(found.json())["layers"][0]["macs"] is None
    assert "unknown" in found.table()


def test_a_profile_is_of_one_call_of_one_model():
    model = nn.Dense(3)
    x = normal(2, 4)
    variables = model.init(jax.random.key(0), x)
    for run, count in ((lambda: x, 0), (lambda: [model.apply(variables, x) for _ in range(2)], 2)):
        with pytest.raises(UserError, match=f"there were {count}"):
            profile(run)
    with pytest.raises(UserError, match="outside jit"):
        profile(lambda: jax.jit(model.apply)(variables, x))


def test_what_is_recorded_adds_up_over_runs_of_a_model():
    _, run = applied(Stack(), normal(3, 8))
    with record() as recorder:
        for _ in range(4):
            run()
    run()
    assert len(recorder.runs) == 4
    layers = {layer.path: layer for layer in recorder.layers()}
    assert [layer.calls for layer in layers.values()] == [2]
    per_run = sorted(sum(call.seconds for call in calls if call.path == ("again",)) for calls in recorder.runs)
    assert layers["again"].seconds == pytest.approx((per_run[1] + per_run[2]) / 2, rel=1e-12)
    assert layers["again"].output_bytes == 2 * 3 * 8 * 4
    (whole,) = recorder.layers(0)
    assert whole.seconds > layers["again"].seconds > 0


def test_nothing_to_record_is_one_message():
    model, x = nn.Dense(3), normal(2, 4)
    variables = model.init(jax.random.key(0), x)
    with record() as recorder:
        jax.jit(model.apply)(variables, x)
        jax.grad(lambda v: model.apply(v, x).sum())(variables)
    with pytest.raises(UserError, match="only tracers"):
        recorder.layers()


def test_an_error_in_a_model_leaves_the_recorder_usable():
    model, x = nn.Dense(3), normal(2, 4)
    variables = model.init(jax.random.key(0), x)
    with record() as recorder:
        with pytest.raises(Exception, match="shape"):
            model.apply(variables, normal(2, 5))
        model.apply(variables, x)
    assert len(recorder.runs) == 2


def test_the_example_in_the_docs_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "profiling.md").read_text(), re.S)
    exec(compile(example, "profiling.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "stage1_block0/conv1" in shown


def test_an_unknown_model_a_size_it_cannot_serve_and_numbers_below_one_are_errors_of_the_user():
    with pytest.raises(ConfigError, match="did you mean 'resnet20'"):
        profile_model("resnt20", 2)
    with pytest.raises(ConfigError, match="30 x 30"):
        profile_model("cnn", 2, image_size=30)
    for numbers in ({"batch": 0}, {"image_size": -1}, {"num_classes": 0}, {"iterations": 0}, {"depth": 0}):
        with pytest.raises(ConfigError, match="must be 1 or more"):
            profile_model("cnn", **{"batch": 2, **numbers})


@pytest.mark.slow
def test_profiling_a_model_of_the_zoo_writes_what_the_table_shows(tmp_path):
    out = tmp_path / "cnn.json"
    flags = ("--model", "cnn_tiny", "--batch", "3", "--num-classes", "10", "--iterations", "2", "--train")
    finished = script("profile_model.py", *flags, "--dtype", "bf16", "--json", out)
    found = json.loads(out.read_text())
    assert found["batch"] == 3
    assert found["train"]
    assert {layer["path"] for layer in found["layers"]} >= {"conv1", "norm1", "head", "Dropout_0"}
    assert found["macs_per_image"] * 3 == found["whole"]["macs"] == sum(layer["macs"] for layer in found["layers"])
    assert found["outside"]["macs"] == found["outside"]["parameters"] == 0
    for layer in found["layers"]:
        assert layer["path"] in finished.stdout
        assert all(layer[way][kind] > 0 for way in ("forward", "backward") for kind in ("jit", "eager"))
    # two bytes an activation
    conv1 = next(layer for layer in found["layers"] if layer["path"] == "conv1")
    assert conv1["output_bytes"] == 3 * 16 * 16 * 4 * 2

    again = script("profile_model.py", *flags, "--json", out, check=False)
    assert again.returncode == 2
    assert "--force" in again.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give --model"),
        (("--model", "resnt20"), "did you mean 'resnet20'"),
        (("--model", "cnn", "--image-size", "30"), "30 x 30"),
        (("--model", "cnn", "--batch", "none"), "invalid int value"),
        (("--model", "cnn", "--steps", "3"), "give --model"),
        (("--modl", "cnn"), "unrecognized"),
        (("--compare-eager", "--config", "configs/none.yaml"), "no such file"),
        (("--compare-eager", "--model", "cnn"), "give --model"),
        (("--compare-eager", "--config", "configs/classify_digits.yaml", "--steps", "1"), "take 2 or more"),
        (("--compare-eager", "--config", "configs/classify_digits.yaml", "train.parallel=pmap"), "parallel=jit"),
        (("--model", "cnn", "--json", "nowhere/cnn.json"), "nowhere"),
    ],
)
def test_flags_that_make_no_sense_end_with_code_2_and_one_message(flags, message):
    finished = script("profile_model.py", *flags, check=False)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


def test_help_imports_nothing_heavy():
    program = (
        "import runpy, sys\n"
        "sys.argv = ['profile_model.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'scripts' / 'profile_model.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert not {'jax', 'flax', 'torch', 'numpy'} & set(sys.modules)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "--compare-eager" in finished.stdout
