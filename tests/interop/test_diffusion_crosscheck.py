"""Layer by layer, gradient by gradient: the networks of Stable Diffusion against diffusers and transformers."""

import json
import subprocess
import sys

import jax
import pytest
from conftest import ROOT, thinned
from diffusion_samples import TEXTS, UNETS, VAE, config_of, text, unet, vae

from interop import crosscheck
from interop.parity.twins import twins
from jaxkit.errors import ConfigError

pytestmark = [pytest.mark.level(1), pytest.mark.filterwarnings("ignore")]
# several channels to a group: the gradient of what each channel is moved by is else exactly 0, and noise
GROUPS = {"norm_num_groups": 8}
NETS = {
    "sd1": lambda: unet(**UNETS["sd1"], **GROUPS),
    "sdxl": lambda: unet(**UNETS["sdxl"], **GROUPS),
    "vae": lambda: vae(**VAE),
    "text": lambda: text(**TEXTS["sd2"][0]),
    "projection": lambda: text(True, **TEXTS["sdxl"][1]),
}


def written(folder, net):
    (folder / "config.json").write_text(json.dumps(config_of(net)))
    return str(folder / "config.json")


@pytest.mark.parametrize("name", thinned(["sdxl", "vae", "text"], ["vae", "text"]))
def test_every_layer_is_torchs(tmp_path, name):
    pair = twins(written(tmp_path, NETS[name]()), None, None, 2, 0, "f32")
    report = crosscheck(pair.torch, pair.flax, pair.table, pair.inputs, steps=0)
    assert report.passed, report.table(120)
    assert not report.unseen
    assert {key.rpartition(".")[0] for key in pair.torch.state_dict()} <= {layer.torch for layer in report.layers}


@pytest.mark.parametrize("name", ["sd1", "projection"])
def test_every_layer_and_every_gradient_is_torchs(tmp_path, name):
    pair = twins(written(tmp_path, NETS[name]()), None, None, 2, 0, "f32")
    report = crosscheck(pair.torch, pair.flax, pair.table, pair.inputs, steps=1)
    assert report.passed, report.table(120)
    assert {leaf.name for leaf in report.leaves["training gradients"]} >= {
        "params/" + "/".join(key.key for key in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes_of(pair))
    }


def shapes_of(pair):
    """The parameters of the network, below no other name."""
    return jax.eval_shape(pair.flax.init, jax.random.key(0), *pair.inputs)["params"]


def test_in_bfloat16_both_sides_round_alike(tmp_path):
    pair = twins(written(tmp_path, NETS["vae"]()), None, None, 2, 0, "bf16")
    report = crosscheck(pair.torch, pair.flax, pair.table, pair.inputs, dtype="bf16", steps=0)
    assert report.passed, report.table(120)


def test_another_activation_is_found(tmp_path):
    net = text(**TEXTS["sd2"][0] | {"hidden_act": "gelu"})
    pair = twins(written(tmp_path, net), None, None, 2, 0, "f32")
    other = twins(written(tmp_path, text(**TEXTS["sd2"][0] | {"hidden_act": "quick_gelu"})), None, None, 2, 0, "f32")
    report = crosscheck(pair.torch, other.flax, pair.table, pair.inputs, steps=0)
    assert not report.passed


def test_the_command_compares_a_networks_own_weights(tmp_path):
    vae(**VAE).save_pretrained(tmp_path / "vae")
    command = [
        *(sys.executable, "scripts/crosscheck.py", "--model", tmp_path / "vae" / "config.json", "--batch", "2"),
        *("--weights", tmp_path / "vae", "--steps", "0", "--json", tmp_path / "report.json"),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.returncode == 0, finished.stderr
    assert json.loads((tmp_path / "report.json").read_text())["passed"]


def test_a_network_that_torch_has_no_twin_of_here_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UVit2DModel"}))
    with pytest.raises(ConfigError, match="there is no torch twin of a UVit2DModel here"):
        twins(str(tmp_path / "config.json"), None, None, 2, 0, "f32")
    file = tmp_path / "weights.safetensors"
    with pytest.raises(ConfigError, match="give the folder that has the network's config"):
        twins(written(tmp_path, vae(**VAE)), file, None, 2, 0, "f32")
    with pytest.raises(ConfigError, match="--image-size 8: a text encoder is given texts"):
        twins(written(tmp_path, NETS["text"]()), None, 8, 2, 0, "f32")
