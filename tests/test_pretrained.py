"""Fine-tuning: a run starts from the weights in a file of either framework."""

import json
import shutil
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import script, small_config
from runs import learned

import interop
from interop import reference
from interop.engine import flatten, to_flax, unflatten
from interop.files import FileError
from interop.problems import WeightsError
from interop.starts import READERS, read_weights
from interop.tables import table
from jaxkit import experiment, inference, models, tracking
from jaxkit.config import Config, parse
from jaxkit.errors import ConfigError
from jaxkit.tasks.task import Readers

pytestmark = pytest.mark.level(1)

NAME = "cifar_resnet_tiny"
# a rate at which no parameter moves, 32 bits being few: what is evaluated are the weights in the file
STILL = {"optimizer__learning_rate": 1e-30, "optimizer__momentum": 0.0, "data__augment": "none"}


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """Drawing them takes as long as all the rest of these runs, and has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "draw_curves", lambda records, path: None)
        yield


def network(classes=10, name=NAME, image_shape=(8, 8, 1)) -> torch.nn.Module:
    """A torch network with random weights and running statistics."""
    torch.manual_seed(classes)
    net = reference.build(name, classes, image_shape)
    for key, value in net.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point() and value.ndim == 1:
            value.add_(torch.empty_like(value).uniform_(-0.3, 0.3))
    return net


def initial(classes=10, name=NAME, image_shape=(8, 8, 1)) -> dict:
    """Variables of our network that are in no file."""
    module, rng = models.build(name, num_classes=classes), np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), dict(shapes))


def converted(net, like) -> dict:
    return flatten(to_flax({key: value.numpy() for key, value in net.state_dict().items()}, table(NAME), like))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        assert leaf.dtype == np.float32
        assert np.array_equal(leaf, expected[name]), name


def fine_tuned(path, **changes) -> Config:
    task = {"name": "classify", "model": {"name": NAME, "pretrained": str(path)}}
    quick = {"train__steps": 1, "train__log_every": 1, "train__matmul_precision": "highest"}
    return parse(small_config(task=task, **{**STILL, **quick, **changes}), "small")


def logged(folder: Path, kind: str) -> dict:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return next(record for record in records if record["kind"] == kind)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step from a torch file, that file, the network in it, and what the run printed."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    net = network()
    torch.save(net.state_dict(), folder / "weights.pth")
    config = fine_tuned(folder / "weights.pth")
    experiment.run(config, folder / "run", readers=READERS)
    return folder / "run", config, net


def torch_batch(config, examples) -> tuple[torch.Tensor, torch.Tensor]:
    feed = experiment.prepare(config, Path("none"))[1].feed
    batch = examples(feed)
    images = np.asarray(feed.preprocess(jax.tree.map(jnp.asarray, batch))["image"])
    return torch.from_numpy(np.moveaxis(images, 3, 1).copy()), torch.from_numpy(batch["label"]).long()


def test_the_first_loss_and_the_evaluation_are_those_of_the_torch_network(run):
    folder, config, net = run
    source = experiment.open_source(config.data).test
    entropy = torch.nn.functional.cross_entropy
    images, labels = torch_batch(config, lambda feed: feed.first())
    # the losses are of order 1, and float32 sums in another order
    with torch.no_grad():
        net.train()
        assert logged(folder, "train")["loss"] == pytest.approx(float(entropy(net(images), labels)), abs=1e-5)
        net.eval()
        everything = {name: np.stack([source[i][name] for i in range(len(source))]) for name in ("image", "label")}
        images, labels = torch_batch(config, lambda feed: everything)
        logits = net(images)
    assert logged(folder, "eval")["loss"] == pytest.approx(float(entropy(logits, labels)), abs=1e-5)
    assert logged(folder, "eval")["top1"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


def test_a_run_goes_on_and_is_evaluated_without_the_file_it_began_with(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    torch.save(run[2].state_dict(), tmp_path / "weights.pth")
    config, written = fine_tuned(tmp_path / "weights.pth"), tmp_path / "run" / "config.yaml"
    written.write_text(written.read_text().replace(run[1].task.model.pretrained, config.task.model.pretrained))
    (tmp_path / "weights.pth").unlink()
    best = json.loads((tmp_path / "run" / "results.json").read_text())["best"]
    assert inference.evaluate_run(tmp_path / "run") == pytest.approx(best)
    longer = config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})})
    unused = Readers(*3 * [lambda *_: pytest.fail("the file is read again")])
    results = experiment.run(longer, tmp_path / "run", readers=unused)
    assert results["last"]["step"] == 2


def test_every_kind_of_file_gives_the_same_variables(run, tmp_path):
    net, like = run[2].eval(), initial()
    net.load_state_dict(torch.load(run[0].parent / "weights.pth"))
    expected = converted(net, like)
    variables = interop.load(run[0].parent / "weights.pth", NAME, image_size=(8, 8))
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "a.pt")
    safetensors.torch.save_file(net.state_dict(), tmp_path / "a.safetensors")
    for name in ("a.msgpack", "flax.safetensors", "orbax"):
        interop.save(variables, tmp_path / name, NAME, "flax")
    interop.save(variables, tmp_path / "torch", NAME)
    for name in ("a.pt", "a.safetensors", "a.msgpack", "flax.safetensors", "orbax", "torch"):
        found, (line, *_) = read_weights(str(tmp_path / name), NAME, like)
        assert_same(flatten(found), expected)
        assert line == f"{tmp_path / name}: {len(expected)} of {len(expected)} arrays"
    # the statistics of a run of one step have moved
    found, _ = read_weights(str(run[0]), NAME, like)
    assert_same(flatten(found["params"]), {k.removeprefix("params/"): v for k, v in expected.items() if "params/" in k})


def test_what_is_odd_about_a_file_is_said(tmp_path):
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in network().state_dict().items()}}, tmp_path / "a.pt"
    )
    _, lines = read_weights(str(tmp_path / "a.pt"), NAME, initial())
    assert lines[1:] == [
        f"{tmp_path / 'a.pt'}: took 'state_dict' of epoch, state_dict",
        f"{tmp_path / 'a.pt'}: left out the prefix 'module.' of the keys",
    ]


@pytest.mark.parametrize("suffix", ["pth", "msgpack"])
def test_of_other_classes_all_but_the_head_is_taken(tmp_path, suffix):
    net, like = network(classes=7), flatten(initial())
    path, seven = tmp_path / f"weights.{suffix}", initial(classes=7)
    if suffix == "pth":
        torch.save(net.state_dict(), path)
    else:
        state = {key: value.numpy() for key, value in net.state_dict().items()}
        interop.save(to_flax(state, table(NAME), seven), path, NAME, "flax")
    found, lines = read_weights(str(path), NAME, initial())
    head = {name: leaf for name, leaf in like.items() if name.startswith("params/head/")}
    assert_same(flatten(found), {**converted(net, seven), **head})
    assert lines == [f"{path}: {len(like) - 2} of {len(like)} arrays; head starts afresh: 7 classes there, 10 here"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32(tmp_path, dtype):
    net = network().to(dtype)
    torch.save(net.state_dict(), tmp_path / "half.pt")
    found, _ = read_weights(str(tmp_path / "half.pt"), NAME, initial())
    assert_same(flatten(found), converted(net.float(), initial()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("fc.bias"), "missing +fc.bias"),
        (lambda state: state.update({"fc.gain": torch.ones(3)}), "unexpected +fc.gain"),
        (
            lambda state: state.update({"conv1.weight": torch.ones(4, 3, 3, 3)}),
            r"misshapen +conv1.weight \[4, 3, 3, 3\]",
        ),
        (lambda state: state["fc.weight"].fill_(torch.nan), "params/head/kernel holds not-a-numbers"),
        (lambda state: state.update({"fc.bias": torch.ones(10, dtype=torch.int32)}), "head/bias is int32, no floating"),
        (
            lambda state: state.update({"fc.bias": torch.ones(10).double()}),
            "head/bias is float64, .* --dtype f32 first",
        ),
    ],
    ids=["missing", "unexpected", "misshapen", "nan", "integers", "double"],
)
def test_any_other_difference_is_refused_and_leaves_the_workdir_as_it_was(run, tmp_path, spoil, message):
    state = network().state_dict()
    spoil(state)
    torch.save(state, tmp_path / "wrong.pth")
    folder = tmp_path / "run"
    with pytest.raises(WeightsError, match=message) as caught:
        experiment.run(fine_tuned(tmp_path / "wrong.pth"), folder, readers=READERS)
    assert caught.value.exit_code == 3
    assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("edit", ["drop", "add", "reshape"])
def test_flax_files_are_checked_as_torch_files_are(tmp_path, edit):
    variables = initial()
    flat = {name: np.asarray(leaf) for name, leaf in flatten(variables).items()}
    name = "params/conv_stem/kernel"
    if edit == "drop":
        del flat[name]
    else:
        flat |= {"params/other/kernel": flat[name]} if edit == "add" else {name: flat[name][..., :1]}
    (tmp_path / "wrong.msgpack").write_bytes(flax.serialization.to_bytes(unflatten(flat)))
    line = {"drop": f"missing +{name}", "add": "unexpected +params/other/kernel", "reshape": f"misshapen +{name} .*"}
    with pytest.raises(WeightsError, match=f"the weights do not fit the model:\n +{line[edit]}$"):
        read_weights(str(tmp_path / "wrong.msgpack"), NAME, variables)


def test_a_file_that_is_not_there_ends_with_code_2_and_names_the_key(tmp_path, config_file):
    (tmp_path / "weights.pth").touch()
    arguments = (f"task.model.pretrained={tmp_path}/weigths.pth", "--workdir", tmp_path / "run")
    finished = script("train.py", "--config", config_file(), *arguments, check=False)
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1] == (
        f"task.model.pretrained: {tmp_path}/weigths.pth does not exist; the nearest name there is weights.pth"
    )
    assert "Traceback" not in finished.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_damaged_file_leaves_an_earlier_run_as_it_was(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    (tmp_path / "cut.pth").write_bytes((run[0].parent / "weights.pth").read_bytes()[:2000])
    with pytest.raises(FileError) as caught:
        experiment.run(fine_tuned(tmp_path / "cut.pth"), tmp_path / "run", force=True, readers=READERS)
    assert caught.value.exit_code == 4
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_another_file_is_another_run(run, tmp_path):
    with pytest.raises(ConfigError, match=r"holds a run of another config:\n  task.model.pretrained: "):
        experiment.run(fine_tuned(tmp_path / "other.pth"), run[0], readers=READERS)
    assert fine_tuned(tmp_path / "other.pth").digest() != run[1].digest()


def test_without_anything_that_reads_files_a_run_does_not_begin_from_chance_instead(tmp_path):
    with pytest.raises(ConfigError, match="task.model.pretrained: nothing that reads weight files"):
        experiment.run(fine_tuned(tmp_path / "weights.pth"), tmp_path / "run")


def test_a_student_and_a_teacher_trained_first_start_from_their_files(run, tmp_path, capsys):
    path = tmp_path / "weights.pth"
    shutil.copy(run[0].parent / "weights.pth", path)
    teacher = small_config(task={"name": "classify", "model": {"name": NAME, "pretrained": str(path)}}, **STILL)
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump({**teacher, "train": {"steps": 1}}))
    task = {
        "name": "distill",
        "student": {"name": NAME, "pretrained": str(path)},
        "teacher": {"config": str(tmp_path / "teacher.yaml"), "cache": str(tmp_path / "cache")},
        "loss": {"name": "kd"},
    }
    config = parse(small_config(task=task, **STILL, train__steps=1), "small")
    assert config.task.teacher[0].model.pretrained is None
    results = experiment.run(config, tmp_path / "run", readers=READERS)
    expected = {name: leaf for name, leaf in converted(network(), initial()).items() if name.startswith("params/")}
    for folder in (tmp_path / "run", next((tmp_path / "cache").iterdir())):
        found = {name: leaf for name, leaf in learned(folder, 1).items() if name.startswith("params/")}
        assert_same(found, expected)
    # equal parameters, and statistics of the same first batch
    assert results["last"]["agreement"] == 1
    assert capsys.readouterr().out.count(f"{path}: ") == 2

    path.unlink()
    assert inference.evaluate_run(tmp_path / "run") == pytest.approx(results["best"])


def test_a_student_without_its_file_names_its_own_key(run, tmp_path):
    task = {"name": "distill", "student": {"name": NAME, "pretrained": "none.pth"}, "loss": {"name": "kd"}}
    config = parse(small_config(task={**task, "teacher": {"workdir": str(run[0])}}, train__steps=1), "small")
    with pytest.raises(ConfigError, match="task.student.pretrained: none.pth does not exist"):
        experiment.run(config, tmp_path / "run", readers=READERS)


def test_the_weights_of_a_teacher_are_its_runs(run):
    teacher = {"workdir": str(run[0]), "model": {"name": NAME, "pretrained": "weights.pth"}}
    task = {"name": "distill", "student": {"name": NAME}, "teacher": teacher, "loss": {"name": "kd"}}
    with pytest.raises(ConfigError, match="leave model.pretrained out"):
        parse(small_config(task=task), "small")


@pytest.mark.parametrize("classes", [10, 7])
@pytest.mark.parametrize("layout", ["torch", "flax"])
def test_auxiliary_heads_may_be_on_one_side_only(tmp_path, classes, layout):
    name, shape = "googlenet_tiny", (16, 16, 3)
    state = network(name=name, image_shape=shape).state_dict()
    torch.save(state, tmp_path / "with")
    torch.save({key: value for key, value in state.items() if not key.startswith("aux")}, tmp_path / "without")
    if layout == "flax":
        variables = to_flax({key: value.numpy() for key, value in state.items()}, table(name), initial(10, name, shape))
        (tmp_path / "with").write_bytes(flax.serialization.to_bytes(variables))
        (tmp_path / "without").write_bytes(flax.serialization.to_bytes(without_auxiliary(variables)))
    like = initial(classes, name, shape)
    fresh, main = flatten(like), [path for path in flatten(like) if "/aux" not in path]
    heads = {path for path in fresh if "head/" in path} if classes == 7 else set()
    whole = flatten(read_weights(str(tmp_path / "with"), name, like)[0])
    assert {path for path in fresh if np.array_equal(whole[path], fresh[path])} == heads

    found, (line,) = read_weights(str(tmp_path / "without"), name, like)
    assert_same(flatten(found), {path: whole[path] if path in main else fresh[path] for path in fresh})
    assert line.endswith("aux1 starts afresh: the file has none; aux2 starts afresh: the file has none")

    found, (line,) = read_weights(str(tmp_path / "with"), name, without_auxiliary(like))
    assert_same(flatten(found), {path: whole[path] for path in main})
    assert line.endswith("aux1 is left out: the network has none; aux2 is left out: the network has none")
    assert f": {len(set(main) - heads)} of {len(main)} arrays" in line


def without_auxiliary(variables) -> dict:
    return {kind: {k: v for k, v in variables[kind].items() if not k.startswith("aux")} for kind in variables}


@pytest.mark.parametrize("name", [name for name in models.MODELS if "tiny" in name])
def test_the_classes_of_every_model_are_the_last_axis_of_its_heads(name):
    side, sizes = models.IMAGE_SIDES[name], []
    for classes in (10, 7):
        module = models.build(name, num_classes=classes)
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
        sizes.append({path: leaf.shape for path, leaf in flatten(shapes).items()})
    changed = {path for path, shape in sizes[0].items() if sizes[1][path] != shape}
    assert changed == {path for path in sizes[0] if "/head/" in path}
    assert all(sizes[1][path] == (*sizes[0][path][:-1], 7) for path in changed)
    assert "params/head/bias" in changed
