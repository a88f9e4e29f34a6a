import json
import socket
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_config
from PIL import Image

from jaxkit import tracking
from jaxkit.config import Config, parse
from jaxkit.errors import ConfigError
from jaxkit.pictures import grid
from jaxkit.tracking import Tracker, Windows, draw_curves, read_metrics


def config(**changes) -> Config:
    return parse(small_config(**changes), "small")


def tracker(folder, start: int = 0, **changes) -> Tracker:
    opened = Tracker(folder, config(**changes), start=start, steps=100)
    opened.open()
    return opened


def logged(folder, steps, start: int = 0, **changes) -> None:
    """One session that logs a training record at each step, and ends."""
    writer = tracker(folder, start, **changes)
    for step in steps:
        writer.log(step, "train", {"loss": 1 / step, "grad_norm": 2.0})
    writer.close()


def steps_in(folder) -> list[int]:
    return [record["step"] for record in read_metrics(folder / "metrics.jsonl")]


def test_metrics_are_one_json_object_a_line(tmp_path):
    writer = tracker(tmp_path)
    writer.log(5, "train", {"loss": 0.25, "top1": 0.5})
    writer.log(5, "eval", {"top1": 0.75})
    # a run may be killed at any time: what was logged is in the file at once
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    writer.close()
    assert [json.loads(line) for line in lines] == [
        {"step": 5, "kind": "train", "loss": 0.25, "top1": 0.5},
        {"step": 5, "kind": "eval", "top1": 0.75},
    ]


def test_a_value_that_is_not_finite_is_null(tmp_path):
    writer = tracker(tmp_path)
    writer.log(1, "train", {"loss": float("nan"), "grad_norm": float("inf"), "top1": 0.5})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert record == {"step": 1, "kind": "train", "loss": None, "grad_norm": None, "top1": 0.5}


def test_resuming_drops_the_records_after_the_step_it_goes_on_from(tmp_path):
    logged(tmp_path, [5, 10, 15])
    logged(tmp_path, [12, 14], start=10)
    assert steps_in(tmp_path) == [5, 10, 12, 14]


def test_a_new_run_drops_every_record(tmp_path):
    logged(tmp_path, [5, 10])
    logged(tmp_path, [3])
    assert steps_in(tmp_path) == [3]


def test_a_last_line_cut_off_by_a_crash_is_left_out_and_mended_on_resume(tmp_path):
    logged(tmp_path, [5, 10])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 12, "ki')
    assert steps_in(tmp_path) == [5, 10]
    logged(tmp_path, [15], start=12)
    assert steps_in(tmp_path) == [5, 10, 15]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_metrics_of_a_run_that_never_logged_are_none(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def scalars(folder, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_reads_the_scalars_back(tmp_path):
    writer = tracker(tmp_path, tracking__tensorboard=True)
    writer.log(5, "train", {"loss": 0.25})
    writer.log(10, "train", {"loss": 0.125})
    writer.log(10, "eval", {"top1": 0.5})
    writer.close()
    assert scalars(tmp_path, "train/loss") == [(5, 0.25), (10, 0.125)]
    assert scalars(tmp_path, "eval/top1") == [(10, 0.5)]


@pytest.mark.parametrize(("start", "kept"), [(0, [3, 12]), (10, [5, 10, 12])])
def test_tensorboard_shows_no_point_of_a_run_cut_off_later(tmp_path, start, kept):
    logged(tmp_path, [5, 10, 15], tracking__tensorboard=True)
    # the name holds the second it was opened in, and these two sessions may share one
    (events,) = (tmp_path / "tensorboard").iterdir()
    events.rename(events.with_name("events.out.tfevents.1.earlier"))
    logged(tmp_path, [step for step in (3, 12) if step > start], start=start, tracking__tensorboard=True)
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == kept
    assert steps_in(tmp_path) == kept


def test_sessions_within_a_second_keep_both_their_points(tmp_path):
    for start in (0, 10, 20):
        logged(tmp_path, [start + 5], start=start, tracking__tensorboard=True)
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [5, 15, 25]


def test_without_tensorboard_no_folder_is_made(tmp_path):
    logged(tmp_path, [5])
    assert not (tmp_path / "tensorboard").exists()


def test_a_grid_has_every_pixel_in_its_place_and_black_where_there_is_no_image():
    images = np.random.default_rng(0).random((5, 50, 30, 3), np.float32)
    picture = grid(images)
    assert picture.dtype == np.uint8
    expected = np.full((2 * 50 + 1, 3 * 30 + 2, 3), 64, np.uint8)
    expected[51:, 62:] = 0
    for i, image in enumerate(images):
        row, column = divmod(i, 3)
        expected[51 * row : 51 * row + 50, 31 * column : 31 * column + 30] = np.round(image * 255)
    assert np.array_equal(picture, expected)
    assert grid(images, columns=5).shape == (50, 5 * 30 + 4, 3)


def test_a_grid_of_grey_images_is_grey_and_what_lies_outside_0_to_1_is_clipped():
    images = np.array([-0.5, 0.5, 1.5, 1.0], np.float32).reshape(4, 1, 1, 1)
    # each of its pixels, and of the line, is enlarged 48 times
    small = grid(images)[::48, ::48]
    assert small.tolist() == [[[0] * 3, [64] * 3, [128] * 3], [[64] * 3] * 3, [[255] * 3, [64] * 3, [255] * 3]]
    assert np.array_equal(grid(images), np.kron(small, np.ones((48, 48, 1), np.uint8)))


def test_samples_are_written_as_one_picture_that_reads_back_exactly(tmp_path):
    images = np.random.default_rng(0).random((4, 2, 2, 3), np.float32)
    writer = tracker(tmp_path, tracking__tensorboard=True)
    writer.samples(10, images)
    writer.close()
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["00000010.png"]
    with Image.open(tmp_path / "samples" / "00000010.png") as picture:
        assert np.array_equal(np.asarray(picture), grid(images))


def test_curves_are_a_picture_with_a_panel_for_every_metric(tmp_path):
    records = [
        {"step": step, "kind": kind, "loss": 1 / step, **({"top1": step / 9} if kind == "eval" else {})}
        for step in range(1, 9)
        for kind in ("train", "eval")
    ]
    sizes = []
    for name, count in (("loss", 1), ("both", 2)):
        path = tmp_path / f"{name}.png"
        draw_curves([{k: r[k] for k in r if count == 2 or k != "top1"} for r in records], path)
        with Image.open(path) as picture:
            picture.verify()
        with Image.open(path) as picture:
            sizes.append(picture.size)
            colours = picture.convert("RGB").getcolors(maxcolors=10**6)
        # white, black text, grey lines, and the two colours of training and evaluation with their soft edges
        assert len(colours) > 20
        coloured = sum(count for count, (r, g, b) in colours if max(r, g, b) - min(r, g, b) > 60)
        assert coloured > 200
    assert sizes[1] == (2 * sizes[0][0], sizes[0][1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.png", "loss.png"]


def test_curves_are_drawn_at_the_end_from_this_session_and_those_before(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(tracking, "draw_curves", lambda records, path: seen.append([r["step"] for r in records]))
    logged(tmp_path, [5, 10])
    logged(tmp_path, [15], start=10)
    assert seen == [[5, 10], [5, 10, 15]]


def test_nothing_is_drawn_where_no_value_is_finite(tmp_path):
    draw_curves([{"step": 1, "kind": "train", "loss": None}], tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


def scalar(**values) -> dict[str, jax.Array]:
    """The scalars of a step that went well."""
    return {
        "ok": jnp.bool(True),
        "learning_rate": jnp.float32(0),
        **{name: jnp.float32(value) for name, value in values.items()},
    }


def windows(folder) -> tuple[Tracker, Windows]:
    writer = tracker(folder)
    return writer, Windows(writer)


def test_a_window_is_logged_as_means_at_its_last_step_in_order(tmp_path):
    writer, shown = windows(tmp_path)
    for step in range(1, 6):
        shown.add(step, scalar(loss=step, top1=0.5, learning_rate=step / 8))
        if step in (2, 4):
            assert shown.report(wait=False) is None
    assert shown.report(wait=True) is None
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 2, "kind": "train", "loss": 1.5, "top1": 0.5, "learning_rate": 0.25},
        {"step": 4, "kind": "train", "loss": 3.5, "top1": 0.5, "learning_rate": 0.5},
        {"step": 5, "kind": "train", "loss": 5.0, "top1": 0.5, "learning_rate": 0.625},
    ]


def test_without_waiting_the_newest_window_stays_on_the_device(tmp_path, monkeypatch):
    writer, shown = windows(tmp_path)
    fetched = []
    fetch = jax.device_get

    def watched(values):
        fetched.extend(float(metrics["loss"]) for metrics in values)
        return fetch(values)

    monkeypatch.setattr(jax, "device_get", watched)
    shown.add(1, scalar(loss=1))
    shown.add(2, scalar(loss=2))
    shown.report(wait=False)
    assert fetched == []
    shown.add(3, scalar(loss=3))
    shown.report(wait=False)
    assert fetched == [1, 2]
    shown.report(wait=True)
    assert fetched == [1, 2, 3]
    shown.report(wait=True)
    writer.close()
    assert steps_in(tmp_path) == [2, 3]


def test_the_first_step_that_failed_is_told_and_nothing_is_logged_from_its_window_on(tmp_path):
    writer, shown = windows(tmp_path)
    for step in range(1, 9):
        good = step not in (4, 6)
        values = scalar(loss=step if good else float("nan"), learning_rate=step / 8)
        shown.add(step, {**values, "ok": jnp.bool(good)})
        if step in (2, 5):
            assert shown.report(wait=False) is None
    step, values = shown.report(wait=True)
    writer.close()
    assert step == 4
    assert np.isnan(values.pop("loss"))
    assert values == {"learning_rate": 0.5}
    # the steps after it changed nothing, and are not told a second time
    assert shown.report(wait=True) is None
    assert steps_in(tmp_path) == [2]


def test_a_mean_is_over_the_finite_values(tmp_path):
    writer, shown = windows(tmp_path)
    # under float16 the gradient of a step that went well may overflow: its update is skipped
    for step, norm in enumerate((1.0, float("inf"), 3.0), start=1):
        shown.add(step, scalar(grad_norm=norm, scale=float("inf")))
    shown.report(wait=True)
    writer.close()
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert record["grad_norm"] == 2.0
    assert record["scale"] is None


def test_a_process_other_than_the_first_writes_nothing_but_sees_failures(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    wandb = {"project": "small", "mode": "offline"}
    writer = tracker(tmp_path, tracking__progress=True, tracking__tensorboard=True, tracking__wandb=wandb)
    shown = Windows(writer)
    shown.add(1, scalar(loss=1))
    assert shown.report(wait=True) is None
    shown.add(2, {**scalar(loss=2), "ok": jnp.bool(False)})
    assert shown.report(wait=True) == (2, {"loss": 2.0, "learning_rate": 0.0})
    writer.log(2, "eval", {"top1": 0.5})
    writer.samples(2, np.zeros((1, 2, 2, 3), np.float32))
    writer.sync()
    writer.close()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_progress_bar_counts_from_where_the_run_goes_on(tmp_path, capfd):
    writer = tracker(tmp_path, start=40, tracking__progress=True)
    for _ in range(2):
        writer.advance()
    writer.log(42, "train", {"loss": 0.25})
    writer.close()
    shown = capfd.readouterr().err
    assert "42/100" in shown


@pytest.fixture
def uplink(monkeypatch):
    """Where W&B would send to: a port on which nothing may knock."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("HTTPS_PROXY", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_SILENT", "true")
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        monkeypatch.delenv("WANDB_MODE", raising=False)
        yield
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.usefixtures("uplink")
def test_wandb_offline_keeps_one_run_over_sessions_and_stays_off_the_network(tmp_path):
    pytest.importorskip("wandb")
    section = {"project": "small", "mode": "offline"}
    logged(tmp_path, [5, 10], tracking__wandb=section)
    logged(tmp_path, [15], start=10, tracking__wandb=section)
    name = (tmp_path / "wandb_id").read_text()
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    for folder in folders:
        (record,) = folder.glob("*.wandb")
        assert record.name == f"run-{name}.wandb"
        assert record.stat().st_size > 0
    assert steps_in(tmp_path) == [5, 10, 15]


def test_wandb_that_is_not_installed_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"tracking.wandb: wandb is not installed; pip install 'jaxkit\[track\]'"):
        tracker(tmp_path, tracking__wandb={"project": "small"})


def test_wandb_gets_the_samples_and_pictures_that_are_written(tmp_path, monkeypatch):
    sent = []
    theirs = SimpleNamespace(id="a", log=lambda values, step: sent.append((step, values)), finish=lambda: None)
    fake = SimpleNamespace(init=lambda **_: theirs, Image=np.asarray, Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writer = tracker(tmp_path, tracking__wandb={"project": "small"})
    writer.samples(3, np.random.default_rng(0).random((4, 5, 5, 3), np.float32))
    writer.pictures(4, {"loss_by_time": np.full((6, 7, 3), 9, np.uint8)})
    writer.close()
    assert [(step, list(values)) for step, values in sent] == [(3, ["samples"]), (4, ["loss_by_time"])]
    written = (tmp_path / "samples" / "00000003.png", tmp_path / "pictures" / "loss_by_time_00000004.png")
    for path, (_, values) in zip(written, sent, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), *values.values())
