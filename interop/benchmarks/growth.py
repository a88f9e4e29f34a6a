"""The picture of how costs grow."""

from pathlib import Path


def draw_growth(figures: dict[str, float], path: Path) -> None:
    """Draws a step's time over the length of delays, the number of neurons, and the batch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, list]] = {}
    for key, ms in figures.items():
        swept, value, name = key.split()
        curves.setdefault(swept, {}).setdefault(name, []).append((int(value), ms))
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (swept, lines) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        for name, points in lines.items():
            style = {"color": "black", "linestyle": "--"} if name == "inferno" else {}
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name, **style)
        labels = {"steps": "longest delay, steps", "neurons": "neurons before and behind", "batch": "batch"}
        panel.set(xscale="log", yscale="log", xlabel=labels[swept], ylabel="forward, ms a step")
        values = [value for value, _ in next(iter(lines.values()))]
        panel.set_xticks(values, labels=map(str, values))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panel.legend()
    part = path.with_suffix(".part.png")
    figure.savefig(part, dpi=110)
    part.replace(path)
