import json
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import environment

from jaxkit import checkpoint, parallel
from jaxkit.checkpoint import CheckpointError, Checkpoints


def opened(folder, **changes) -> Checkpoints:
    return Checkpoints(folder, **{"keep_last": 2, "keep_best": 1, "metric": "top1", "mode": "max", **changes})


def items(seed: int = 0) -> dict:
    keys = jax.random.split(jax.random.PRNGKey(seed), 3)
    return {
        "params": {"conv": {"kernel": jax.random.normal(keys[0], (3, 4)), "bias": jax.random.normal(keys[1], (4,))}},
        "state": {"mean": jax.random.normal(keys[2], (4,))},
        "optimizer": {"step": jnp.int32(seed), "key": jax.random.PRNGKey(seed)},
    }


def equal(one, other) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), one, other))


def save(folder, top1: list[float | None], first: int = 1, **changes) -> list[int]:
    """Saves a checkpoint for each value, in one session; returns the steps that are kept."""
    checkpoints = opened(folder, **changes)
    for step, value in enumerate(top1, start=first):
        checkpoints.save(step, items(step), {}, None if value is None else {"top1": value})
    checkpoints.close()
    return checkpoint.saved_steps(folder)


def test_what_is_saved_is_restored_bit_for_bit_onto_the_devices_asked_for(tmp_path):
    checkpoints = opened(tmp_path)
    checkpoints.save(7, items(7), {"loader": {"next_index": 7}}, {"top1": 0.5})
    checkpoints.close()
    like = parallel.executor("jit").replicate(items(0))
    found, meta = checkpoint.restore(tmp_path, 7, like)
    assert equal(found, items(7))
    assert meta == {"loader": {"next_index": 7}, "metrics": {"top1": 0.5}}
    for leaf, target in zip(jax.tree.leaves(found), jax.tree.leaves(like), strict=True):
        assert leaf.dtype == target.dtype
        assert leaf.sharding == target.sharding


def test_a_subset_of_the_items_is_restored_without_the_others(tmp_path):
    save(tmp_path, [0.5])
    found, _ = checkpoint.restore(tmp_path, 1, {"state": items(0)["state"]})
    assert found.keys() == {"state"}
    assert equal(found["state"], items(1)["state"])


def test_an_item_without_arrays_is_not_written_and_comes_back_as_it_was_asked_for(tmp_path):
    checkpoints = opened(tmp_path)
    checkpoints.save(1, {"params": items()["params"], "state": {}}, {}, None)
    checkpoints.close()
    assert not checkpoint.holds(tmp_path, 1, "state")
    found, _ = checkpoint.restore(tmp_path, 1, {"params": items()["params"], "state": {}})
    assert found["state"] == {}


def test_only_the_newest_and_the_best_are_kept(tmp_path):
    assert save(tmp_path, [0.9, 0.2, 0.3, 0.4, 0.1]) == [1, 4, 5]


def test_without_best_ones_only_the_newest_are_kept(tmp_path):
    assert save(tmp_path, [0.9, 0.2, 0.3], keep_last=1, keep_best=0) == [3]


def test_of_equals_the_newer_is_the_best(tmp_path):
    assert save(tmp_path, [0.9, 0.9, 0.2, 0.1]) == [2, 3, 4]
    assert checkpoint.best_step(tmp_path, "top1", "max") == 2


def test_less_can_be_better(tmp_path):
    assert save(tmp_path, [0.9, 0.2, 0.4, 0.6], mode="min") == [2, 3, 4]
    assert checkpoint.best_step(tmp_path, "top1", "min") == 2


def test_a_metric_that_is_nan_is_never_the_best(tmp_path):
    nan = float("nan")
    assert save(tmp_path, [nan, 0.1, nan, nan, nan], keep_best=3) == [2, 4, 5]
    assert checkpoint.best_step(tmp_path, "top1", "max") == 2


def test_there_is_no_best_where_every_metric_is_nan_or_was_never_taken(tmp_path):
    save(tmp_path, [float("nan"), None])
    assert checkpoint.best_step(tmp_path, "top1", "max") is None


def test_a_resumed_run_still_keeps_the_best_of_the_run_before(tmp_path):
    save(tmp_path, [0.9, 0.2])
    assert save(tmp_path, [0.3, 0.4, 0.5], first=3) == [1, 4, 5]


def test_the_step_saved_again_has_the_new_arrays_and_metrics(tmp_path):
    save(tmp_path, [0.1, None])
    checkpoints = opened(tmp_path)
    checkpoints.save(2, items(9), {}, {"top1": 0.8})
    checkpoints.close()
    found, meta = checkpoint.restore(tmp_path, 2, items(0))
    assert equal(found, items(9))
    assert meta["metrics"] == {"top1": 0.8}
    assert checkpoint.best_step(tmp_path, "top1", "max") == 2
    assert checkpoint.damage(tmp_path / "2") is None


def test_save_returns_before_the_disk_is_done_and_the_buffers_may_be_donated_at_once(tmp_path, monkeypatch):
    overwritten = threading.Event()
    written = Checkpoints._write_checksums

    def wait_then_write(self):
        assert overwritten.wait(60)
        written(self)

    monkeypatch.setattr(Checkpoints, "_write_checksums", wait_then_write)
    executor = parallel.executor("jit")
    tree = executor.replicate({"params": {str(i): np.full((256, 256), i, np.float32) for i in range(32)}})
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0).lower(tree).compile()
    checkpoints = opened(tmp_path)
    checkpoints.save(1, tree, {}, None)
    for _ in range(3):
        tree = step(tree)
    jax.block_until_ready(tree)
    assert checkpoint.saved_steps(tmp_path) == []
    overwritten.set()
    checkpoints.close()
    found, _ = checkpoint.restore(tmp_path, 1, tree)
    assert all((np.asarray(leaf) == int(name)).all() for name, leaf in found["params"].items())


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [cut, alter, lambda path: path.unlink()], ids=["cut", "altered", "missing"])
@pytest.mark.parametrize("name", ["params/manifest.ocdbt", "optimizer/_METADATA", "meta/metadata"])
def test_a_damaged_file_is_named(tmp_path, name, harm):
    save(tmp_path, [0.5])
    assert checkpoint.damage(tmp_path / "1") is None
    harm(tmp_path / "1" / name)
    assert checkpoint.damage(tmp_path / "1").startswith(name)
    with pytest.raises(CheckpointError, match=f"1 is damaged: {name}"):
        checkpoint.restore(tmp_path, 1, items())


def test_every_file_with_arrays_is_guarded(tmp_path):
    save(tmp_path, [0.5])
    files = [path for path in (tmp_path / "1").rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        alter(path)
        assert checkpoint.damage(tmp_path / "1") == f"{path.relative_to(tmp_path / '1')} was altered or cut"
        path.write_bytes(content)


@pytest.mark.parametrize("text", [None, "", '{"params/manif'])
def test_without_readable_checksums_a_checkpoint_is_damaged(tmp_path, text):
    save(tmp_path, [0.5])
    path = tmp_path / "1" / checkpoint.CHECKSUMS
    path.unlink() if text is None else path.write_text(text)
    assert "checksums.json" in checkpoint.damage(tmp_path / "1")


def test_ranking_checkpoints_of_which_one_lost_its_metrics_is_an_error_that_names_it(tmp_path):
    save(tmp_path, [0.5, 0.4])
    (tmp_path / "2" / "meta" / "metadata").unlink()
    with pytest.raises(CheckpointError, match="2 is damaged: meta/metadata is missing"):
        checkpoint.best_step(tmp_path, "top1", "max")


def test_damaged_checkpoints_are_set_aside_and_the_newest_good_one_is_left(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, [0.5, 0.4, 0.3], keep_last=3)
    alter(folder / "3" / "params" / "manifest.ocdbt")
    (folder / "1" / "meta" / "metadata").unlink()
    lines = checkpoint.set_damaged_aside(folder)
    assert len(lines) == 2
    assert str(folder / "1") in lines[0]
    assert "meta/metadata is missing" in lines[0]
    assert str(folder / "3") in lines[1]
    assert "params/manifest.ocdbt was altered or cut" in lines[1]
    assert checkpoint.saved_steps(folder) == [2]
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["1", "3"]
    # the steps can be written anew, and set aside a second time
    assert save(folder, [0.6], first=3) == [2, 3]
    alter(folder / "3" / "params" / "manifest.ocdbt")
    assert len(checkpoint.set_damaged_aside(folder)) == 1
    assert checkpoint.set_damaged_aside(folder) == []


def test_a_checkpoint_of_another_model_is_one_error_with_every_difference(tmp_path):
    save(tmp_path, [0.5])
    like = items()
    like["params"]["conv"]["kernel"] = jnp.zeros((3, 5))
    like["params"]["head"] = {"bias": jnp.zeros(2)}
    like["state"] = {}
    like["optimizer"]["step"] = jnp.float32(0)
    like["averaged"] = {"bias": jnp.zeros(4)}
    with pytest.raises(CheckpointError, match="of another model or optimizer") as caught:
        checkpoint.restore(tmp_path, 1, like)
    assert set(str(caught.value).splitlines()[1:]) == {
        "  params/conv/kernel is (3, 4) float32 in the checkpoint, (3, 5) float32 here",
        "  missing in the checkpoint: params/head/bias",
        "  only in the checkpoint: state/mean",
        "  optimizer/step is () int32 in the checkpoint, () float32 here",
        "  missing in the checkpoint: averaged/bias",
    }


def test_a_step_that_was_not_saved_is_an_error_with_those_that_were(tmp_path):
    save(tmp_path, [0.5, 0.6])
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5 in .*; the steps saved are: 1, 2"):
        checkpoint.restore(tmp_path, 5, items())
    with pytest.raises(CheckpointError, match="the steps saved are: none"):
        checkpoint.restore(tmp_path / "elsewhere", 5, items())


def test_what_a_crash_left_half_written_is_no_checkpoint_and_is_swept_up(tmp_path):
    save(tmp_path, [0.5])
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.saved_steps(tmp_path) == [1]
    assert save(tmp_path, [0.6], first=2) == [1, 2]
    assert not list(tmp_path.glob("*tmp*"))


FULL_DISK = """
import json, resource, signal, sys
import jax, jax.numpy as jnp
from jaxkit.checkpoint import CheckpointError, Checkpoints

tree = lambda seed: {"params": {"kernel": jax.random.normal(jax.random.PRNGKey(seed), (500, 500))}}
checkpoints = Checkpoints(sys.argv[1], keep_last=2, keep_best=1, metric="top1", mode="max")
checkpoints.save(1, tree(1), {}, {"top1": 0.5})
checkpoints.wait()
# a write beyond the limit fails as one on a full disk does
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    checkpoints.save(2, tree(2), {}, {"top1": 0.6})
    checkpoints.wait()
except CheckpointError as error:
    print(error)
checkpoints.close()
"""


def test_a_full_disk_is_one_message_and_leaves_the_last_good_checkpoint_whole(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        env=environment(1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(f"the checkpoint of step 2 could not be written to {tmp_path} (")
    assert finished.stdout.strip().endswith("; the one of step 1 is whole")
    assert len(finished.stdout.splitlines()) == 1
    assert finished.stderr == ""
    assert checkpoint.saved_steps(tmp_path) == [1]
    like = {"params": {"kernel": jax.random.normal(jax.random.PRNGKey(1), (500, 500))}}
    found, _ = checkpoint.restore(tmp_path, 1, like)
    assert equal(found, like)
    # with room again, the run goes on
    checkpoints = opened(tmp_path)
    checkpoints.save(2, like, {}, {"top1": 0.6})
    checkpoints.close()
    assert checkpoint.damage(tmp_path / "2") is None


def test_the_first_checkpoint_that_cannot_be_written_says_that_there_is_no_earlier_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "_write_checksums", lambda self: (_ for _ in ()).throw(OSError("no room")))
    checkpoints = opened(tmp_path)
    checkpoints.save(1, items(), {}, None)
    with pytest.raises(CheckpointError, match=r"step 1 could not be written .*\(no room\); there is no earlier one"):
        checkpoints.wait()
    checkpoints.close()


def test_checksums_are_in_the_folder_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    written = Checkpoints._write_checksums

    def watched(self):
        written(self)
        seen.append([path.name for path in tmp_path.iterdir()])

    monkeypatch.setattr(Checkpoints, "_write_checksums", watched)
    save(tmp_path, [0.5])
    assert len(seen) == 1
    assert "1" not in seen[0]
    assert json.loads((tmp_path / "1" / checkpoint.CHECKSUMS).read_text())


def test_a_step_is_replaced_only_once_its_replacement_is_whole(tmp_path, monkeypatch):
    directory = tmp_path / "checkpoints"
    kept = Checkpoints(directory, keep_last=1, keep_best=0, metric="top1", mode="max")
    old, new = ({"params": {"bias": jnp.full(3, value)}} for value in (1.0, 2.0))
    kept.save(7, old, {}, None)
    kept.wait()
    monkeypatch.setattr(checkpoint, "_checksums", lambda folder: 1 / 0)
    kept.save(7, new, {}, None)
    with pytest.raises(CheckpointError):
        kept.wait()
    monkeypatch.undo()
    again = Checkpoints(directory, keep_last=1, keep_best=0, metric="top1", mode="max")
    assert checkpoint.saved_steps(directory) == [7]
    found, _ = checkpoint.restore(directory, 7, old)
    assert float(found["params"]["bias"][0]) == 1.0
    again.save(7, new, {}, None)
    again.close()
    found, _ = checkpoint.restore(directory, 7, old)
    assert float(found["params"]["bias"][0]) == 2.0
    assert [path.name for path in directory.iterdir()] == ["7"]
