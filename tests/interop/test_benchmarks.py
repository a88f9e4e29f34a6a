"""Benchmarks of spiking networks run, on sizes at which their figures mean nothing."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.errors import ConfigError

pytest.importorskip("inferno")

from interop.benchmarks import spiking


def test_every_figure_of_a_tiny_run_is_a_positive_number(monkeypatch, tmp_path):
    # once, not five times: only that they run is tested
    monkeypatch.setattr(spiking, "milliseconds", lambda program, *arguments, repeats=1: [program(*arguments), 1.5][1])
    tiny = {
        "delayed": lambda: spiking.delayed(2, 3, 4, 2, 5),
        "undelayed": lambda: spiking.undelayed(2, 3, 5),
        "plasticity": lambda: spiking.plasticity(2, 6, 4, 5),
    }
    monkeypatch.setattr(spiking, "BENCHMARKS", tiny)
    lines = list(spiking.measure(tmp_path))
    figures = json.loads((tmp_path / "spiking.json").read_text())
    assert set(figures) == set(tiny)
    assert all(math.isfinite(figure) and figure > 0 for found in figures.values() for figure in found.values())
    assert len(lines) == 1 + sum(map(len, figures.values()))


def test_an_unknown_benchmark_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="the benchmarks of this suite are delayed, undelayed, plasticity, growth"):
        list(spiking.measure(None, "delay"))


def test_the_quickstart_network_learns_from_its_spikes():
    spikes = (np.random.default_rng(0).random((40, 3, 20)) < 0.3).astype(np.float32)
    program, params, *rest = spiking.quickstart(jnp.asarray(spikes), 5)
    (moved, *_), fired = program(params, *rest)
    assert fired.any()
    assert not np.allclose(moved["weight"], params["weight"])


def test_growth_is_drawn_with_a_curve_for_each_execution(tmp_path):
    figures = {
        f"{swept} {n} {name}": float(n)
        for swept in ("steps", "neurons", "batch")
        for n in (1, 2)
        for name in ("gather", "inferno")
    }
    spiking.draw_growth(figures, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000
