import contextlib
import json
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT, small_config

from jaxkit import checkpoint, experiment, workdir
from jaxkit.checkpoint import Checkpoints
from jaxkit.config import Config, load, parse
from jaxkit.errors import ConfigError

pytestmark = pytest.mark.level(1)


def config(**changes) -> Config:
    return parse(small_config(**changes), "small")


def begun(folder, steps=(), **changes) -> None:
    """A run of the small config that has saved these steps and then ended."""
    assert prepare(folder, **changes) is None
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=9, keep_best=0, metric="top1", mode="max")
    for step in steps:
        checkpoints.save(step, {"params": {"bias": jnp.zeros(2)}}, {}, None)
    checkpoints.close()


def prepare(folder, resume="latest", force=False, **changes) -> int | None:
    plan = workdir.plan(folder, config(**changes), resume, force)
    workdir.claim(folder, config(**changes), config(**changes), plan)
    return plan.start


def contents(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_run_leaves_its_whole_config_and_its_environment(tmp_path):
    assert prepare(tmp_path, train__seed=3) is None
    assert load(tmp_path / "config.yaml") == config(train__seed=3)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["config"] == config(train__seed=3).digest()
    assert environment["command"] == sys.argv
    assert environment["versions"]["jax"] == jax.__version__
    assert environment.keys() == {"config", "command", "started", "host", "git", "versions"}


def test_latest_goes_on_from_the_newest_checkpoint(tmp_path):
    begun(tmp_path, steps=(5, 10))
    assert prepare(tmp_path) == 10


def test_latest_begins_anew_where_nothing_was_saved(tmp_path):
    begun(tmp_path)
    assert prepare(tmp_path) is None


def test_latest_passes_over_a_damaged_checkpoint_and_names_it(tmp_path, capsys):
    begun(tmp_path, steps=(5, 10))
    (tmp_path / "checkpoints" / "10" / "params" / "manifest.ocdbt").unlink()
    assert prepare(tmp_path) == 5
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"checkpoint {tmp_path / 'checkpoints' / '10'} is damaged (params/manifest.ocdbt is missing); "
        f"moved to {tmp_path / 'damaged' / '10'}"
    ]


def test_another_config_is_refused_with_every_changed_key_and_nothing_is_touched(tmp_path):
    begun(tmp_path, steps=(5,))
    before = contents(tmp_path)
    changes = {"optimizer__learning_rate": 0.1, "task__model__name": "cnn_tiny", "data__augment": "none"}
    with pytest.raises(ConfigError, match="holds a run of another config") as caught:
        prepare(tmp_path, train__log_every=1, **changes)
    assert str(caught.value).splitlines()[1:] == [
        "  task.model.name: 'cifar_resnet_tiny' -> 'cnn_tiny'",
        "  data.augment: {'crop_padding': 1, 'flip': 0.0, 'rotation': 0.0} -> 'none'",
        "  optimizer.learning_rate: 0.05 -> 0.1",
        "choose another --workdir, or overwrite it with --force",
    ]
    assert contents(tmp_path) == before


def test_what_changes_no_update_may_change_and_is_said(tmp_path, capsys):
    begun(tmp_path, steps=(5,))
    wandb = {"project": "small"}
    assert prepare(tmp_path, train__steps=40, data__threads=2, train__parallel="pmap", tracking__wandb=wandb) == 5
    assert set(capsys.readouterr().out.splitlines()) == {
        "changed since the run began: data.threads: 8 -> 2",
        "changed since the run began: train.steps: 20 -> 40",
        "changed since the run began: train.parallel: 'jit' -> 'pmap'",
        "changed since the run began: tracking.wandb: None -> {'project': 'small', 'entity': None, 'mode': 'online'}",
    }
    assert load(tmp_path / "config.yaml").train.steps == 40


def test_the_metric_that_ranks_may_not_change_for_the_best_so_far_is_of_the_old_one(tmp_path):
    begun(tmp_path, steps=(5,))
    with pytest.raises(ConfigError, match=r"train.best_metric: None -> 'loss'"):
        prepare(tmp_path, train__best_metric="loss")


def test_force_overwrites_a_run_of_another_config_and_nothing_else_in_the_folder(tmp_path, capsys):
    begun(tmp_path, steps=(5,))
    (tmp_path / "evaluation_5.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    assert prepare(tmp_path, force=True, train__seed=1) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "environment.json", "notes.txt"]
    assert load(tmp_path / "config.yaml").train.seed == 1
    assert capsys.readouterr().out == ""


def test_force_goes_on_with_a_run_of_the_same_config(tmp_path):
    begun(tmp_path, steps=(5,))
    assert prepare(tmp_path, force=True) == 5


def test_never_resuming_needs_force_where_a_run_is(tmp_path):
    begun(tmp_path, steps=(5,))
    before = contents(tmp_path)
    for changes in ({}, {"train__seed": 1}):
        with pytest.raises(ConfigError, match=r"already holds .*config.yaml.*overwrite it with --force"):
            prepare(tmp_path, "never", **changes)
    assert contents(tmp_path) == before
    assert prepare(tmp_path, "never", force=True) is None
    assert not (tmp_path / "checkpoints").exists()


def test_never_resuming_is_no_matter_where_no_run_is(tmp_path):
    assert prepare(tmp_path, "never") is None


@pytest.mark.parametrize("name", ["checkpoints/100", "samples"])
def test_files_that_no_run_here_wrote_are_not_taken_for_one(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "model.pt").write_text("somebody's")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"already holds {name.split('/')[0]}; choose another --workdir"):
        prepare(tmp_path)
    assert contents(tmp_path) == before
    assert prepare(tmp_path, force=True) is None
    assert not (tmp_path / name).exists()


def test_a_chosen_step_is_gone_on_from(tmp_path):
    begun(tmp_path, steps=(5, 10))
    assert prepare(tmp_path, "10") == 10


def test_a_step_that_was_not_saved_is_refused_with_those_that_were(tmp_path):
    begun(tmp_path, steps=(5, 10))
    with pytest.raises(ConfigError, match=r"--resume 7: .* holds no such step; it has 5, 10"):
        prepare(tmp_path, "7", force=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="it has none"):
        prepare(tmp_path / "empty", "7")


def test_newer_steps_than_the_chosen_one_are_dropped_only_by_force(tmp_path):
    begun(tmp_path, steps=(5, 10, 15))
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"holds newer steps too \(10, 15\)"):
        prepare(tmp_path, "5")
    assert contents(tmp_path) == before
    assert prepare(tmp_path, "5", force=True) == 5
    assert checkpoint.saved_steps(tmp_path / "checkpoints") == [5]


def test_a_step_of_a_run_of_another_config_is_refused_even_by_force(tmp_path):
    begun(tmp_path, steps=(5,))
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="overwrite it with --resume never --force"):
        prepare(tmp_path, "5", force=True, train__seed=1)
    assert contents(tmp_path) == before


def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(tmp_path):
    with workdir.held(tmp_path / "run"):
        with (
            pytest.raises(ConfigError, match=f"another run is at work in {tmp_path / 'run'}"),
            workdir.held(tmp_path / "run"),
        ):
            pytest.fail("two runs in one folder")
        with workdir.held(tmp_path / "other"):
            pass
    with workdir.held(tmp_path / "run"):
        pass


def test_a_run_that_waits_gets_the_folder_once_the_first_has_ended(tmp_path):
    order = []

    def second():
        with workdir.held(tmp_path, wait=True):
            order.append("second")

    with workdir.held(tmp_path):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(timeout=0.3)
        assert waiting.is_alive()
        order.append("first")
    waiting.join(timeout=10)
    assert order == ["first", "second"]


def test_the_folder_is_free_again_after_a_run_that_failed(tmp_path):
    with contextlib.suppress(ZeroDivisionError), workdir.held(tmp_path):
        _ = 1 / 0
    with workdir.held(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_to_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=f"^--workdir {tmp_path}/file/run: cannot be written to: Not a directory$"),
        workdir.held(tmp_path / "file" / "run"),
    ):
        pytest.fail("a folder in a file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_message(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written to: Permission denied"), workdir.held(tmp_path / "run"):
        pytest.fail("a folder without permission")


def git(folder, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    finished = subprocess.run(["git", "-C", folder, *identity, *words], capture_output=True, text=True, check=True)
    return finished.stdout.strip()


def test_the_environment_tells_the_commit_and_the_files_changed_since(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "a")
    monkeypatch.setattr(workdir, "__file__", str(tmp_path / "workdir.py"))
    assert workdir._git() == {"commit": git(tmp_path, "rev-parse", "HEAD"), "changed": []}
    (tmp_path / "a.py").write_text("2")
    assert workdir._git()["changed"] == ["M a.py"]


def test_outside_a_checkout_or_without_git_there_is_no_commit_to_tell(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(workdir, "__file__", str(tmp_path / "workdir.py"))
    assert workdir._git() is None
    monkeypatch.setattr(workdir, "__file__", str(ROOT / "jaxkit" / "workdir.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert workdir._git() is None


def finish(folder, evaluations, **changes) -> dict:
    lines = [{"step": 1, "kind": "train", "loss": 9.0}]
    lines += [{"step": step, "kind": "eval", **values} for step, values in evaluations]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir.finish(folder, config(**changes), {"steps": 20}, {})


def test_results_have_the_best_and_the_last_evaluation(tmp_path):
    evaluations = [(5, {"top1": 0.5, "loss": 1.0}), (10, {"top1": 0.9, "loss": 3.0}), (15, {"top1": 0.7, "loss": 2.0})]
    results = finish(tmp_path, evaluations)
    assert results["best"] == {"step": 10, "top1": 0.9, "loss": 3.0}
    assert results["last"] == {"step": 15, "top1": 0.7, "loss": 2.0}
    assert results["train"] == {"steps": 20}
    assert results["devices"]["count"] == jax.device_count()
    assert results["config"] == config().digest()
    assert workdir.finished(tmp_path) == results
    assert finish(tmp_path, evaluations, train__best_metric="loss")["best"]["step"] == 5


def test_of_equal_evaluations_the_newest_is_the_best(tmp_path):
    evaluations = [(5, {"top1": 0.9}), (10, {"top1": 0.9}), (15, {"top1": 0.1})]
    assert finish(tmp_path, evaluations)["best"]["step"] == 10


def test_an_evaluation_that_is_not_finite_is_never_the_best(tmp_path):
    evaluations = [(5, {"top1": None}), (10, {"top1": 0.1}), (15, {"top1": None})]
    results = finish(tmp_path, evaluations)
    assert results["best"]["step"] == 10
    assert results["last"] == {"step": 15, "top1": None}
    assert finish(tmp_path, evaluations[:1])["best"] is None


def test_a_run_that_has_not_come_to_its_end_has_no_results(tmp_path):
    assert workdir.finished(tmp_path) is None


def quick() -> Config:
    return config(task__model__name="cnn_tiny", data__augment="none", train__steps=4, train__eval_every=2)


@pytest.mark.parametrize("changes", [{"data__batch_size": 60}, {"task__model__num_classes": 9}])
def test_a_config_that_cannot_run_leaves_the_folder_free_for_the_one_that_mends_it(tmp_path, changes):
    with pytest.raises(ConfigError):
        experiment.run(config(**changes), tmp_path)
    assert prepare(tmp_path) is None


def test_a_finished_run_returns_its_results_unless_they_are_of_another_config(tmp_path):
    first = experiment.run(quick(), tmp_path)
    assert experiment.run(quick(), tmp_path) == first
    # a crash between the last checkpoint of a run that was made longer and its results leaves those of the shorter
    stale = {**first, "config": "of a shorter run", "last": None}
    (tmp_path / "results.json").write_text(json.dumps(stale))
    again = experiment.run(quick(), tmp_path)
    for key in ("best", "last", "config"):
        assert again[key] == first[key]
    assert workdir.finished(tmp_path) == again


def test_a_step_saved_before_its_evaluation_is_evaluated_on_resume_and_saved_with_its_metrics(tmp_path, monkeypatch):
    evaluate = experiment.Trainer._evaluate
    # a signal that comes in the last evaluation ends it without a result
    monkeypatch.setattr(experiment.Trainer, "_evaluate", lambda self, stop: self.step < 4 and evaluate(self, stop))
    experiment.run(quick(), tmp_path)
    monkeypatch.undo()
    (tmp_path / "results.json").unlink()
    directory = tmp_path / "checkpoints"
    assert checkpoint.restore(directory, 4, {})[1]["metrics"] is None
    results = experiment.run(quick(), tmp_path)
    assert results["last"]["step"] == 4
    assert {"step": 4, **checkpoint.restore(directory, 4, {})[1]["metrics"]} == results["last"]
