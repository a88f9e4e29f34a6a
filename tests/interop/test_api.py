"""The five functions of the package, as its page describes them."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from conftest import ROOT

import interop
from interop import reference
from interop.engine import flatten
from jaxkit import models
from jaxkit.errors import ConfigError

NAME, SHAPE = "cifar_resnet_tiny", (8, 8, 3)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return reference.build(NAME, 10, SHAPE).eval()


@pytest.fixture
def checkpoint(net, tmp_path):
    torch.save({"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def same(found, expected):
    found, expected = flatten(found), flatten(expected)
    assert set(found) == set(expected)
    for path, leaf in expected.items():
        assert (found[path].dtype, found[path].tobytes()) == (leaf.dtype, leaf.tobytes()), path


def test_the_package_has_five_functions_and_the_page_an_example_of_each():
    page = (ROOT / "docs" / "interop.md").read_text()
    examples = "".join(re.findall(r"```python\n(.*?)```", page, re.S))
    assert set(interop.__all__) == {"load", "save", "convert", "table", "crosscheck"}
    for name in interop.__all__:
        assert callable(getattr(interop, name))
        assert f"interop.{name}(" in examples
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        interop.lode  # noqa: B018


def test_importing_the_package_imports_neither_torch_nor_jax():
    program = "import sys, interop; assert not {'torch', 'jax', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_safetensors_are_loaded_without_torch(checkpoint, tmp_path):
    interop.save(interop.load(checkpoint), tmp_path / "net.safetensors", NAME)
    path = str(tmp_path / "net.safetensors")
    program = f"import sys, interop; interop.load({path!r}, {NAME!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_model_may_be_guessed_named_or_given_as_module_table_and_example(checkpoint):
    guessed = interop.load(checkpoint)
    module = models.build(NAME, num_classes=10)
    given = (module, interop.table(NAME), jax.ShapeDtypeStruct((1, *SHAPE), np.float32))
    same(interop.load(checkpoint, NAME), guessed)
    same(interop.load(checkpoint, given), guessed)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("net.pt", "torch"),
        ("net.safetensors", "torch"),
        ("folder", "torch"),
        ("net.msgpack", "flax"),
        ("orbax", "flax"),
    ],
)
def test_what_is_saved_is_loaded_byte_for_byte(checkpoint, tmp_path, name, format):
    variables = interop.load(checkpoint)
    folder = tmp_path / "saved"
    folder.mkdir()
    interop.save(variables, folder / name, NAME, format)
    same(interop.load(folder / name, NAME), variables)


def test_variables_on_the_device_are_saved_too(checkpoint, net, tmp_path):
    variables = jax.tree.map(jax.numpy.asarray, interop.load(checkpoint))
    interop.save(variables, tmp_path / "out.pth", NAME)
    fresh = reference.build(NAME, 10, SHAPE)
    fresh.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in fresh.state_dict().items())


def test_convert_says_what_it_did_and_what_only_numbers_can_tell(checkpoint, tmp_path):
    done = interop.convert(checkpoint, tmp_path / "net.safetensors", "flax", check=True)
    assert (done.model, done.tensors) == (NAME, 47)
    assert done.bytes == sum(leaf.nbytes for leaf in flatten(interop.load(tmp_path / "net.safetensors")).values())
    assert "params/stage1_block0/conv1/kernel" in done.blind
    assert "params/head/kernel" not in done.blind
    assert any("47 tensors" in line and "come back bit for bit" in line for line in done.lines())


def test_a_table_is_data():
    for torch_module, flax_module, kind in interop.table(NAME):
        assert re.findall(r"{\w+}", torch_module) == re.findall(r"{\w+}", flax_module)
        assert kind


def test_crosscheck_passes_a_right_port_and_names_the_layer_of_a_wrong_kernel(checkpoint, net):
    module, variables = models.build(NAME, num_classes=10), interop.load(checkpoint)
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    right = interop.crosscheck(net, module, interop.table(NAME), images, variables=variables, steps=0)
    assert right.passed
    layer = variables["params"]["stage2_block0"]["conv2"]
    layer["kernel"] = layer["kernel"].transpose(1, 0, 2, 3)
    wrong = interop.crosscheck(net, module, interop.table(NAME), images, variables=variables, steps=0)
    assert not wrong.passed
    assert wrong.first_local.torch == "layer2.0.conv2"


def test_a_folder_is_saved_with_the_config_it_is_given(tmp_path):
    net = reference.build("cnn_tiny", 4, (16, 16, 3))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    variables = interop.load(tmp_path / "net.pt", "cnn_tiny")
    interop.save(variables, tmp_path / "folder", "cnn_tiny", config={"architectures": ["CNN"]})
    assert json.loads((tmp_path / "folder" / "config.json").read_text()) == {"architectures": ["CNN"]}
    assert interop.load(tmp_path / "folder").keys() == variables.keys()
    with pytest.raises(ConfigError, match="only a folder"):
        interop.save(variables, tmp_path / "net.npz", "cnn_tiny", "flax", config={})
