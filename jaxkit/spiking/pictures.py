"""Pictures of spiking networks: what fired, what the membranes did, what the weights and delays have become.

Each function returns an image, uint8 [h w 3], for a PNG or TensorBoard.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Image = UInt8[np.ndarray, "height width 3"]
INK, ACCENT, WARNING, QUIET = "#1f2937", "#2563eb", "#dc2626", "#9ca3af"


def draw_raster(
    populations: Mapping[str, Num[np.ndarray, "t _"] | Bool[np.ndarray, "t _"]], step_time: float, *, dpi: int = 110
) -> Image:
    """Draws a tick for every spike of one example, a panel for each population, all over the same time.

    Beside the name of a population stands its mean rate.

    Args:
        populations: spikes of named populations, drawn in this order from the top.
        step_time: ms
        dpi: pixels an inch; the picture is 9 inches wide.
    """
    sizes = [spikes.shape[1] for spikes in populations.values()]
    # large populations get more room, small ones enough to be read
    heights = [min(3.0, max(0.9, 0.025 * size)) for size in sizes]
    figure = _figure(9.0, sum(heights) + 0.7, dpi)
    panels = figure.subplots(len(sizes), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (name, spikes), height in zip(panels, populations.items(), heights, strict=True):
        steps, neurons = np.nonzero(spikes)
        # ticks as high as a neuron's row, but never too fine to be seen
        length = max(2.0, 0.8 * 72 * height / spikes.shape[1])
        panel.plot(steps * step_time, neurons, "|", color=INK, markersize=min(length, 12), markeredgewidth=0.8)
        rate = 1000 * np.count_nonzero(spikes) / (spikes.size * step_time)
        panel.set_title(f"{name}: {spikes.shape[1]} neurons, {rate:.3g} Hz", fontsize=9, loc="left")
        panel.set(ylim=(spikes.shape[1] - 0.5, -0.5), ylabel="neuron")
        panel.yaxis.get_major_locator().set_params(integer=True, nbins=4)
    panels[-1].set(xlabel="time (ms)", xlim=(-step_time / 2, max(map(len, populations.values())) * step_time))
    return _pixels(figure)


def draw_membranes(
    voltage: Float[np.ndarray, "t n"],
    threshold: Float[np.ndarray, "t n"] | float,
    spikes: Num[np.ndarray, "t n"] | Bool[np.ndarray, "t n"],
    step_time: float,
    *,
    unit: str = "mV",
    dpi: int = 110,
) -> Image:
    """Draws voltages over time, each neuron in a panel, under its threshold; a dot above it marks a spike.

    Args:
        voltage: after each step (a neuron that fired is at its reset); a few neurons of one example.
        threshold: one number, or as it adapts.
        spikes: of the same neurons.
        step_time: ms
        unit: of voltages and thresholds.
        dpi: pixels an inch; the picture is 9 inches wide.
    """
    threshold = np.broadcast_to(threshold, voltage.shape)
    times = np.arange(len(voltage)) * step_time
    figure = _figure(9.0, 1.3 * voltage.shape[1] + 0.7, dpi)
    panels = figure.subplots(voltage.shape[1], 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    low, high = min(voltage.min(), threshold.min()), max(voltage.max(), threshold.max())
    top = high + 0.1 * max(high - low, 1e-6)
    for neuron, panel in enumerate(panels):
        panel.plot(times, threshold[:, neuron], color=WARNING, linewidth=1, linestyle="--", label="threshold")
        panel.plot(times, voltage[:, neuron], color=ACCENT, linewidth=1.2, label="membrane")
        fired = times[spikes[:, neuron] != 0]
        panel.plot(fired, np.full(len(fired), top), "o", color=INK, markersize=3.5, label="spike")
        panel.set_title(f"neuron {neuron}", fontsize=9, loc="left")
        panel.set_ylabel(unit)
    panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8, frameon=False, borderaxespad=0)
    panels[-1].set(xlabel="time (ms)", xlim=(0, times[-1]))
    return _pixels(figure)


def draw_receptive_fields(
    weights: Float[np.ndarray, "n h w"], classes: Int[np.ndarray, " n"] | None = None, *, dpi: int = 110
) -> Image:
    """Draws what each neuron listens to, all in one scale of colours.

    Weights of one sign go from white to dark, those of both from red over white, which is 0, to blue.

    Args:
        weights: of each neuron, as its input is laid out.
        classes: of each neuron, written above it; -1 for none.
        dpi: pixels an inch; a field is 0.8 inches wide.
    """
    columns = math.ceil(math.sqrt(len(weights)))
    rows = math.ceil(len(weights) / columns)
    figure = _figure(0.8 * columns + 0.9, (0.8 if classes is None else 0.9) * rows + 0.2, dpi)
    panels = figure.subplots(rows, columns, squeeze=False)
    low, high = weights.min(), weights.max()
    if low < 0 < high:
        colours = {"cmap": "RdBu", "vmin": -max(-low, high), "vmax": max(-low, high)}
    else:
        colours = {"cmap": "Greys" if high > 0 else "Greys_r", "vmin": min(low, 0), "vmax": max(high, 0)}
    for panel in panels.flat:
        panel.set_axis_off()
    for i, (field, panel) in enumerate(zip(weights, panels.flat, strict=False)):
        panel.set_axis_on()
        image = panel.imshow(field, interpolation="nearest", **colours)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set(visible=True, color=QUIET, linewidth=0.5)
        if classes is not None:
            panel.set_title("–" if classes[i] < 0 else str(classes[i]), fontsize=8, pad=2)
    figure.colorbar(image, ax=panels, label="weight", fraction=0.05, aspect=30)
    return _pixels(figure)


def draw_delays(
    delay: Float[np.ndarray, "..."],
    max_delay: float,
    step_time: float,
    *,
    weight: Float[np.ndarray, "..."] | None = None,
    dpi: int = 110,
) -> Image:
    """Draws a histogram of delays, a bar for those nearest to each step.

    Those outside [0, max_delay], which may never arrive, are red.

    Args:
        delay: ms, of any shape.
        max_delay: ms
        step_time: ms
        weight: of the same shape; if given, synapses count by its magnitude.
        dpi: pixels an inch; the picture is 7 inches wide.
    """
    delay = np.ravel(delay)
    quantity = "synapses" if weight is None else "sum of |weight|"
    weight = np.ones(len(delay)) if weight is None else np.abs(np.ravel(weight))
    low, high = min(delay.min(), 0), max(delay.max(), max_delay)
    # a bar reaches half a step to either side of its step, and bars are 200 at most
    width = step_time * max(1, math.ceil((high - low) / step_time / 200))
    first, last = math.floor(low / width + 0.5), math.floor(high / width + 0.5)
    edges = (np.arange(first, last + 2) - 0.5) * width
    outside = (delay < 0) | (delay > max_delay)
    figure = _figure(7.0, 3.2, dpi)
    panel = figure.subplots()
    panel.hist(
        [delay[~outside], delay[outside]],
        edges,
        weights=[weight[~outside], weight[outside]],
        stacked=True,
        color=[ACCENT, WARNING],
        label=["in range", "out of range"],
        rwidth=0.85,
    )
    for begin, end in ((edges[0] - width, 0), (max_delay, edges[-1] + width)):
        panel.axvspan(begin, end, color=WARNING, alpha=0.08, linewidth=0, zorder=0)
    panel.set(xlim=(edges[0] - width, edges[-1] + width), xlabel="delay (ms)", ylabel=quantity)
    panel.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False, borderaxespad=0)
    panel.set_title(
        f"{len(delay):,} delays, mean {delay.mean():.3g} ms; {outside.sum():,} ({outside.mean():.1%}) outside "
        f"[0, {max_delay:g}] ms",
        fontsize=9,
        loc="left",
    )
    return _pixels(figure)


def _figure(width: float, height: float, dpi: int) -> "Figure":
    """A figure of its own, in no global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _pixels(figure: "Figure") -> Image:
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(panel.get_xticks().size == 0)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
