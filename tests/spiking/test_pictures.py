import sys

import numpy as np
import pytest

from jaxkit.spiking.pictures import draw_delays, draw_membranes, draw_raster, draw_receptive_fields

RED, BLUE = (220, 38, 38), (37, 99, 235)


def count(image, colour):
    """Pixels near a colour: a thin line is paler than its ink."""
    return int((np.abs(image.astype(int) - colour).max(-1) < 70).sum())


def dark(image):
    return int((image.max(-1) < 128).sum())


def test_a_raster_has_a_tick_for_every_spike():
    silent = np.zeros((50, 4), np.float32)
    one = silent.copy()
    one[25, 2] = 1
    row = silent.copy()
    row[:, 2] = 1
    # titles name the rates: they differ in a few digits, thin beside fifty ticks
    ink = [dark(draw_raster({"input": spikes}, 1.0)) for spikes in (silent, one, row)]
    assert ink[0] < ink[1] < ink[2] - 20 * (ink[1] - ink[0])


def test_a_raster_is_as_high_as_its_populations_need():
    shapes = [
        draw_raster({name: np.zeros((10, size), bool) for name, size in sizes.items()}, 1.0).shape
        for sizes in ({"a": 5}, {"a": 5, "b": 5}, {"a": 5, "b": 5000})
    ]
    assert shapes[0][0] < shapes[1][0] < shapes[2][0] < 600
    assert {shape[1:] for shape in shapes} == {(990, 3)}


def test_membranes_run_below_their_own_thresholds_and_spikes_are_marked():
    voltage = np.full((100, 2), -60.0, np.float32)
    spikes = np.zeros((100, 2), np.float32)
    adapted = np.linspace(-50, -40, 100, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    fixed, moving = (draw_membranes(voltage, threshold, spikes, 1.0) for threshold in (-50.0, adapted))
    assert fixed.shape == moving.shape
    assert (fixed != moving).any()
    assert min(count(fixed, RED), count(fixed, BLUE)) > 100
    spikes[50] = 1
    assert dark(draw_membranes(voltage, -50.0, spikes, 1.0)) > dark(fixed)
    spikes[50] = 0
    assert (draw_membranes(voltage, -50.0, spikes, 1.0, unit="thresholds") != fixed).any()


def test_receptive_fields_of_both_signs_are_red_and_blue_and_of_one_sign_grey():
    fields = np.random.default_rng(0).random((5, 4, 6), np.float32)
    grey, coloured = (draw_receptive_fields(weights) for weights in (fields, fields - 0.5))
    spread = [int(np.ptp(image.astype(int), axis=-1).max()) for image in (grey, coloured)]
    # the frames around fields are not quite grey
    assert spread[0] < 30
    assert spread[1] > 100


@pytest.mark.parametrize("weights", [np.zeros((1, 3, 3)), -np.ones((2, 3, 3))], ids=["zero", "negative"])
def test_receptive_fields_may_be_all_alike(weights):
    plain = draw_receptive_fields(weights)
    named = draw_receptive_fields(weights, np.array([-1, 3])[: len(weights)])
    # the frames, and then room for the names above the fields
    assert dark(plain) > 0
    assert named.shape[0] > plain.shape[0]


def test_delays_out_of_range_are_red_and_those_in_range_are_not():
    rng = np.random.default_rng(0)
    inside = rng.uniform(0, 20, (30, 40)).astype(np.float32)
    images = [draw_delays(delay, 20.0, 1.0) for delay in (inside, inside + 10, inside - 40)]
    # the legend has a patch of either colour
    patch = count(images[0], RED)
    assert patch < 500
    assert count(images[0], BLUE) > 20 * patch
    assert min(count(images[1], RED), count(images[1], BLUE)) > 5 * patch
    assert count(images[2], BLUE) < 500


def test_delays_may_count_by_their_weights():
    delay = np.array([2.0, 2.0, 8.0], np.float32)
    even, heavy = (
        draw_delays(delay, 10.0, 1.0, weight=np.array(weight, np.float32)) for weight in ([1, 1, 2], [-1, 1, 8])
    )
    assert count(heavy, BLUE) < count(even, BLUE)


def test_delays_of_one_value_and_of_many_steps_can_be_drawn():
    for delay in (np.zeros(3, np.float32), np.array([0, 1e4], np.float32)):
        assert count(draw_delays(delay, 5.0, 0.1), BLUE) > 0


def test_pictures_leave_no_figure_behind():
    draw_raster({"input": np.ones((5, 5))}, 1.0)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
