import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from conftest import small_config
from weight_samples import contents, identical, write

from interop.files import FileError, open_weights
from jaxkit.checkpoint import Checkpoints
from jaxkit.config import parse
from jaxkit.errors import ConfigError

ONES = {"w": torch.ones(2)}
TWOS = {"w": torch.full((2,), 2.0)}


def first(path, **options) -> float:
    with open_weights(path, **options) as weights:
        return float(weights.read("w")[0])


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model_state", "model", "net", "module"])
def test_weights_are_found_in_the_containers_that_training_scripts_use(tmp_path, name):
    torch.save({"epoch": 3, name: ONES, "optimizer": {"state": {0: {"m": torch.zeros(2)}}}}, tmp_path / "w.pt")
    with open_weights(tmp_path / "w.pt") as weights:
        assert identical(contents(weights), {"w": np.ones(2, np.float32)})
        assert weights.notes == [f"took '{name}' of epoch, {name}, optimizer"]


@pytest.mark.parametrize("name", ["model_ema", "state_dict_ema", "ema_state_dict", "ema"])
def test_plain_weights_go_before_their_average_unless_it_is_asked_for(tmp_path, name):
    torch.save({name: TWOS, "state_dict": ONES}, tmp_path / "w.pt")
    assert first(tmp_path / "w.pt") == 1
    assert first(tmp_path / "w.pt", container=name) == 2
    torch.save({name: TWOS}, tmp_path / "only.pt")
    assert first(tmp_path / "only.pt") == 2


def test_containers_in_containers_are_opened(tmp_path):
    torch.save({"model": {"state_dict": ONES, "epoch": 1}}, tmp_path / "w.pt")
    with open_weights(tmp_path / "w.pt") as weights:
        assert list(weights.specs) == ["w"]
        assert weights.notes == ["took 'model' of model", "took 'state_dict' of state_dict, epoch"]


def test_a_container_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    torch.save({"state_dict": ONES, "model_ema": TWOS, "epoch": 1}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="no container 'ema' is there; the dicts in it are: state_dict, model_ema"):
        open_weights(tmp_path / "w.pt", container="ema")
    for name in ("w.npz", "orbax"):
        write(tmp_path / name, {"w": np.ones(1)})
        with pytest.raises(ConfigError, match=f"{name} has no containers"):
            open_weights(tmp_path / name, container="ema")


def test_leaves_that_are_no_tensors_are_named(tmp_path):
    torch.save({"w": torch.ones(2), "epoch": 3, "config": {"lr": 0.1}}, tmp_path / "w.pt")
    with open_weights(tmp_path / "w.pt") as weights:
        assert list(weights.specs) == ["w"]
        assert weights.notes == ["left out, being no tensors: epoch (int), config (dict)"]


def test_a_save_pretrained_folder_is_what_transformers_expects(tmp_path):
    from safetensors.torch import load_file

    arrays = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    written = write(tmp_path / "model", arrays, "torch", config={"model": "lenet", "num_classes": 10})
    assert written == [tmp_path / "model" / "config.json", tmp_path / "model" / "model.safetensors"]
    assert json.loads(written[0].read_text()) == {"model": "lenet", "num_classes": 10}
    assert load_file(written[1])["fc.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    with open_weights(tmp_path / "model") as weights:
        assert identical(contents(weights), arrays)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "flax_model.msgpack", "pytorch_model.bin"])
def test_folders_of_other_programs_are_opened(tmp_path, name):
    format = "torch" if "pytorch" in name else "flax"
    write(tmp_path / name, {"w": np.full(1, 5.0)}, format)
    (tmp_path / "config.json").write_text("{}")
    assert first(tmp_path) == 5


def test_of_several_files_in_a_folder_the_safest_is_taken_and_said(tmp_path):
    write(tmp_path / "model.safetensors", {"w": np.full(1, 1.0)}, "torch")
    write(tmp_path / "pytorch_model.bin", {"w": np.full(1, 2.0)}, "torch")
    with open_weights(tmp_path) as weights:
        assert weights.read("w") == 1
        assert weights.notes == ["took model.safetensors; pytorch_model.bin is there too"]


def test_a_folder_without_weights_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "README.md").touch()
    with pytest.raises(FileError, match=r"but README\.md; name the file itself"):
        open_weights(tmp_path)


def test_a_missing_file_is_answered_with_the_nearest_name(tmp_path):
    (tmp_path / "resnet50.pth").touch()
    with pytest.raises(ConfigError, match=r"resnet5\.pth does not exist; the nearest name there is resnet50\.pth"):
        open_weights(tmp_path / "resnet5.pth")


@pytest.fixture
def workdir(tmp_path):
    """A run with checkpoints of steps 1, 2 and 3; the second is the best."""

    def make(averaged: bool, metrics=(0.5, 0.9, 0.7)):
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "config.yaml").write_text(parse(small_config(), "a test").yaml())
        saved = Checkpoints(folder / "checkpoints", keep_last=5, keep_best=1, metric="top1", mode="max")
        for step, metric in enumerate(metrics, 1):
            items = {
                "params": {"head": {"bias": jax.numpy.full(3, step)}},
                "state": {"batch_stats": {"norm": {"mean": jax.numpy.zeros(2)}}},
                "optimizer": {"count": jax.numpy.array(step)},
            }
            items |= {"averaged": {"head": {"bias": jax.numpy.full(3, -step)}}} if averaged else {}
            saved.save(step, items, {"loader": {}}, None if metric is None else {"top1": metric})
        saved.close()
        return folder

    return make


def test_a_workdir_gives_the_best_checkpoints_parameters_and_statistics(workdir):
    folder = workdir(averaged=False)
    with open_weights(folder) as weights:
        assert list(weights.specs) == ["params/head/bias", "batch_stats/norm/mean"]
        assert weights.read("params/head/bias").tolist() == [2, 2, 2]
        assert weights.metadata == {"step": "2", "jaxkit.model": "cifar_resnet_tiny"}
        assert weights.notes == ["took the best checkpoint, of step 2"]
        assert all(path.is_file() for path in weights.files)


def test_a_workdir_without_metrics_gives_the_last_checkpoint(workdir):
    with open_weights(workdir(averaged=False, metrics=(None, None))) as weights:
        assert weights.notes == ["took the last checkpoint, of step 2"]


def test_a_step_of_a_workdir_gives_the_average_where_one_was_kept_and_either_on_demand(workdir):
    step = workdir(averaged=True) / "checkpoints" / "3"
    for container, value in ((None, -3), ("averaged", -3), ("params", 3)):
        with open_weights(step, container) as weights:
            assert weights.read("params/head/bias").tolist() == [value] * 3
            said = "took the parameters, not averaged" if value > 0 else "took the averaged parameters"
            assert weights.notes == [said]
    with pytest.raises(ConfigError, match="choose one of averaged, params"):
        open_weights(step, "optimizer")


def test_an_altered_checkpoint_of_a_workdir_is_refused(workdir):
    step = workdir(averaged=False) / "checkpoints" / "2"
    data = next(path for path in (step / "params").rglob("*") if path.parent.name == "d")
    data.write_bytes(data.read_bytes()[:-1] + b"!")
    with pytest.raises(FileError, match=f"{step}.*altered or cut"):
        open_weights(step)


def test_a_workdir_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileError, match="no checkpoint yet"):
        open_weights(tmp_path)


def test_of_an_orbax_checkpoint_with_several_items_one_is_chosen(tmp_path):
    trees = {"params": {"w": np.full(1, 1.0)}, "ema": {"w": np.full(1, 2.0)}}
    items = ocp.args.Composite(**{name: ocp.args.StandardSave(tree) for name, tree in trees.items()})
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(tmp_path / "both", items)
    with pytest.raises(ConfigError, match="holds ema, params; choose one as the container"):
        open_weights(tmp_path / "both")
    with pytest.raises(ConfigError, match="no container 'x' is there; choose one of ema, params"):
        open_weights(tmp_path / "both", container="x")
    assert first(tmp_path / "both", container="ema") == 2


def test_a_step_of_an_orbax_manager_is_opened(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(4, args=ocp.args.StandardSave({"w": np.full(1, 3.0)}))
    assert first(tmp_path / "run" / "4") == 3
