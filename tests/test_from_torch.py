"""``train.py --from-torch``: a training run of torch is gone on with in a fresh workdir."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yaml
from conftest import script, small_config
from runs import arrays

from interop import reference
from interop.engine import flatten, to_flax
from interop.starts import READERS, torch_run
from interop.tables import table
from jaxkit import experiment, models
from jaxkit.config import parse
from jaxkit.errors import ConfigError, UserError

pytestmark = pytest.mark.level(1)

NAME, STEP = "cifar_resnet_tiny", 3
# 1198 of the 1797 digits are to train on: 19 batches of 64, the last of them small
UPDATES = 19


def raw(**changes) -> dict:
    settings = {"learning_rate": 0.01, "schedule": {"name": "linear"}, "ema": {"decay": 0.5}}
    optimizer = {"name": "adam", "eps": 1e-8, **settings}
    quick = {"train__steps": STEP + 1, "train__eval_every": STEP, "train__checkpoint_every": 100, "train__keep_last": 5}
    return small_config(optimizer=optimizer, **{**quick, **changes})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> dict:
    """What a torch run saved after three updates: Adam, an average, a schedule; as if the network had been wrapped."""
    torch.manual_seed(0)
    net = reference.build(NAME, 10, (8, 8, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    average = torch.optim.swa_utils.AveragedModel(net)
    for _ in range(STEP):
        optimizer.zero_grad()
        net(torch.randn(8, 1, 8, 8)).square().sum().backward()
        optimizer.step()
        average.update_parameters(net)
    wrapped = {f"module.{key}": value for key, value in net.state_dict().items()}
    return {
        "model": wrapped,
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict(),
        "step": STEP,
        "loss": 0.5,
    }


def converted(tensors, prefix="module.") -> dict:
    """Torch's arrays by name, as those of our network by path; without running statistics where there are none."""
    shapes = jax.eval_shape(models.build(NAME, num_classes=10).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    state = {key.removeprefix(prefix): value.numpy() for key, value in tensors.items() if key.startswith(prefix)}
    like = shapes if "bn1.running_mean" in state else {"params": shapes["params"]}
    return flatten(to_flax(state, table(NAME), like))


def test_the_first_checkpoint_is_where_torch_stopped(tmp_path, stopped):
    torch.save(stopped, tmp_path / "run.pt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw()))
    arguments = ("--config", tmp_path / "config.yaml", "--workdir", tmp_path / "run")
    finished = script("train.py", *arguments, "--from-torch", tmp_path / "run.pt")
    lines = [line for line in finished.stdout.splitlines() if "run.pt" in line]
    assert lines == [
        f"{tmp_path}/run.pt: goes on from step 3",
        f"{tmp_path}/run.pt: left out the prefix 'module.' of the keys",
        f"{tmp_path}/run.pt: param_groups[0]: lr is 0.01 in torch, 0.0025 in jaxkit",
    ]

    names = [key.removeprefix("module.") for key in stopped["model"] if key.endswith(("weight", "bias"))]
    moments = [{n: stopped["optimizer"]["state"][i][m] for i, n in enumerate(names)} for m in ("exp_avg", "exp_avg_sq")]
    trees = {"mu": converted(moments[0], ""), "nu": converted(moments[1], ""), "average": converted(stopped["average"])}
    trees |= {"averaged": trees["average"], "params": converted(stopped["model"])}
    found = arrays(tmp_path / "run", STEP)
    checked = set()
    for place, leaf in found.items():
        for kind, tree in trees.items():
            path = "params/" + place.rpartition(f"{kind}/")[2]
            if f"{kind}/" in place and path in tree:
                assert np.array_equal(leaf, tree[path]), place
                checked.add(place)
    for path, leaf in trees["params"].items():
        if path.startswith("batch_stats/"):
            assert np.array_equal(found[f"state/{path}"], leaf), path
            checked.add(f"state/{path}")
    counts = {place: leaf for place, leaf in found.items() if place not in checked}
    del counts["optimizer/key"]
    # the step; what Adam, the schedule and the average count
    assert [int(count) for count in counts.values()] == [STEP] * 4

    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [STEP, STEP + 1]
    # what has begun is gone on with, without the file
    (tmp_path / "run.pt").unlink()
    refused = script("train.py", *arguments, "--from-torch", tmp_path / "run.pt", check=False)
    assert refused.returncode == 2
    assert "leave --from-torch or --start-from out to go on with it, or overwrite it with --force" in refused.stderr
    experiment.run(parse(raw(train__steps=STEP + 2), "small"), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / str(STEP + 2)).is_dir()


def begun(path, **changes):
    """The state that a run would begin at, and what is said about it."""
    config = parse(raw(**changes), "small")
    source, job = experiment.prepare(config, path.parent)
    state, _ = experiment.initial_state(job.task, job.feed, job.optimizer, job.executor, jax.random.PRNGKey(0))
    return torch_run(path, config, len(source.train), job.learning_rate, state, "")


def test_an_epoch_has_as_many_updates_as_torchs_loader_has_batches(tmp_path, stopped):
    saved = {**stopped, "epoch": 2}
    del saved["step"]
    torch.save(saved, tmp_path / "run.pt")
    state, lines = begun(tmp_path / "run.pt", train__steps=100)
    assert state.step == 2 * UPDATES
    assert lines[0] == f"{tmp_path}/run.pt: goes on from step 38"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train__steps": 2}, "is at step 3, beyond the 2 of this config"),
        ({"task__model": {"name": NAME, "pretrained": "weights.pth"}}, "has weights of its own: leave pretrained out"),
    ],
    ids=["beyond", "pretrained"],
)
def test_what_does_not_go_together_is_refused_before_the_workdir_is_touched(tmp_path, stopped, options, message):
    torch.save(stopped, tmp_path / "run.pt")
    config = parse(raw(**{"train__eval_every": 1, **options}), "small")
    with pytest.raises(ConfigError, match=message):
        experiment.run(
            config,
            tmp_path / "run",
            readers=READERS,
            begin=lambda *rest: torch_run(tmp_path / "run.pt", *rest),
        )
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("save", "code", "message"),
    [
        (lambda saved, path: None, 2, "run.pt: there is no such file"),
        (lambda saved, path: path.write_bytes(b"\x80\x02cos\nsystem\n."), 4, "could run code"),
        (lambda saved, path: torch.save(saved["model"], path), 3, "a training checkpoint has model and optimizer"),
        (
            lambda saved, path: torch.save({**saved, "optimizer": {"state": {}, "param_groups": []}}, path),
            3,
            "optimizer",
        ),
    ],
    ids=["missing", "hostile", "weights", "optimizer"],
)
def test_what_is_no_run_of_torch_is_one_message(tmp_path, stopped, save, code, message):
    save(stopped, tmp_path / "run.pt")
    with pytest.raises(UserError, match=message) as caught:
        begun(tmp_path / "run.pt")
    assert caught.value.exit_code == code


def test_resuming_and_beginning_exclude_each_other(tmp_path):
    arguments = ("--config", "configs/classify_digits.yaml", "--resume", "5", "--from-torch", tmp_path / "run.pt")
    finished = script("train.py", *arguments, check=False)
    assert finished.returncode == 2
    assert "not allowed with argument --resume" in finished.stderr
