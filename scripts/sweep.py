"""Scores a run's samples over guidance, temperature, steps...; run with --help."""

import argparse
from pathlib import Path

from jaxkit.cli import reported
from jaxkit.errors import ConfigError

parser = argparse.ArgumentParser(description="Scores samples with every combination of settings: a table and a plot.")
parser.add_argument("axes", nargs="+", metavar="task.sampler.KEY=VALUE,VALUE", help="the first is the plot's axis")
parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="the folder of the run")
parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets sweep.csv and sweep.png")
parser.add_argument("--step", type=int, metavar="N", help="the checkpoint; default: the best")
parser.add_argument("--force", action="store_true", help="overwrite what is there")


def main() -> None:
    """Parses, then imports what is heavy."""
    arguments = parser.parse_args()
    if not arguments.force and (arguments.out / "sweep.csv").exists():
        raise ConfigError(f"--out {arguments.out} holds a sweep already; choose another or give --force")
    from interop.starts import READERS
    from jaxkit import sweep

    settings = sweep.axes(arguments.axes)
    rows = []
    for row in sweep.sweep(arguments.workdir, settings, arguments.step, readers=READERS):
        rows.append(row)
        shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items())
        print(*shown, sep="  ", flush=True)
        sweep.write(rows, settings, arguments.out)


if __name__ == "__main__":
    with reported("; what was scored before is in sweep.csv"):
        main()
