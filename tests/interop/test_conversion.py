import json
import re
import subprocess
import sys
from collections import OrderedDict

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from conftest import ROOT, thinned
from flax import linen as nn
from twins import arrays, draw, for_torch

import interop
from interop import reference
from interop.architecture import Architecture, architecture, guess
from interop.conversion import convert
from interop.engine import flatten
from interop.files import FileError, open_weights, write_weights
from interop.layers import conv, dense
from interop.layout import Spec, spec
from interop.listing import diff, explain, inspect
from interop.problems import WeightsError
from jaxkit import models
from jaxkit.errors import ConfigError

pytestmark = pytest.mark.level(1)

NAME, SHAPE = "cifar_resnet_tiny", (8, 8, 3)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = reference.build(NAME, 5, SHAPE).eval()
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            value.fill_(77)
        elif value.ndim == 1:
            value.uniform_(0.5, 1.5)
    return net


@pytest.fixture
def checkpoint(net, tmp_path):
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "net.pth.tar")
    return tmp_path / "net.pth.tar"


def contents(path):
    with open_weights(path) as weights:
        return {name: (str(s.dtype), s.shape, weights.read(name).tobytes()) for name, s in weights.specs.items()}


@pytest.mark.parametrize("kind", ["flax.safetensors", "flax.msgpack", "flax.npz", "orbax"])
@pytest.mark.parametrize("back", ["torch.pt", "torch.safetensors", "saved"])
def test_a_checkpoint_comes_back_byte_for_byte_through_every_kind_of_file(checkpoint, net, tmp_path, kind, back):
    done = convert(checkpoint, tmp_path / kind, "flax", check=True)
    assert done.model == NAME
    assert any("state_dict" in note for note in done.notes)
    assert any("'module.'" in note for note in done.notes)
    convert(tmp_path / kind, tmp_path / back, "torch", check=True)
    expected = arrays(net)
    # Only some kinds of file have metadata, which is where the counts of batches travel.
    counts = {key for key in expected if key.endswith("num_batches_tracked")}
    found = contents(tmp_path / back)
    assert set(found) == set(expected)
    for key, array in expected.items():
        if key not in counts or kind == "flax.safetensors":
            assert found[key] == (str(array.dtype), array.shape, array.tobytes()), key


def test_a_converted_file_computes_what_the_torch_network_does(checkpoint, net):
    images, _ = draw(SHAPE, 2)
    variables = interop.load(checkpoint, NAME)
    with jax.default_matmul_precision("highest"):
        logits, _ = models.build(NAME, num_classes=5).apply(variables, images)
    expected = net(for_torch(images)).detach().numpy()
    # Some tens of float32 roundings of sums in another order.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_saved_variables_load_in_torch_strictly(checkpoint, net, tmp_path):
    interop.save(interop.load(checkpoint), tmp_path / "out.pth", NAME)
    fresh = reference.build(NAME, 5, SHAPE)
    fresh.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    for key, value in fresh.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, net.state_dict()[key])


def test_a_sharded_checkpoint_is_read_and_written(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "flax.safetensors", "flax", NAME, max_shard_size=4000)
    index = json.loads((tmp_path / "flax.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    convert(tmp_path / "flax.safetensors.index.json", tmp_path / "torch.safetensors", "torch", check=True)
    convert(checkpoint, tmp_path / "whole.safetensors", "flax")
    convert(tmp_path / "whole.safetensors", tmp_path / "one.safetensors", "torch")
    assert contents(tmp_path / "torch.safetensors") == contents(tmp_path / "one.safetensors")


def test_a_cast_rounds_floating_point_tensors_alone(checkpoint, net, tmp_path):
    convert(checkpoint, tmp_path / "half.safetensors", "flax", NAME, dtype="bf16", check=True)
    convert(tmp_path / "half.safetensors", tmp_path / "half.pt", "torch")
    with open_weights(tmp_path / "half.pt") as weights:
        for key, array in arrays(net).items():
            expected = array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array
            np.testing.assert_array_equal(weights.read(key), expected)


def test_the_manifest_tells_source_table_and_every_tensor(checkpoint, net, tmp_path):
    convert(checkpoint, tmp_path / "flax.safetensors", "flax", NAME)
    with open_weights(tmp_path / "flax.safetensors") as weights:
        manifest = json.loads(weights.metadata["jaxkit"])
    assert manifest["model"] == NAME
    assert set(manifest["source"]) == {"net.pth.tar"}
    assert set(manifest["tensors"]) == set(net.state_dict())
    assert manifest["dropped"]["bn1.num_batches_tracked"] == ["int64", 77]


def test_not_a_numbers_are_refused_by_name_and_nothing_is_written(net, tmp_path):
    state = net.state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight holds not-a-numbers"):
        convert(tmp_path / "net.pt", tmp_path / "flax.safetensors", "flax")
    assert not (tmp_path / "flax.safetensors").exists()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_a_not_a_number_is_found_in_every_type_and_infinity_is_none(dtype, tmp_path):
    for value, refused in ((np.nan, True), (-np.nan, True), (np.inf, False)):
        state = {"conv_1.weight": np.ones((2, 3, 5, 5), dtype)}
        state["conv_1.weight"][1, 2, 4, 4] = value
        specs = {key: spec(array) for key, array in state.items()}
        path, options = tmp_path / "x.safetensors", {"format": "torch", "metadata": {}, "max_shard_size": None}
        write_weights(path, specs, state.items(), **options, force=True)
        table, like = (("conv_1", "conv", conv),), {"params": {"conv": {"kernel": np.ones((5, 5, 3, 2))}}}
        model = Architecture("own", table, lambda _, like=like: like)
        if refused:
            with pytest.raises(WeightsError, match="not-a-numbers"):
                convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "flax", model, force=True)
        else:
            convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "flax", model, force=True)


def test_a_dry_run_writes_nothing(checkpoint, tmp_path):
    before = sorted(tmp_path.iterdir())
    assert convert(checkpoint, tmp_path / "flax.safetensors", "flax", dry_run=True).tensors > 0
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_of_the_framework_asked_for_is_written_anew_as_it_is(checkpoint, tmp_path):
    done = convert(checkpoint, tmp_path / "x.safetensors", "torch", check=True)
    assert "names and layouts are torch's already and stay as they are" in done.notes
    assert contents(tmp_path / "x.safetensors") == contents(checkpoint)
    convert(tmp_path / "x.safetensors", tmp_path / "half.safetensors", "torch", dtype="bf16", check=True)
    kinds = {name: kind for name, (kind, _, _) in contents(tmp_path / "half.safetensors").items()}
    assert {kinds["module.conv1.weight"], kinds["module.bn1.num_batches_tracked"]} == {"bfloat16", "int64"}


def test_a_model_that_is_guessed_is_told(checkpoint, tmp_path):
    note = f"guessed the model from names and shapes: {NAME}"
    assert note in convert(checkpoint, tmp_path / "a.safetensors", "flax").notes
    assert note not in convert(checkpoint, tmp_path / "b.safetensors", "flax", NAME).notes
    # a converted file says which it is of
    assert note not in convert(tmp_path / "a.safetensors", tmp_path / "c.pt", "torch").notes


def test_the_size_of_images_is_heeded_in_guessing(tmp_path):
    torch.save(reference.build("lenet", 10, (28, 28, 1)).state_dict(), tmp_path / "mnist.pt")
    with pytest.raises(ConfigError, match="none of the zoo's models"):
        convert(tmp_path / "mnist.pt", tmp_path / "x.safetensors", "flax")
    done = convert(tmp_path / "mnist.pt", tmp_path / "x.safetensors", "flax", image_size=(28, 28), check=True)
    assert done.model == "lenet"
    # the way back needs no size, nor does the check of it
    convert(tmp_path / "x.safetensors", tmp_path / "y.pt", "torch", check=True)
    assert contents(tmp_path / "y.pt") == contents(tmp_path / "mnist.pt")


def test_shards_are_checked_through_their_index(checkpoint, tmp_path):
    done = convert(checkpoint, tmp_path / "x.safetensors", "flax", max_shard_size=4000, check=True)
    assert "come back bit for bit" in done.notes[-1]
    assert not (tmp_path / "x.safetensors").exists()


def test_flax_weights_of_another_model_and_not_a_numbers_are_not_loaded(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "x.safetensors", "flax")
    assert interop.load(tmp_path / "x.safetensors", NAME).keys() == {"params", "batch_stats"}
    with pytest.raises(WeightsError, match="misshapen"):
        interop.load(tmp_path / "x.safetensors", "resnet8")
    variables = interop.load(checkpoint)
    variables["params"]["head"]["bias"][2] = np.nan
    interop.save(variables, tmp_path / "nan.safetensors", NAME)
    with pytest.raises(WeightsError, match="params/head/bias holds not-a-numbers"):
        interop.load(tmp_path / "nan.safetensors")


@pytest.mark.parametrize(
    "manifest",
    [
        "no json",
        "[]",
        '{"model": 3}',
        '{"model": "resnet20", "dropped": {"bn1.num_batches_tracked": ["object", 1]}}',
        '{"model": "resnet20", "dropped": {"bn1.num_batches_tracked": ["int8", 1000]}}',
        '{"model": "resnet20", "dropped": {"bn1.num_batches_tracked": ["int64", "1"]}}',
        '{"model": "resnet20", "dropped": {"bn1.num_batches_tracked": ["bool", 1]}}',
    ],
)
def test_a_manifest_that_was_not_written_here_is_damage(tmp_path, manifest):
    zeros = np.zeros(2, np.float32)
    specs, pairs = {"params/head/bias": spec(zeros)}, [("params/head/bias", zeros)]
    options = {"format": "flax", "metadata": {"jaxkit": manifest}, "max_shard_size": None, "force": False}
    write_weights(tmp_path / "x.safetensors", specs, pairs, **options)
    with pytest.raises(FileError, match="manifest"):
        convert(tmp_path / "x.safetensors", tmp_path / "y.pt", "torch")


def test_the_wrong_model_is_told(checkpoint, tmp_path):
    with pytest.raises(WeightsError, match=r"misshapen   conv1.weight \[4, 3, 3, 3\]"):
        convert(checkpoint, tmp_path / "x.safetensors", "flax", "resnet8")
    with pytest.raises(ConfigError, match="did you mean 'resnet20'"):
        convert(checkpoint, tmp_path / "x.safetensors", "flax", "resnet_20")


@pytest.mark.parametrize(
    "name",
    thinned(["resnet20", "resnet18_cifar", "lenet", "cnn", "vgg8_repdistiller", "mobilenet_v2"], ["lenet", "cnn"]),
)
def test_a_model_is_guessed_from_torch_keys_and_from_flax_paths(name):
    side = models.IMAGE_SIDES[name]
    with torch.device("meta"):
        net = reference.build(name, 7, (side, side, 3))
    specs = {key: Spec(tuple(value.shape), np.dtype(np.float32)) for key, value in net.state_dict().items()}
    assert guess(specs, "torch") == name
    like = architecture(name).like(specs)
    assert guess({path: spec(leaf) for path, leaf in flatten(like).items()}, "flax") == name


def test_a_listing_names_every_tensor_and_a_comparison_every_difference(checkpoint, net, tmp_path):
    lines = "\n".join(inspect(checkpoint))
    assert all(f"module.{key} " in lines for key in net.state_dict())
    assert diff(checkpoint, checkpoint) == []
    state = dict(net.state_dict())
    torch.save(state, tmp_path / "a.pt")
    state["fc.bias"] = state["fc.bias"] + 1
    del state["fc.weight"]
    torch.save(state, tmp_path / "b.pt")
    assert diff(tmp_path / "a.pt", tmp_path / "b.pt") == [
        f"only in {tmp_path / 'a.pt'}: fc.weight",
        "fc.bias: largest difference 1 in 5 of 5",
    ]


def test_a_key_is_explained_from_both_sides():
    torch_side, flax_side = explain("resnet20", "fc.weight"), explain("resnet20", "params/head/kernel")
    assert torch_side == flax_side
    assert "to flax  o i -> i o" in torch_side
    assert "momentum" in explain("resnet20", "bn1.num_batches_tracked")[0]
    with pytest.raises(ConfigError, match=r"did you mean layer1\.0\.conv1\.weight\?"):
        explain("resnet20", "layer1.0.conv1.wieght")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspect", "absent.pt"], 2, "absent.pt does not exist"),
        (["to-flax", "broken.safetensors", "x.npz"], 4, "broken.safetensors"),
        (["to-flax", "net.pth.tar", "x.npz", "--model", "resnet8"], 3, "do not fit"),
        (["diff", "net.pth.tar", "net.pth.tar"], 0, ""),
    ],
)
def test_exit_codes_tell_usage_mismatch_and_damage_apart(checkpoint, arguments, code, message):
    (checkpoint.parent / "broken.safetensors").write_bytes(b"\xff" * 20)
    finished = subprocess.run(
        [sys.executable, str(ROOT / "scripts/convert.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=checkpoint.parent,
        check=False,
    )
    assert finished.returncode == code, finished.stderr
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


def test_the_way_to_torch_is_as_total_as_the_way_here(checkpoint, tmp_path):
    variables = interop.load(checkpoint, NAME)
    convert(checkpoint, tmp_path / "whole.safetensors", "flax")
    for model in ("resnet8", "resnet110"):
        with pytest.raises(WeightsError, match="missing|misshapen"):
            convert(tmp_path / "whole.safetensors", tmp_path / "x.pt", "torch", model)
        with pytest.raises(WeightsError, match="missing|misshapen"):
            convert(tmp_path / "whole.safetensors", tmp_path / "x.safetensors", "flax", model)
        with pytest.raises(WeightsError, match="missing|misshapen"):
            interop.save(variables, tmp_path / "x.pt", model)
    with pytest.raises(WeightsError, match="missing +batch_stats/norm_stem/mean"):
        interop.save({"params": variables["params"]}, tmp_path / "x.pt", NAME)
    assert not (tmp_path / "x.pt").exists()


def test_released_densenets_with_their_first_key_names_are_read(tmp_path):
    net = reference.build("densenet_tiny", 5, (40, 40, 3))
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): v for key, v in net.state_dict().items()}
    assert any("norm.1." in key for key in old)
    torch.save(old, tmp_path / "old.pth")
    done = convert(tmp_path / "old.pth", tmp_path / "x.safetensors", "flax", check=True)
    assert done.model == "densenet_tiny"
    convert(tmp_path / "x.safetensors", tmp_path / "new.pt", "torch")
    torch.save(net.state_dict(), tmp_path / "expected.pt")
    assert diff(tmp_path / "new.pt", tmp_path / "expected.pt") == []


@pytest.mark.parametrize("name", ["mobile_tiny", "mnasnet_tiny", "shufflenet_v2_tiny"])
def test_weights_for_grey_images_are_known_where_the_stem_is_not_the_first_of_the_names(tmp_path, name):
    side = models.IMAGE_SIDES[name]
    torch.save(reference.build(name, 5, (side, side, 1)).state_dict(), tmp_path / "grey.pt")
    convert(tmp_path / "grey.pt", tmp_path / "x.safetensors", "flax", name, check=True)
    convert(tmp_path / "x.safetensors", tmp_path / "back.pt", "torch", check=True)
    variables = interop.load(tmp_path / "back.pt")
    assert variables["params"]["conv_stem"]["kernel"].shape[2] == 1


def test_two_keys_that_a_wrapper_tells_apart_are_not_made_one(net, tmp_path):
    state = net.state_dict()
    torch.save(state | {"_orig_mod.fc.weight": state["fc.weight"] + 1}, tmp_path / "both.pt")
    with pytest.raises(WeightsError, match=r"unexpected  _orig_mod\.fc\.weight"):
        convert(tmp_path / "both.pt", tmp_path / "x.safetensors", "flax", NAME)


def test_numbers_too_large_for_a_type_and_eight_bit_not_a_numbers_are_refused(net, tmp_path):
    state = net.state_dict()
    state["fc.bias"][1] = 1e6
    torch.save(state, tmp_path / "large.pt")
    with pytest.raises(WeightsError, match="params/head/bias holds 1 numbers too large for float16"):
        convert(tmp_path / "large.pt", tmp_path / "x.safetensors", "flax", NAME, dtype="f16")
    state["fc.bias"] = torch.full((5,), float("nan")).to(torch.float8_e4m3fn)
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(WeightsError, match=r"fc\.bias holds not-a-numbers"):
        convert(tmp_path / "nan.pt", tmp_path / "x.safetensors", "flax", NAME)


def test_a_tree_without_params_around_it_is_read_as_parameters(tmp_path):
    leaf = np.ones((2, 3), np.float32)
    pairs = {"layers_0/kernel": leaf, "layers_0/bias": np.zeros(3, np.float32)}
    specs = {name: spec(array) for name, array in pairs.items()}
    options = {"format": "flax", "metadata": {}, "max_shard_size": None, "force": False}
    write_weights(tmp_path / "bare.msgpack", specs, pairs.items(), **options)
    model = (nn.Sequential([nn.Dense(3)]), (("fc", "layers_0", dense),), np.zeros((1, 2), np.float32))
    done = convert(tmp_path / "bare.msgpack", tmp_path / "x.pt", "torch", model, check=True)
    assert "read the names as those under 'params'" in done.notes
    assert set(contents(tmp_path / "x.pt")) == {"fc.weight", "fc.bias"}
    assert interop.load(tmp_path / "bare.msgpack", model)["params"]["layers_0"].keys() == {"kernel", "bias"}


OWN = """
from __future__ import annotations
import jax.numpy as jnp
from flax import linen as nn
from interop.layers import dense
from neighbour import WIDTH

class Net(nn.Module):
    width: int = WIDTH

    @nn.compact
    def __call__(self, x, scale):
        return scale * nn.Dense(self.width, name="fc")(x)

TABLE = (("fc", "fc", dense),)
model = (Net(), TABLE, (jnp.zeros((1, 2)), jnp.ones(())))
two, number, cls = (Net(), TABLE), 5, (Net, TABLE, jnp.zeros((1, 2)))
row, kind = (Net(), (("fc", "fc"),), jnp.zeros((1, 2))), (Net(), (("fc", "fc", "dense"),), jnp.zeros((1, 2)))
"""


def test_a_model_of_ones_own_has_its_neighbours_and_several_inputs(tmp_path):
    (tmp_path / "own_net.py").write_text(OWN)
    (tmp_path / "neighbour.py").write_text("WIDTH = 3\n")
    torch.save(torch.nn.Sequential(OrderedDict(fc=torch.nn.Linear(2, 3))).state_dict(), tmp_path / "theirs.pt")
    done = convert(tmp_path / "theirs.pt", tmp_path / "x.npz", "flax", f"{tmp_path}/own_net.py:model", check=True)
    assert (done.model, done.tensors) == ("Net", 2)
    for name in ("two", "number", "cls", "row", "kind", "absent"):
        with pytest.raises(ConfigError, match=f"own_net.py:{name}"):
            convert(tmp_path / "theirs.pt", tmp_path / "x.npz", "flax", f"{tmp_path}/own_net.py:{name}")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ConfigError, match="broken.py cannot be imported"):
        convert(tmp_path / "theirs.pt", tmp_path / "x.npz", "flax", f"{tmp_path}/broken.py:model")
