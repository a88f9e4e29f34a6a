"""Where a run is seen: a progress bar, metrics.jsonl, TensorBoard, W&B; at its end curves.png and results.json."""

import json
import math
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from jaxkit.config import Config
from jaxkit.errors import ConfigError
from jaxkit.pictures import grid, save_png


class Tracker:
    """Writes the metrics of one run, between :meth:`open` and :meth:`close`. Only the first process writes.

    Args:
        workdir: gets ``metrics.jsonl``, ``tensorboard/``, ``samples/``, ``pictures/``, ``curves.png``.
        config: of the run; its ``tracking`` section says where metrics go, and W&B shows all of it.
        start: the step the run goes on from; records after it, of a run cut off later, are dropped.
        steps: the step the run ends at.

    Raises:
        ConfigError: if W&B is asked for and missing, or it refuses; nothing is written in the workdir before.
    """

    def __init__(self, workdir: Path, config: Config, *, start: int, steps: int):
        self.workdir, self._config, self._start, self._steps = workdir, config, start, steps
        self._active = jax.process_index() == 0
        wanted = self._active and config.tracking.wandb is not None
        self._wandb = _wandb_run(workdir, config, start) if wanted else None
        self._board = None

    def open(self) -> None:
        """Opens the files, dropping what was logged after the step the run goes on from."""
        tracking = self._config.tracking
        # in a log file every refresh is a line
        every = 0.5 if sys.stderr.isatty() else 30
        self._bar = tqdm(
            total=self._steps,
            initial=self._start,
            unit="step",
            mininterval=every,
            dynamic_ncols=True,
            disable=not (self._active and tracking.progress),
        )
        if not self._active:
            return
        path = self.workdir / "metrics.jsonl"
        earlier = [record for record in read_metrics(path) if record["step"] <= self._start] if self._start else []
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in earlier))
        self._file = path.open("a", encoding="utf-8")
        if self._wandb is not None:
            write_atomically(self.workdir / "wandb_id", self._wandb.id)
        if tracking.tensorboard:
            from tensorboardX import SummaryWriter

            # named after the second it is opened in: without the suffix, two sessions within one overwrite each other
            self._board = SummaryWriter(
                str(self.workdir / "tensorboard"), purge_step=self._start + 1, filename_suffix=f".{self._start}"
            )

    def log(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Writes scalars of a step; ``kind`` is ``train`` or ``eval``."""
        if not self._active:
            return
        record = {"step": step, "kind": kind, **{name: _finite(value) for name, value in values.items()}}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)
        shown = [f"{name} {values[name]:.4g}" for name in ("loss", "top1") if name in values]
        self._bar.set_postfix_str(f"{kind}: {', '.join(shown)}", refresh=False)

    def samples(self, step: int, images: Float[np.ndarray, "n h w c"]) -> None:
        """Writes images in [0, 1] as one grid, ``samples/<step>.png``."""
        if not self._active:
            return
        picture = grid(images)
        (self.workdir / "samples").mkdir(exist_ok=True)
        save_png(self.workdir / "samples" / f"{step:08d}.png", picture)
        if self._board is not None:
            self._board.add_image("samples", picture, step, dataformats="HWC")
        self._show("samples", picture, step)

    def pictures(self, step: int, pictures: dict[str, UInt8[np.ndarray, "_ _ 3"]]) -> None:
        """Writes pictures as ``pictures/<name>_<step>.png``."""
        if not self._active:
            return
        (self.workdir / "pictures").mkdir(exist_ok=True)
        for name, picture in pictures.items():
            save_png(self.workdir / "pictures" / f"{name}_{step:08d}.png", picture)
            if self._board is not None:
                self._board.add_image(name, picture, step, dataformats="HWC")
            self._show(name, picture, step)

    def _show(self, name: str, picture: UInt8[np.ndarray, "_ _ 3"], step: int) -> None:
        """Sends a picture to Weights & Biases, where a run logs there."""
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(picture)}, step=step)

    def advance(self) -> None:
        """Moves the progress bar by one step."""
        self._bar.update()

    def sync(self) -> None:
        """Forces what was logged to disk, so that a checkpoint is never ahead of its metrics."""
        if self._active:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Draws the curves and closes every writer."""
        self._bar.close()
        if not self._active:
            return
        self._file.close()
        draw_curves(read_metrics(self.workdir / "metrics.jsonl"), self.workdir / "curves.png")
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class Windows:
    """Scalars of training steps on their way from the device to a tracker, logged as means over windows of steps.

    Of ``learning_rate`` the last value is logged.

    Args:
        tracker: what logs them.
    """

    def __init__(self, tracker: Tracker):
        self._tracker = tracker
        self._windows: list[list[tuple[int, dict[str, jax.Array]]]] = [[]]

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the scalars of a step, computed or not; ``ok`` among them says whether the step went well."""
        self._windows[-1].append((step, metrics))
        self._tracker.advance()

    def report(self, wait: bool) -> tuple[int, dict[str, float]] | None:
        """Closes a window and logs all, or, without ``wait``, all but it: its steps are still being computed.

        Returns:
            the first step that did not go well, with its scalars; it and those after it are forgotten.
        """
        self._windows.append([])
        while len(self._windows) > (1 if wait else 2):
            window = self._windows.pop(0)
            fetched = [
                {name: float(value) for name, value in m.items()} for m in jax.device_get([m for _, m in window])
            ]
            for (step, _), metrics in zip(window, fetched, strict=True):
                if not metrics.pop("ok"):
                    self._windows = [[]]
                    return step, metrics
            if window:
                means = {name: _finite_mean([metrics[name] for metrics in fetched]) for name in fetched[0]}
                self._tracker.log(window[-1][0], "train", means | {"learning_rate": fetched[-1]["learning_rate"]})
        return None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order. Lines that a crash cut or something damaged are named and left out."""
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        try:
            records.append(json.loads(line if line.endswith("\n") else ""))
        except ValueError:
            print(f"{path} line {number} is damaged and left out", file=sys.stderr)
    return records


def draw_curves(records: list[dict[str, Any]], path: Path) -> None:
    """Draws every metric over steps, training and evaluation in one panel each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for name, value in record.items():
            if name not in ("step", "kind") and value is not None:
                curves[name][record["kind"]].append((record["step"], value))
    if not curves:
        return
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    # what zip takes last of the longer is not lost
    for (name, kinds), panel in zip(curves.items(), panels, strict=False):
        for kind, points in kinds.items():
            panel.plot(*zip(*points, strict=True), label=kind, marker="o" if kind == "eval" else None, markersize=3)
        panel.set(title=name, xlabel="step")
        panel.grid(alpha=0.3)
        panel.legend()
    for panel in list(panels):
        panel.remove()
    part = path.with_suffix(".part.png")
    figure.savefig(part, dpi=110)
    part.replace(path)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file, a text as UTF-8, so that it is there in full or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _finite_mean(values: list[float]) -> float:
    """The mean of the finite values: under float16 a gradient overflows now and then, and its step is skipped."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _wandb_run(workdir: Path, config: Config, start: int):
    """Opens a W&B run; that of the workdir, if the training goes on there."""
    try:
        import wandb
    except ModuleNotFoundError:
        raise ConfigError("tracking.wandb: wandb is not installed; pip install 'jaxkit[track]'") from None
    section = config.tracking.wandb.model_dump()
    kept = workdir / "wandb_id"
    name = kept.read_text() if start and kept.is_file() else os.urandom(4).hex()
    try:
        return wandb.init(**section, dir=workdir, config=config.model_dump(mode="json"), id=name, resume="allow")
    except wandb.Error as error:
        raise ConfigError(f"tracking.wandb: {error}; or set tracking.wandb.mode=offline") from None
