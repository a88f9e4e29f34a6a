"""Benchmarks of spiking networks run, on sizes at which their figures mean nothing."""

import json
import math

import numpy as np
import pytest

from jaxkit.errors import ConfigError

pytest.importorskip("inferno")

from interop.benchmarks import quickstart, spiking

pytestmark = pytest.mark.level(1)


def test_every_figure_of_a_tiny_run_is_a_positive_number(monkeypatch, tmp_path):
    # once, not five times: only that they run is tested
    monkeypatch.setattr(spiking, "milliseconds", lambda program, *arguments, repeats=1: [program(*arguments), 1.5][1])
    tiny = {
        "delayed": lambda: spiking.delayed(2, 3, 4, 2, 5),
        "undelayed": lambda: spiking.undelayed(2, 3, 5),
        "plasticity": lambda: spiking.plasticity(2, 4, 5),
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


def test_the_quickstart_network_learns_on_both_sides_the_same():
    pytest.importorskip("inferno")
    rng = np.random.default_rng(0)
    spikes, weight = (rng.random((40, 3, 60)) < 0.05).astype(np.float32), rng.random((5, 60), np.float32)
    (ours, rates), (theirs, their_rates) = (
        side(weight, spikes)() for side in (quickstart.in_jaxkit, quickstart.in_inferno)
    )
    assert 0 < np.count_nonzero(rates) < rates.size
    np.testing.assert_array_equal(rates, their_rates)
    # a few float32 roundings at each of the steps
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    unlearned = 78.4 * weight / weight.sum(1, keepdims=True)
    assert not np.allclose(ours, unlearned, rtol=1e-3)


def test_growth_is_drawn_with_a_curve_for_each_execution(tmp_path):
    figures = {
        f"{swept} {n} {name}": float(n)
        for swept in ("steps", "neurons", "batch")
        for n in (1, 2)
        for name in ("gather", "inferno")
    }
    spiking.draw_growth(figures, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000
