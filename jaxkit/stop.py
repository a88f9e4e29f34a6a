"""How a run ends early: a signal, noted so that the loop can finish its step and save; a loss that is no number."""

import json
import math
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxkit.errors import UserError
from jaxkit.tracking import write_atomically


class Interrupted(UserError):
    """A signal asked the run to stop, and it has saved what it had."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signum


class Stop:
    """Notes the first SIGTERM or SIGINT that comes in its ``with`` block; a second one does what it did before.

    Outside the main thread, where Python hands out no signals, it notes none.
    """

    def __init__(self):
        self.signum: int | None = None
        self._former = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        self._restore()

    def _note(self, signum, _frame):
        self.signum = signum
        self._restore()

    def _restore(self):
        for number, handler in self._former.items():
            signal.signal(number, handler)


class NonFinite(UserError):
    """The loss of ``step`` or its gradient is not finite. Leaves ``nonfinite.json`` and ``nonfinite_batch.npz``.

    Args:
        workdir: gets the two files.
        step: number of the update that failed.
        values: scalars of that step, ``loss`` and ``grad_norm`` among them.
        params: the parameters before it.
        batch: its examples, as they were read.
    """

    def __init__(
        self, workdir: Path, step: int, values: dict[str, float], params: PyTree, batch: dict[str, np.ndarray]
    ):
        np.savez(workdir / "nonfinite_batch.npz", **batch)
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        norms = {
            jax.tree_util.keystr(path, simple=True, separator="/"): float(jnp.linalg.norm(leaf.ravel()))
            for path, leaf in leaves
        }
        # JSON lacks NaN and infinity: they become words
        values = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        report = {"step": step, **values, "param_norms": norms}
        write_atomically(workdir / "nonfinite.json", json.dumps(report, indent=2))
        super().__init__(
            f"step {step} has loss {values['loss']} and gradient norm {values['grad_norm']}; the state before it is "
            f"kept in {workdir}, with nonfinite.json (all values and norms) and nonfinite_batch.npz (the examples). "
            "Lower optimizer.learning_rate, set optimizer.clip_norm, or look at the examples"
        )
